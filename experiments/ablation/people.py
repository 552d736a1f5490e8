"""Tasks A2 and B for people: a page with a sample of trials, and the score of their answers."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from experiments.ablation.analysis import CHANCE, against
from experiments.ablation.intervention import FILLS, covered, left, pairs
from experiments.ablation.judge import cut
from experiments.ablation.measure import STATES, Layer, Protocol, study
from experiments.ablation.prediction import CROP, EXTREME, MASKED, PERCENTILE, REFERENCES, asked, places, ranking
from experiments.ablation.report import cell
from experiments.ablation.trials import Trial, score, write
from experiments.ablation.units import Units
from experiments.output.results import Result
from experiments.output.tables import table
from experiments.setup.options import Reading
from zfnet.analysis.choices import squares, under
from zfnet.analysis.faithfulness import SHARE
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError

PAGE = "trials"  # the page's default name
EACH = 10  # trials of each task and layer
EASY = 4  # catch trials of a page, at least: of these one may be missed
ASKED = 3  # layers at most, spread over those that are named
TILE = (160, 160)  # pixels of every image on the page
NONE = "none"
SHOWN = {"A2": (NONE, CROP, MASKED), "B": (CROP, MASKED)}  # how a trial's references are shown, in turn
TITLE = "What does this unit look for?"


def export_trials(
    result: Result,
    model: nn.Module,
    data: Any,
    protocol: Protocol,
    name: str,
    scans: Path | None = None,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Write the page with a sample of trials of some layers, and its key, into a folder of the page's name."""
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"export is {name!r}; give the page a name of letters, digits, - and _, such as {PAGE}")
    state = result.out / name / STATES[0]  # beside the page: an ablation in the same folder keeps its own
    known = study(model, data, state.parent, protocol, scans, **reading)
    layers = [layer for layer in known.layers.values() if layer.maps]
    count = min(ASKED, len(layers))
    spread = [layers[round(n * (len(layers) - 1) / max(1, count - 1))] for n in range(count)]
    chosen = [trial for layer in spread for trial in trials_of(layer, -(-EASY // count))]
    result.out = state.parent

    def written(folder: Path) -> None:
        write(chosen, folder / f"{name}.html", title=TITLE, seed=protocol.seed)

    result.file(written)
    found = result.finish({"trials": len(chosen), "layers": [layer.name for layer in spread]})
    state.unlink(missing_ok=True)
    print(f"{len(chosen)} trials: give people {name}.html of {result.out}; do not give them {name}-KEY.json")
    return found


def score_answers(result: Result, answers: Sequence[str], name: str) -> dict[str, Any]:
    """Score the files that people saved, by the key beside the page, and print how often each person was right."""
    scored = score(answers, result.out / name / f"{name}-KEY.json")
    result.out = result.out / name / "answers"
    columns = scored.columns
    kinds = list(zip(columns["task"], columns["pair"], columns["picture"], strict=True))
    rows: list[list[Any]] = []
    for kind in sorted({*kinds}, key=str):
        chosen = {
            name: [x for x, k in zip(column, kinds, strict=True) if k == kind] for name, column in columns.items()
        }
        units = list(zip(chosen["layer"], chosen["map"], strict=True))
        right = torch.tensor(chosen["right"], dtype=torch.float64)
        found = against(right, numbered(units), numbered(chosen["person"]), CHANCE)
        rows.append([kind[0], kind[1] or "", kind[2], cell(found), len(right), len({*chosen["person"]})])
    failed = {person: failure._asdict() for person, failure in scored.failed.items()}
    words = f"Scored: {len(scored.people)}; left out, because they missed easy questions: {len(failed)}."
    head = ["task", "queries", "references", "share right", "answers", "people"]
    note = "Chance is 0.50. Means over units; intervals allow for other units and people, and need eight of both."
    result.text(f"{table(head, rows)}\n\n{words} {note}" if rows else f"No answer is left. {words}")
    return result.finish({"columns": columns, "people": len(scored.people), "failed": failed})


def numbered(names: Sequence[Any]) -> Tensor:
    """Names as numbers (M,)."""
    known = {name: n for n, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([known[name] for name in names])


def trials_of(layer: Layer, easy: int) -> Iterator[Trial]:
    """Trials of some maps of a layer, A2 and B, and easy ones."""
    random = torch.Generator().manual_seed(layer.seed)
    some = torch.tensor(layer.maps)[torch.randperm(len(layer.maps), generator=random)[:EACH]].sort().values
    layer = replace(layer, maps=some.tolist())
    yield from squares_of(layer)
    yield from queries_of(layer, easy)


def squares_of(layer: Layer) -> Iterator[Trial]:
    """A2: two squares over an image of each map, beside its nine strongest images, or nothing."""
    references, queries = layer.references, layer.units(REFERENCES, REFERENCES + 1)
    boxes = squares(queries.inside)
    remaining = left(queries, boxes, FILLS[0])
    kept, both, _ = pairs(queries, boxes, remaining, under(queries.field(references), boxes))
    shown, options = tiles(references), []
    for box in both.unbind(1):
        hidden = torch.where(covered(box, queries.inside)[:, None], 0.0, queries.crops)
        options.append(images_of(queries, hidden))
    for number, n in enumerate(kept.tolist()):
        picture, m = SHOWN["A2"][number % len(SHOWN["A2"])], int(queries.maps[n])
        own = (references.maps == m).nonzero().flatten().tolist()
        yield Trial(
            id=f"A2 {layer.name} {m}",
            task="A2",
            picture=picture,
            layer=layer.name,
            map=m,
            options=[of[n] for of in options],
            right=0,
            strongest=[] if picture == NONE else [shown[picture][i] for i in own],
            image=int(queries.items[n]),
        )


def queries_of(layer: Layer, easy: int) -> Iterator[Trial]:
    """B: two images, beside the nine that activate the map most and the nine that do least.

    As many trials more are easy: their images are among the references.
    """
    random = torch.Generator().manual_seed(layer.seed)
    extents = places(layer.deconvnet, layer.name, layer.references.image_size)
    values, units = ranking(layer.top, layer.maps, extents, random)
    ranks = asked(values.shape[1], len(layer.maps), {EXTREME: 1, PERCENTILE: 1}, random)
    for n, m in enumerate(layer.maps):
        pair = (EXTREME, PERCENTILE)[n // len(SHOWN["B"]) % 2]
        first = 2 * REFERENCES + (pair == PERCENTILE)
        if values[n, ranks[n, first]] <= values[n, ranks[n, first + 2]]:
            continue  # both activate the map by the same amount
        chosen, picture = units[n, ranks[n]], SHOWN["B"][n % len(SHOWN["B"])]
        shown = tiles(Units(layer.deconvnet, layer.data, layer.name, chosen, layer.seed), layer.references)[picture]
        trial = Trial(
            id=f"B {layer.name} {m}",
            task="B",
            picture=picture,
            pair=pair,
            layer=layer.name,
            map=m,
            options=[shown[first], shown[first + 2]],
            right=0,
            strongest=shown[:REFERENCES],
            weakest=shown[REFERENCES : 2 * REFERENCES],
            image=int(chosen[first, 0]),
        )
        yield trial
        if (easy := easy - 1) >= 0:
            options = [trial.strongest[0], trial.weakest[0]]
            yield replace(trial, id=f"easy {layer.name} {m}", options=options, image=int(chosen[0, 0]), catch=True)


def tiles(units: Units, others: Units | None = None) -> dict[str, list[Tensor]]:
    """The crops of units, whole and masked by projection x field, as images of the page, by picture."""
    mask = units.strongest(units.projection * units.field(others or units), SHARE)
    masked = torch.where(mask[:, None], units.crops, 0.0)
    return {CROP: images_of(units, units.crops), MASKED: images_of(units, masked)}


def images_of(units: Units, crops: Tensor) -> list[Tensor]:
    """Crops (M, C, S, S) of units as images (3, *TILE), uint8."""
    pixels = Preprocessing.of(units.deconvnet.model).pixels(cut(crops, units.extents(), TILE)).clamp(0, 1)
    return list((255 * pixels).round().to(torch.uint8).expand(-1, 3, -1, -1).cpu())
