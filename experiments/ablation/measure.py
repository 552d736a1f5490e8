"""Measure the trials of every task in every layer of one network; `report` summarises them."""

import importlib.util
import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm
from typing_extensions import Unpack

from experiments.ablation.intervention import Trials
from experiments.ablation.intervention import trials as intervened
from experiments.ablation.judge import DREAMSIM, DreamSim, Judge
from experiments.ablation.prediction import REFERENCES
from experiments.ablation.prediction import trials as predicted
from experiments.ablation.sanity import recovery
from experiments.ablation.sanity import trials as sanity
from experiments.ablation.sufficiency import trials as kept_and_lost
from experiments.ablation.units import Units
from experiments.output.feature_maps import dead_maps
from experiments.setup.efficientnet_lite import PACKAGE, EfficientNetLite0
from experiments.setup.models import build
from experiments.setup.options import Reading
from zfnet import Deconvnet, InputError, TopActivations, receptive_field, scan
from zfnet.checks import pair
from zfnet.data.images import as_images, image_size
from zfnet.data.preprocessing import Preprocessing
from zfnet.identity import Identity, digest, read_sealed, write_sealed
from zfnet.scan_files import kept_scan

FEWEST = 240  # images: the fewest that task B needs
MOST = 2000  # images that every map ranks; from more, so many are drawn
QUERIES = 11  # of each map: its images of ranks 10 to 20
PIXELS = 2**28  # of the pictures of a layer: in very deep networks fields are many times as large as the image
FEW = 2  # queries of each map in sufficiency, necessity
TASKS_VERSION = "3"  # changed with every change of a task, so that old measurements are not used
ANEW = "delete it, or start again with fresh=True"
STATES = ("scan.partial", "ablation.partial")  # of a run that was stopped


@dataclass(frozen=True)
class Protocol:
    """The settings that decide the numbers; `main` says what they mean."""

    layers: list[str]
    maps: int
    judge: str | None
    seed: int
    rules: str = "deconvnet"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in result.json; the second network is the name of its file."""
        known = {None: "EfficientNet-Lite0", DREAMSIM: "DreamSim"}
        name = known.get(self.judge) or f"SqueezeNet v1.0 ({Path(str(self.judge)).name})"
        return asdict(self) | {"judge": name, "references": REFERENCES, "queries": QUERIES}


@dataclass(frozen=True)
class Layer:
    """The inputs of every task of a layer."""

    deconvnet: Deconvnet
    data: Any
    name: str
    top: TopActivations  # of all images
    maps: list[int]
    judge: Judge | None
    seed: int

    @cached_property
    def references(self) -> Units:
        return self.units(0, REFERENCES)

    def units(self, first: int, last: int) -> Units:
        """The units of ranks first to last, exclusive, from 0, that are above 0."""
        ranked = TopActivations(*(column[:, first:last] for column in self.top))
        units = ranked.units(self.maps)[ranked.value[self.maps].flatten() > 0]
        return Units(self.deconvnet, self.data, self.name, units, self.seed)

    def check_size(self) -> None:
        """Raises InputError before anything is measured if the pictures of all queries do not fit in memory."""
        size = receptive_field(self.deconvnet.graph, self.name, pair(self.data[0][0].shape[-2:])).size
        most = PIXELS // (QUERIES * math.prod(size))
        if len(self.maps) > most:
            fewer = f"maps={most}, or " if most else ""
            raise InputError(
                f"{self.name}: {len(self.maps) * QUERIES} pictures of {size[0]} x {size[1]} pixels, which its units "
                f"see, do not fit in memory; give {fewer}other layers"
            )


class Study(NamedTuple):
    """A network and its images: the inputs of the tasks of all layers."""

    layers: dict[str, Layer]
    images: Any
    sample: list[int] | None  # of the images, if a sample was drawn: units number the images of the sample
    broken_images: list[str]


def study(
    model: nn.Module, data: Any, out: Path, protocol: Protocol, scans: Path | None = None, **reading: Unpack[Reading]
) -> Study:
    """Rank all images by every map of the layers; an interrupted run resumes.

    Args:
        scans: the folder of kept scans of this network and these images; scans of a sample are not kept.
    """
    images, sample = as_images(data), None
    too_few = "the data has {} images that can be read; the tasks need {} or more".format
    if len(images) < FEWEST:
        raise InputError(too_few(len(images), FEWEST))
    if len(images) > MOST:
        random = torch.Generator().manual_seed(protocol.seed)
        sample = torch.randperm(len(images), generator=random)[:MOST].sort().values.tolist()
        data = Subset(data, sample)
    deconvnet, judge = Deconvnet(model, rules=protocol.rules), judge_of(model, protocol.judge)
    deconvnet.check(protocol.layers, image_size(images))
    every, state = min(len(images), MOST), out / STATES[0]
    if scans is not None and sample is None:
        tops = kept_scan(deconvnet.graph, data, scans, protocol.layers, every, **reading)
    else:
        tops = scan(deconvnet.graph, data, protocol.layers, every, state=state, keep_state=True, **reading)
    layers = {
        name: Layer(deconvnet, data, name, top, drawn(top, protocol), judge, protocol.seed)
        for name, top in tops.items()
    }
    if tops.images < FEWEST:
        state.unlink(missing_ok=True)
        raise InputError(too_few(tops.images, FEWEST))
    if not any(layer.maps for layer in layers.values()):
        state.unlink(missing_ok=True)
        least = f"above 0 on {REFERENCES + QUERIES} images"
        raise InputError(f"no feature map of {', '.join(layers)} is {least}, which the tasks need")
    for layer in layers.values():
        layer.check_size()
    return Study(layers, images, sample, list(tops.broken))


def measure(
    of: Study, out: Path, protocol: Protocol, tasks: Collection[str], **reading: Unpack[Reading]
) -> dict[str, Any]:
    """The trials of all layers, and their network and images; an interrupted run resumes after its last task.

    Args:
        tasks: names of TASKS.
    """
    layers, images, sample, broken = of
    state, one = out / STATES[1], next(iter(layers.values()))
    judge = None if one.judge is None else one.judge.model
    identity = one.deconvnet.graph.identity() | {name: str(value) for name, value in protocol.settings.items()}
    identity |= {
        "tasks": TASKS_VERSION,
        "images": images.identity(),
        "judge": "none" if judge is None else digest(judge),
    }
    done = {} if reading.get("fresh") else read_trials(state, identity)
    measured = {}
    for name, layer in layers.items():
        trials = done.setdefault(name, {})
        left = [task for task in TASKS if task in tasks and task not in trials and layer.maps]
        for task in tqdm(left, desc=name, unit=" tasks", disable=not reading.get("progress", True)):
            trials[task] = {kind: rounded(columns) for kind, columns in TASKS[task](layer).items()}
            write_sealed(state, identity, json.dumps(done))
        found = {name: of_task for task in TASKS if task in tasks for name, of_task in trials.get(task, {}).items()}
        count = {"maps": len(layer.top.value), "dead": len(dead_maps(layer.top)), "drawn": layer.maps}
        measured[name] = count | {"trials": found}
    return {
        "network": type(one.deconvnet.model).__name__,
        "dataset": type(images).__name__,
        "images": len(sample or images) - len(broken),
        "sample": sample,
        "judge": None if judge is None else type(judge).__name__,
        "broken_images": broken,
        "layers": measured,
    }


def examples(layers: Iterable[Layer]) -> dict[str, tuple[Units, dict[str, Tensor]]]:
    """The strongest query of each map, and the pixels that every mask shows, by layer."""
    shown = {}
    for layer in layers:
        if layer.maps:
            units = layer.units(REFERENCES, REFERENCES + 1)
            shown[layer.name] = units, units.masks(layer.references)
    return shown


def rounded(trials: Trials) -> Trials:
    """Trials with numbers rounded to four digits, which is more than their precision; whole numbers stay whole."""

    def short(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        number = float(f"{value:.4g}")
        return int(number) if number.is_integer() else number

    return {name: [short(value) for value in column] for name, column in trials.items()}


def drawn(top: TopActivations, protocol: Protocol) -> list[int]:
    """The maps of a layer, by seed, of those that are above 0 on as many images as the tasks need."""
    live = ((top.value > 0).sum(1) >= REFERENCES + QUERIES).nonzero().flatten()
    random = torch.Generator().manual_seed(protocol.seed)
    return sorted(live[torch.randperm(len(live), generator=random)[: protocol.maps]].tolist())


def judge_of(model: nn.Module, file: str | None) -> Judge | None:
    """The second network: EfficientNet-Lite0, SqueezeNet with the weights of a file, or DreamSim.

    None if the package of EfficientNet-Lite0 is not installed. Raises InputError if the judge is the network itself.
    """
    device = next(model.parameters()).device
    if file == DREAMSIM:
        return DreamSim(Preprocessing.of(model), device)
    if file is None:
        if importlib.util.find_spec(PACKAGE) is None:
            return None
        judge = build(EfficientNetLite0, weights="PACKAGE")
    else:
        judge = build(torchvision.models.squeezenet1_0, weights=file, preprocessing=Preprocessing())
    if type(judge) is type(model):
        other = "weights of SqueezeNet v1.0, judge=FILE" if file is None else "none, for EfficientNet-Lite0"
        raise InputError(f"{type(model).__name__} would judge itself; give {other}")
    return Judge(judge.to(device), Preprocessing.of(model))


def read_trials(state: Path, identity: Identity) -> dict[str, dict[str, dict[str, Trials]]]:
    """The trials that an interrupted run has measured, by layer and task; empty if there is no state."""
    if not state.exists():
        return {}
    content = read_sealed(state, identity, ANEW)
    try:
        return {layer: dict(tasks) for layer, tasks in json.loads(content).items()}
    except (TypeError, ValueError, AttributeError, RecursionError):
        raise InputError(f"{state} is not a state of this experiment; {ANEW}") from None


# ---- tasks: from a layer to trials, by name --------------------------------------------------------------------------


def intervene(layer: Layer) -> dict[str, Trials]:
    return intervened(layer.units(REFERENCES, REFERENCES + QUERIES), layer.references, layer.judge)


def predict(layer: Layer) -> dict[str, Trials]:
    if layer.judge is None:
        return {}
    how = layer.deconvnet, layer.data, layer.name, layer.top, layer.maps, layer.judge, layer.references, layer.seed
    return {"B": predicted(*how)}


def check(layer: Layer) -> dict[str, Trials]:
    one = layer.units(REFERENCES, REFERENCES + 1)
    return {"sanity": sanity(one, layer.references), "recovery": recovery(one, layer.references)}


def keep(layer: Layer) -> dict[str, Trials]:
    kept, lost = kept_and_lost(layer.units(REFERENCES, REFERENCES + FEW), layer.references)
    return {"sufficiency": kept, "necessity": lost}


TASKS: dict[str, Callable[[Layer], dict[str, Trials]]] = {
    "intervention": intervene,
    "prediction": predict,
    "sanity": check,
    "sufficiency": keep,
}
