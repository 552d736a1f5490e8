"""The smallest network of every family of timm, at random weights, checked against slow twins; `zoo.py --timm` runs it.

A family is a module of timm's, such as `convnext`. Each is checked in its own process, which has a time limit and
writes one line of JSON:

family, network, parameters, size   the smallest by its number of parameters, and the side of its images, pixels
depth           how many blocks it was made with, of a network of more than 1e8 parameters
result          "equal"; "refused", by an error of one line; "wrong"; "failed", by any other error; "late"
says            the error, where there is one
layers          how many layers `layers="auto"` finds
float32         whether it computes a part in float32 whatever its type: then 1e-5 is equal, and not 1e-8
compared        layers of which the projection was compared, and is not zero
project         largest deviation of `project` from autograd with all decisions held fixed, relative, in float64
units           the same of `project_units` from `project`, of single units
fields          of how many units the receptive field is the pixels that a gradient reaches, decisions fixed
wider           of how many it holds these and more
unknown         of how many no field is known
occlusion       largest deviation of incremental from plain occlusion, relative
seconds         that all of it took
"""

import contextlib
import json
import multiprocessing
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from experiments.output.tables import table
from scripts.zoo import drawn_timm, extended_layers, strongest, worst
from tests.oracles import Replaced, averaging, deconvnet_by_autograd, extent, on_the_image, structural
from zfnet import EXTENDED, Deconvnet, InputError, occlusion_maps, receptive_field
from zfnet.errors import first_line
from zfnet.files import write_atomically
from zfnet.graph import Graph
from zfnet.layers import spread
from zfnet.recording import Recording

FORK: Any = multiprocessing.get_context("fork")  # which imports nothing anew
FILE = Path(__file__).resolve().parents[1] / "results" / "zoo" / "timm.json"
SIDES = (64, 96, 128, 160, 192, 224)  # pixels, of networks that take several
SMALL = ("test_", "atto", "femto", "pico", "nano", "zero", "tiny", "xxs", "xs", "_t", "small", "_s", "0", "1", "b16")
TOLERANCE = {False: 1e-8, True: 1e-5}  # True: of networks that compute a part in float32 whatever their type
LARGE = 10**8  # parameters, from which a network is made with two blocks


def families() -> list[str]:
    """timm's modules that have networks."""
    import timm

    return [family for family in timm.list_modules() if timm.list_models(module=family)]


class _TooLarge(Exception):
    """The network has more parameters than one that is known."""


def smallest(family: str) -> str:
    """The network of a family that has the fewest parameters; each is built without memory, until it has more."""
    import timm

    def order(name: str) -> int:
        return next((n for n, part in enumerate(SMALL) if part in name), len(SMALL))

    least, best = float("inf"), ""
    for name in sorted(timm.list_models(module=family), key=order):
        size = _parameters(name, least)
        if size < least:
            least, best = size, name
    return best


def _parameters(name: str, most: float, **settings: Any) -> float:
    """How many parameters a network has; infinitely many from `most` on."""
    import timm

    parameters: dict[tuple[int, str], int] = {}
    alive = []  # an id is of one module alone as long as this lives

    def count(module: nn.Module, key: str, parameter: Any) -> None:
        alive.append(module)
        parameters[id(module), key] = 0 if parameter is None else parameter.numel()
        if sum(parameters.values()) >= most:
            raise _TooLarge

    handle = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, **settings)
    except _TooLarge:
        return float("inf")
    finally:
        handle.remove()
    return sum(parameter.numel() for parameter in model.parameters())


def settings_of(network: str) -> dict[str, int]:
    """Fewer blocks for a network of very many parameters, where timm can."""
    if _parameters(network, LARGE) == float("inf"):
        with contextlib.suppress(TypeError):  # it has no such setting
            _parameters(network, float("inf"), depth=2)
            return {"depth": 2}
    return {}


def built(network: str, **settings: Any) -> tuple[nn.Module, int]:
    """A network in float64, and the side of the smallest images, of those that are tried, that it takes.

    A network of a fixed size is made for smaller images than by default, where timm can.
    """
    import timm

    config = timm.get_pretrained_cfg(network)
    own = max(config.input_size[1:]) if config else 224
    fixed = bool(config and config.fixed_input_size)
    model = None if fixed else drawn_timm(network, **settings)
    for side in SIDES:
        if side < own:
            with contextlib.suppress(Exception):  # the network's own code may raise anything
                tried = model or drawn_timm(network, img_size=side, **settings)
                with torch.no_grad():
                    tried(torch.zeros(1, 3, side, side, dtype=torch.float64))
                return tried, side
    return model or drawn_timm(network, **settings), own


def support(model: nn.Module, images: Tensor, layer: str, unit: tuple[int, ...], places: Callable) -> Tensor:
    """Which pixels (H, W), bool, a gradient reaches from one unit, decisions fixed, if all weights are positive."""

    def signal(activation: Tensor) -> Tensor:
        out = torch.zeros_like(activation)
        places(out)[unit] = 1
        return out

    with Replaced(averaging()):
        reached = deconvnet_by_autograd(structural(model), images, layer, signal, extended=True)
    return reached[0].abs().sum(0) > 0


def check(model: nn.Module, side: int) -> dict[str, Any]:
    """What a network's line tells besides its name, of a model in float64."""
    images = torch.randn(1, 3, side, side, dtype=torch.float64)
    deconvnet = Deconvnet(Graph(model, EXTENDED, image_size=side), rules="extended")
    graph = deconvnet.graph
    try:
        auto = len(spread(graph, side))
    except InputError:
        auto = 0
    row: dict[str, Any] = {"layers": auto, "compared": 0, "project": 0.0, "units": 0.0, "occlusion": 0.0}
    row |= {"fields": 0, "wider": 0, "unknown": 0, "narrower": 0}
    (last,) = extended_layers(deconvnet, 1)
    recording = deconvnet.record(images, [last])
    way = deconvnet.steps(recording, last, recording.activations[last].abs())
    layers = extended_layers(deconvnet, among={last, *(name for name, _, _ in way)})  # no layers of gates
    maps = []
    recording = deconvnet.record(images, layers)
    row["float32"] = torch.float32 in recording.types.values()
    for layer in layers:
        activation = recording.activations[layer].abs()
        signal = activation * ((torch.rand_like(activation) < 0.1) | (activation == activation.max()))
        theirs = deconvnet_by_autograd(model, images, layer, signal, extended=True)
        row["compared"] += bool(theirs.any())
        row["project"] = max(row["project"], worst(deconvnet.project(recording, layer, signal), theirs))
        node = graph.node(layer)
        shapes = graph.shapes(side, node)
        if not shapes.are_maps(node):
            continue
        maps.append(layer)
        activation = shapes.maps(node, recording.activations[layer])
        units = strongest(activation[..., None, None] if activation.ndim == 2 else activation)[[0, -1]]
        unit = tuple(units[-1].tolist())[: activation.ndim]
        try:
            field = receptive_field(graph, layer, side, unit[1])
        except InputError:
            row["unknown"] += 1
            continue
        row["units"] = max(row["units"], *unit_deviations(deconvnet, recording, layer, units))
        reached = support(model, images, layer, unit, partial(shapes.maps, node))
        seen, measured = field.seen(*units[-1, 2:].tolist()), extent(reached)
        row["fields"] += seen == measured
        row["wider"] += seen != measured and inside(measured, seen)
        row["narrower"] += not inside(measured, seen)
    layer = maps[len(maps) // 2]
    squares: dict[str, Any] = {"size": side // 2, "step": side // 2, "layer": layer}
    quick, plain = (occlusion_maps(graph, images, incremental=fast, **squares) for fast in (True, False))
    row["occlusion"] = max(worst(getattr(quick, name), getattr(plain, name)) for name in ("activity", "probability"))
    return row


def unit_deviations(deconvnet: Deconvnet, recording: Recording, layer: str, units: Tensor) -> list[float]:
    """Of `project_units` from `project`, unit by unit."""
    graph, node, images = deconvnet.graph, deconvnet.graph.node(layer), recording.images
    patches, size, found = deconvnet.project_units(images, layer, units), tuple(images.shape[2:]), []
    shapes = graph.shapes(images.shape[-1], node)
    for canvas, box, unit in zip(patches.projections, patches.boxes, units.tolist(), strict=True):
        signal = torch.zeros_like(recording.activations[layer])
        view, place = shapes.maps(node, signal), tuple(unit)
        view[place[: view.ndim]] = shapes.maps(node, recording.activations[layer])[place[: view.ndim]]
        theirs = deconvnet.project(recording, layer, signal)[0]
        found.append(worst(on_the_image(canvas, box, size), theirs) if theirs.any() or canvas.any() else 0.0)
    return found


def inside(inner: tuple[int, ...], outer: tuple[int, ...]) -> bool:
    """Whether a box (top, left, bottom, right) lies in another."""
    (top, left, bottom, right), (rows, columns) = inner, outer[:2]
    return rows <= top and columns <= left and bottom <= outer[2] and right <= outer[3]


def line(family: str, network: str) -> dict[str, Any]:
    """The line of a family."""
    start, row = perf_counter(), {"family": family, "network": network}
    try:
        settings = settings_of(network)
        model, side = built(network, **settings)
        row |= settings
        row |= {"parameters": sum(p.numel() for p in model.parameters()), "size": side}
        row |= check(model, side)
        wrong = row["narrower"] or not row["compared"]
        tolerance = TOLERANCE[row["float32"]]
        wrong = wrong or not max(row["project"], row["units"], row["occlusion"]) <= tolerance
        row["result"] = "wrong" if wrong else "equal"
    except InputError as error:
        row |= {"result": "refused", "says": str(error)}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        row |= {
            "result": "failed",
            "says": f"{type(error).__name__}: {first_line(error)} ({Path(where.filename).name}:{where.lineno})",
        }
        traceback.print_exc()
    return row | {"seconds": round(perf_counter() - start, 1)}


def alone(family: str, network: str, seconds: int) -> dict[str, Any]:
    """The line of a family, made in its own process, which may crash or hang."""
    start, row = perf_counter(), {"family": family, "network": network}
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send_line, args=(theirs, family, network))
    process.start()
    theirs.close()
    try:
        if ours.poll(seconds):
            return dict(ours.recv())
        row |= {"result": "late", "says": f"not done after {seconds} s"}
        process.kill()
    except EOFError:
        process.join()
        row |= {"result": "failed", "says": f"its process ended with {process.exitcode}"}
    finally:
        process.join()
    return row | {"seconds": round(perf_counter() - start, 1)}


def _send_line(pipe: Any, family: str, network: str) -> None:
    warnings.simplefilter("ignore")  # of timm's own code
    pipe.send(line(family, network or smallest(family)))


def known(file: Path = FILE) -> dict[str, dict[str, Any]]:
    """The lines that a file has, by family."""
    if not file.exists():
        return {}
    rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    return {row["family"]: row for row in rows}


def run(names: list[str], resume: bool = True, seconds: int = 240, file: Path = FILE) -> None:
    """Write the lines of families, all of them if none is named; those that the file has are kept, if `resume`."""
    rows = known(file)
    for family in names or families():  # which imports timm, once for all processes
        if resume and family in rows:
            continue
        row = rows[family] = alone(family, rows.get(family, {}).get("network", ""), seconds)
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(rows[name]) for name in sorted(rows)]
        write_atomically(file, ("\n".join(lines) + "\n").encode())
        print(
            f"{row['family']} ({row['network']}): {row['result']} {row.get('says', '')} {row['seconds']} s", flush=True
        )


# ---- what the file says ----------------------------------------------------------------------------------------------

WORDS = {"late": "not done in time", "wrong": "**wrong**", "failed": "**failed**"}


def timm_table() -> str:
    """How many families are equal, and a row for each."""
    rows = list(known().values())
    counts = Counter(row["result"] for row in rows)
    others = [f"{counts[result]} {words}" for result, words in WORDS.items() if counts[result]]
    five = sum(row.get("layers", 0) >= 5 for row in rows)
    summary = (
        f"Of {len(rows)} families, {counts['equal']} are equal, {counts['refused']} are refused by name"
        f"{', ' + ', '.join(others) if others else ', and none is wrong'}. Of those that are traced, "
        f'`layers="auto"` finds five layers in {five}, and fewer in {sum(row.get("layers", 5) < 5 for row in rows)}.'
    )
    head = ["family", "network", "image", "result", "`project`", "`project_units`", "occlusion", "fields"]
    return f"{summary}\n\n{table(head, [_cells(row) for row in rows])}"


def fields() -> str:
    """How many receptive fields are what a gradient reaches, in words."""
    equal = [row for row in known().values() if row["result"] == "equal"]
    same, wider, narrower = (sum(row[name] for row in equal) for name in ("fields", "wider", "narrower"))
    return f"of {same + wider + narrower} in timm's families {same} are equal, {wider} larger, {narrower} too small"


def _cells(row: Mapping[str, Any]) -> list[Any]:
    result = row["result"]
    if "says" in row:
        reason = row["says"].removeprefix("no deconvnet rule for ").removesuffix("; register one with @rule")
        result = f"{WORDS.get(result, result)}: {reason}".replace("|", "\\|")
    measured = [row.get(name) for name in ("project", "units", "occlusion")] if row["result"] == "equal" else [None] * 3
    fields = ""
    if row["result"] == "equal":
        asked = sum(row[name] for name in ("fields", "wider", "unknown"))
        fields = f"{row['fields']} of {asked}" + (f", {row['unknown']} unknown" if row["unknown"] else "")
    numbers = ["" if value is None else f"{value:.0e}" for value in measured]
    network = f"`{row['network']}`" + (f", {row['depth']} blocks" if "depth" in row else "")
    return [row["family"], network, str(row.get("size", "")), result, *numbers, fields]
