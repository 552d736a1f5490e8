"""How many of the strongest images of a feature map change with the filter that resizes photographs.

    python scripts/resizing.py WEIGHTS PHOTOGRAPHS [--json FILE]

WEIGHTS is a file of SqueezeNet v1.0, PHOTOGRAPHS a folder. Its photographs are scanned twice, with bilinear and with
bicubic resizing. A rank of a map has changed if another image holds it. Only maps that are above 0 on nine images in
both scans count. docs/claims.md prints the numbers of results/bench/resizing.json.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torchvision

from zfnet import TopActivations, scan
from zfnet.data import Photos
from zfnet.files import write_atomically
from zfnet.weights import load

LAYERS = ["features.1", "features.4.cat", "features.8.cat", "features.10.cat", "features.12.cat"]
FILTERS = ("bilinear", "bicubic")
K = 9  # images of each map
ROOT = Path(__file__).resolve().parents[1]


def compared(one: TopActivations, other: TopActivations) -> dict[str, Any]:
    """Two scans of one layer: the maps that count, the share of ranks that changed, and the images that both have."""
    live = ((one.value > 0) & (other.value > 0)).all(1)
    first, second = one.image[live], other.image[live]
    shared = (first[:, :, None] == second[:, None]).any(2).sum(1).double()
    return {
        "maps": len(first),
        "ranks_changed": float((first != second).double().mean()),
        "images_shared": float(shared.mean()),
    }


def measure(weights: str, folder: str) -> dict[str, Any]:
    """Scan the photographs with both filters; the numbers of each layer, and over all maps."""
    model = load(torchvision.models.squeezenet1_0(num_classes=1000), weights).eval()
    scans = []
    for name in FILTERS:
        transform = replace(model.preprocessing, interpolation=name)
        scans.append(scan(model, Photos(folder, transform=transform), LAYERS, k=K))
    rows = [{"layer": layer, **compared(scans[0][layer], scans[1][layer])} for layer in LAYERS]
    total = sum(row["maps"] for row in rows)
    over = {key: sum(row["maps"] * row[key] for row in rows) / total for key in ("ranks_changed", "images_shared")}
    return {
        "network": "SqueezeNet",
        "images": scans[0].images,
        "filters": FILTERS,
        "k": K,
        "maps": total,
        **over,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("photographs")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    began = time.perf_counter()
    result = measure(arguments.weights, arguments.photographs)
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    result |= {
        "command": shlex.join(["python", "scripts/resizing.py", arguments.weights, arguments.photographs]),
        "commit": commit,
        "changed": bool(changed),
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision", "pillow")},
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    for row in [*result["rows"], {"layer": "all", **result}]:
        print(
            f"{row['layer']}: {row['ranks_changed']:.1%} of the ranks changed, {row['images_shared']:.1f} of {K} "
            "images shared"
        )
    if arguments.json:
        write_atomically(arguments.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
