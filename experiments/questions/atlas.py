"""The atlas: every feature map of every layer, in a folder that opens in a browser.

What to look for: the overview counts what each layer has; a map's page shows its nine as crops, projections, and crops
that the projection masks, the maps below that feed it, and photographs on which it is weak.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from typing_extensions import Unpack

from experiments.output.results import COMMAND, Result, commit
from experiments.setup.hints import Count, Names, Natural, Seed
from experiments.setup.options import Reading
from zfnet import InputError, atlas
from zfnet.atlas.writing import read_script

Maps = Count | Sequence[Natural] | Mapping[str, Sequence[Natural]] | None


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    scans: Path,
    layers: Names | Literal["auto", "all"] = "auto",
    maps: Maps = None,
    images: Literal["full", "thumbs", "none"] = "full",
    format: Literal["webp", "avif"] = "webp",
    rules: Literal["deconvnet", "extended", "gradient", "guided"] = "deconvnet",
    k: Count = 9,
    title: str | None = None,
    licence: str | None = None,
    weights: str | None = None,
    check: str | None = None,
    samples: Count = 50,
    seed: Seed = 0,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Build an atlas of the network's feature maps, or check one.

    Args:
        model: the network.
        data: the images.
        out: the folder of the atlas; index.html in it opens by double click. An interrupted build resumes.
        scans: the folder of kept scans of this network and these images.
        layers: by name; "auto": five, spread over the depth; "all": every layer whose units can be projected.
        maps: number of maps of each layer, or their indices, for all layers or by layer; null: all.
        images: "full"; "thumbs": whole images are small; "none": projections and numbers, no pixel of an image.
        format: of the pictures: "webp", or "avif", which is smaller and takes ten times as long.
        rules: the rule set.
        k: strongest activations of each map.
        title: of the first page.
        licence: a sentence that says which of the images may be published.
        weights: the source of the network's weights; null: they are random.
        check: the folder of an atlas: compute some of its numbers and pictures again, and print what differs.
        samples: number of maps and of pictures to check.
        seed: of the sample.
    """
    result = Result("atlas", out, locals())
    settings: Any = {"batch_size": 64, "workers": None, "progress": True, "fresh": False, **reading}
    if check is not None:
        differences = atlas.check(model, data, check, samples=samples, seed=seed, progress=settings["progress"])
        return _checked(result, differences, check)
    spent: dict[str, float] = {}
    provenance = {
        "command": shlex.join(["python", "experiments/run.py", *shlex.split(COMMAND)[1:]]),
        **commit(),
        "weights_from": None if weights is None else str(weights),
    }
    shown: Any = {"layers": layers, "maps": maps, "images": images, "format": format, "rules": rules, "k": k}
    texts: Any = {"title": title, "licence": licence, "provenance": provenance, "random": weights is None}
    atlas.build(model, data, out, scans=scans, **shown, **texts, **settings, seed=seed, spent=spent)
    return _finished(result, Path(out), spent)


def _finished(result: Result, out: Path, spent: Mapping[str, float]) -> dict[str, Any]:
    """Print the time of each part, and the size."""
    files = [file for file in out.rglob("*") if file.is_file()]
    size, total = sum(file.stat().st_size for file in files), sum(spent.values())
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in sorted(spent.items(), key=lambda part: -part[1]))
    print(f"{len(files)} files, {size / 1e6:.1f} MB; {total:.0f} seconds: {parts}")
    _, index = read_script((out / "data" / "index.js").read_bytes())
    maps = {layer["name"]: layer["rows"] for layer in index["layers"]}
    seconds = {name: round(value, 2) for name, value in spent.items()}
    ours = {"images": index["images"], "maps": maps, "files": len(files), "bytes": size, "seconds": seconds}
    return result.finish(ours | {"peak_memory": peak_memory()})


def peak_memory() -> int | None:
    """The peak memory of this process in bytes; None if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _checked(result: Result, found: atlas.Differences, folder: str) -> dict[str, Any]:
    for line in found:
        print(line)
    if found:
        raise InputError(f"{folder}: {len(found)} differences from what this network computes, as printed above")
    print(f"{found.values} values, {found.tiles} tiles checked: all are what this network computes")
    return result.finish({"differences": 0, "values": found.values, "tiles": found.tiles})
