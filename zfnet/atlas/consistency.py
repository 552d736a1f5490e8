"""Check that the numbers of an atlas agree with each other, for every map, without the network."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from zfnet.atlas.layers import PER
from zfnet.atlas.writing import read_script, rounded
from zfnet.data.images import Images
from zfnet.gathering import EDGES

CLOSE = 2e-4  # of numbers that are rounded to five digits, relative


def disagreements(path: Path, index: Mapping[str, Any], images: Images) -> Iterator[str]:
    """Sentences that name contradictions within an atlas.

    Args:
        path: the folder.
        index: what its `data/index.js` holds.
        images: the dataset, whose labels and files are compared, where it knows them.

    Raises what Python raises where a file holds something else than an atlas.
    """
    won: dict[int, list[list[Any]]] = {}
    for number, layer in enumerate(index["layers"]):
        columns = _read(path, f"data/{number}/columns.js")
        entries = [e for n in range(-(-layer["rows"] // PER["maps"])) for e in _read(path, f"data/{number}/{n}.js")]
        if len(entries) != layer["rows"] or any(len(column) != layer["rows"] for column in columns.values()):
            yield f"{layer['name']} has {layer['rows']} maps in the index and {len(entries)} in its files."
            continue
        for row, entry in enumerate(entries):
            own = {name: column[row] for name, column in columns.items()}
            for what in _of_entry(entry, own, index):
                yield f"map {entry['map']} of {layer['name']} has {what}."
            names = ("image", "row", "column", "value", "box")
            for rank, (image, *place, box) in enumerate(zip(*(entry[name] for name in names), strict=True)):
                won.setdefault(image, []).append([number, entry["map"], rank, *place, *box])
        if layer["dead"] != sum(columns["dead"]):
            yield f"{layer['name']} has {layer['dead']} dead maps in the index and {sum(columns['dead'])} in its files."
    yield from _of_images(path, index, images, won)


def _of_entry(entry: Mapping[str, Any], own: Mapping[str, Any], index: Mapping[str, Any]) -> Iterator[str]:
    """The contradictions in a map's numbers; `own` is its row of the columns."""
    count, images = len(entry["value"]), index["images"]
    fires = round(entry["fires"] * images)
    above = sum(n for b, n in entry["bins"] if EDGES[b] > 0)
    zero = sum(n for b, n in entry["bins"] if EDGES[b] <= 0 < EDGES[b + 1])
    if sum(n for _, n in entry["bins"]) != images:
        yield "a histogram of another number of images"
    elif not above <= fires <= above + zero:
        yield "a histogram that does not tell how often it fires"
    if count != min(index["k"], fires):
        yield f"{count} winners and fires on {fires} images"
    strength = entry.get("unclipped", entry["value"])
    if any(later > earlier for earlier, later in pairwise(strength)):
        yield "winners out of order"
    first = entry["classes"][0] if entry["classes"] else None
    means = [mean for _, mean, _ in entry["classes"]]
    if any(later > earlier for earlier, later in pairwise(means)):
        yield "classes out of order"
    if any(abs(share - (entry["label"].count(c) / count if count else 0)) > 1e-4 for c, _, share in entry["classes"]):
        yield "another share of a class among its strongest"
    focus = entry["focus"]
    expected = {
        "map": entry["map"],
        "strength": strength[0] if count else 0,
        "fires": entry["fires"],
        "selectivity": entry["selectivity"],
        "class": first[0] if first else -1,
        "agree": first[2] if first and count else None,
        "focus": rounded(sum(focus) / count) if count else None,
        "dead": fires == 0,
    }
    for name, value in expected.items():
        if not _alike(own[name], value):
            yield f"another {name} on the page of its layer"


def _of_images(path: Path, index: Mapping[str, Any], images: Images, won: Mapping[int, list[Any]]) -> Iterator[str]:
    about = _read(path, "data/images.js")
    kept = {int(i): lines for n in range(index["winners"]) for i, lines in _read(path, f"data/winners/{n}.js").items()}
    for image, file, label in zip(about["id"], about["file"], about["label"], strict=True):
        if sorted(kept.get(image, [])) != sorted(won.get(image, [])):
            yield f"image {image} lists other maps than those that have it among their strongest."
        if not 0 <= image < len(images) or (images.labels is not None and images.labels[image] != label):
            yield f"image {image} has another label in the data."
        elif file != images.file(image):
            yield f"image {image} is another file in the data."
    if missing := sorted(won.keys() - {*about["id"]}):
        yield f"image {missing[0]} is among the strongest of a map and not in the list of images."
    named = [*map(str, images.classes)]
    if index["classes"] != named + [str(number) for number in range(len(named), len(index["classes"]))]:
        yield "the classes have other names in the data."


def _alike(stored: Any, expected: Any) -> bool:
    if isinstance(stored, bool) or isinstance(expected, bool) or stored is None or expected is None:
        return bool(stored == expected)
    return float(abs(stored - expected)) <= CLOSE * float(max(abs(stored), abs(expected)))


def _read(path: Path, name: str) -> Any:
    return read_script((path / name).read_bytes())[1]


def damaged(error: BaseException) -> str:
    """The sentence about a file that is not part of an atlas."""
    return f"it was not written by a build ({type(error).__name__}: {' '.join(str(error).split())[:120]})"


READING = (  # what Python raises where a file holds something else than it should
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,  # of torch; RecursionError, too
    ArithmeticError,
    OSError,
)
