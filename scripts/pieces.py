"""The committed results as pieces that can be made again: the command and the expected time of each.

    python scripts/pieces.py                    # lists them: the name, seconds, and the folders of data that are needed
    python scripts/pieces.py NAME DATA OUT      # the words of one command, each ended by a zero byte

scripts/reproduce.sh runs them in this order. A command is that of the result's provenance, with its files in OUT and
its data in DATA.
"""

import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.output.results import ROOT, read_result
from zfnet.errors import InputError, unknown_name
from zfnet.weights import read_metadata

# what reads the files of another comes after it: ablation the networks of train and fig6, table3 the results of variant
ORDER = [
    "fig3",
    "fig2",
    "fig5",
    "fig7",
    "table1",
    "atlas",
    "published",
    "train",
    "fig4",
    "fig6",
    "seeds",
    "ablation",
    "table4",
    "table5",
    "fig9",
    "table6",
    "table7",
    "table2",
    "variant",
    "table3",
]


def pieces() -> dict[str, dict[str, Any]]:
    """The provenance of each committed result and network, by name, in the order in which to make them.

    A training has its `history` beside its provenance: the seconds of a resumed run are those of its last start.
    """
    known: dict[str, dict[str, Any]] = {}
    for file in sorted((ROOT / "results").glob("*/*/result.json")):
        result = read_result(file)
        known[f"{file.parent.parent.name}/{file.parent.name}"] = {
            **result["provenance"],
            "history": result["ours"].get("history"),
        }
    for file in sorted((ROOT / "published").glob("*.json")):
        known[f"published/{file.stem}"] = {
            **json.loads(file.read_text(encoding="utf-8"))["training"],
            "history": read_metadata(file.with_suffix(".safetensors"))["history"],
        }
    for name in known:
        if (experiment := name.partition("/")[0]) not in ORDER:
            raise InputError(f"results/{name} is not in the order of scripts/pieces.py: add {experiment}")
    return dict(sorted(known.items(), key=lambda item: ORDER.index(item[0].partition("/")[0])))


def expected(piece: Mapping[str, Any]) -> float:
    """Seconds that a piece is expected to take, on the processor of its result."""
    seconds: float = piece["seconds"]
    if history := piece.get("history"):
        seconds = max(seconds, len(history) * median(epoch["seconds"] for epoch in history))
    return seconds


def needs(piece: Mapping[str, Any]) -> list[str]:
    """The folders and files in DATA that a command reads, such as `tiny_imagenet`."""
    words = shlex.split(piece["command"])
    return sorted({word.partition("=data/")[2] for word in words if "=data/" in word})


def command(name: str, piece: Mapping[str, Any], data: str, out: str) -> list[str]:
    """The words of a piece's command after `python`: as they were typed, but with the files in OUT, the data in DATA.

    Args:
        name: of the piece.
        piece: its provenance.
        data: the folder that has the data sets.
        out: the folder of all the pieces' results; the networks that are trained for them are in its `networks`.
    """
    words = [word for word in shlex.split(piece["command"]) if not word.startswith(("out=", "networks="))]
    made = []
    for word in words:
        key, equals, value = word.partition("=")
        if value.startswith("data/"):
            value = quoted(f"{data}/{value.removeprefix('data/')}")
        elif value == "results/variant":
            value = quoted(f"{out}/variant")
        elif match := re.fullmatch(r"outputs/train/tiny_imagenet-seed(\d)/(model\.safetensors)", value):
            value = quoted(f"{out}/train/zfnet_small-tiny_imagenet, seed {match[1]}/{match[2]}")
        elif match := re.fullmatch(r'"outputs/train/(.+)/(model\.safetensors)"', value):
            value = quoted(f"{out}/train/{match[1]}/{match[2]}")
        elif match := re.fullmatch(r'"outputs/networks/(.+), \w{8}/(model\.safetensors)"', value):
            value = quoted(str(only(Path(out) / "networks" / Path(match[1]).parent, Path(match[1]).name, match[2])))
        made.append(key + equals + value)
    return [*made, f"networks={quoted(f'{out}/networks')}", f"out={quoted(f'{out}/{name}')}"]


def quoted(value: str) -> str:
    """A value for Hydra, in which commas, spaces and the like are those of a path."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def only(folder: Path, name: str, file: str) -> Path:
    """The file of the one network of that name, whatever digest its folder has."""
    files = sorted(folder.glob(f"{name}, */{file}"))
    if len(files) != 1:
        raise InputError(f"{folder} has {len(files)} networks {name!r}, not one: run the pieces of fig6 before")
    return files[0]


def main() -> None:
    known = pieces()
    if len(sys.argv) == 1:
        for name, piece in known.items():
            print(name, round(expected(piece)), " ".join(needs(piece)), sep="\t")
        return
    if len(sys.argv) != 4:
        raise InputError("give NAME DATA OUT, or nothing for the list")
    name, data, out = sys.argv[1:]
    if name not in known:
        raise unknown_name("piece", name, known)
    sys.stdout.write("".join(f"{word}\0" for word in command(name, known[name], data, out)))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"pieces.py: {error}")
