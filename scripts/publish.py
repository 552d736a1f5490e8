"""Make a trained network one that comes with the sources: weights in half precision, their checksum and provenance.

    python experiments/run.py experiment=train ...         # leaves a folder
    python scripts/publish.py FOLDER zfnet_small-scenes    # writes published/zfnet_small-scenes.safetensors, .json

Its errors and dead maps are measured again, with the weights as they are published.
"""

import argparse
import copy
import shlex
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.output.results import read_result, to_json
from experiments.setup.commands import spelled
from experiments.setup.configuration import configured
from experiments.setup.objects import Objects, made
from experiments.setup.published import FOLDER
from experiments.train import dead_maps, size_of
from zfnet import InputError, weights
from zfnet.files import write_atomically
from zfnet.training import error_rates, in_memory

METADATA = ("architecture", "classes", "identity", "history")  # of the trained weights
PROVENANCE = ("command", "seed", "commit", "dirty", "versions", "device", "threads", "started", "seconds")


def publish(folder: Path, name: str) -> None:
    """Write the weights, what is known of them, and the checksums of all published files."""
    trained = read_result(folder / "result.json")
    words = shlex.split(trained["provenance"]["command"])[1:]
    words = spelled([word for word in words if not word.startswith("out=")])
    objects = Objects(configured(words), words, lambda *_: None)
    path = FOLDER / f"{name}.safetensors"
    halve(folder / "model.safetensors", path, objects)
    record = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": checksum(path),
        **measured(path, objects),
        "trained": {key: value for key, value in trained["ours"].items() if key != "history"},
        "training": {key: trained["provenance"].get(key) for key in PROVENANCE},
    }
    write_atomically(FOLDER / f"{name}.json", f"{to_json(record)}\n".encode())
    sums = "".join(f"{checksum(file)}  {file.name}\n" for file in sorted(FOLDER.glob("*.safetensors")))
    write_atomically(FOLDER / "SHA256SUMS", sums.encode())
    print(to_json(record))


def halve(file: Path, path: Path, objects: Objects) -> None:
    """Write trained weights, and their mean image, in half precision."""
    network, known = weights.load(copy.deepcopy(objects.model), file).half(), weights.read_metadata(file)
    how: Any = network.preprocessing
    half = None if how.mean_image is None else how.mean_image.half()
    preprocessing = replace(how, mean_image=half)
    weights.save(network, path, preprocessing=preprocessing, **{key: known[key] for key in METADATA})


def measured(path: Path, objects: Objects) -> dict[str, Any]:
    """Errors and dead maps of the published weights, on the validation images."""
    network: Any = weights.load(objects.model, path).eval()
    checks, recipe = in_memory(objects.validation), made(objects.config.train)
    pad = recipe.pad(network.preprocessing.image_size)
    errors = {crops: error_rates(network, checks, crops=crops, pad=pad) for crops in (1, 10)}
    return {
        "parameters": size_of(network),
        "validation_images": len(checks),
        "validation_error": {f"{n} crops": dict(zip(("top1", "top5"), errors[n], strict=True)) for n in errors},
        "dead_maps": dead_maps(network, checks, list(objects.config.model.layers), {}),
    }


def checksum(file: Path) -> str:
    """The SHA-256 of a file."""
    return sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of experiment=train")
    parser.add_argument("name", help="<model>-<data>")
    arguments = parser.parse_args()
    try:
        publish(arguments.folder, arguments.name)
    except InputError as error:
        sys.exit(f"publish.py: {error}")
