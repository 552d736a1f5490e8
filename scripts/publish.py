"""Publish a trained network with the sources: weights in half precision, their checksum and provenance.

    python experiments/run.py experiment=train ...         # leaves a folder
    python scripts/publish.py FOLDER                       # writes published/<model>-<data>.safetensors, .json

Its errors and dead maps are measured again, with the weights as they are published, before any file is replaced.
"""

import argparse
import copy
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.output.results import read_result, to_json
from experiments.setup.commands import spelled
from experiments.setup.configuration import configured, key_of
from experiments.setup.objects import Objects, called, made
from experiments.setup.published import FOLDER
from experiments.train import dead_maps, size_of
from zfnet import InputError, weights
from zfnet.files import write_atomically
from zfnet.training import error_rates, in_memory

READ = ("model.architecture.image_size", "model.architecture.num_classes")  # by commands, from the weights
METADATA = ("architecture", "classes", "identity", "history")  # of the trained weights
PROVENANCE = ("command", "seed", "commit", "dirty", "versions", "device", "threads", "started", "seconds")


def publish(folder: Path) -> None:
    """Write the weights, their metadata, and the checksums of all published files."""
    trained = read_result(folder / "result.json")
    weights.read_metadata(folder / "model.safetensors")  # a committed result lacks them: said before data are read
    words = shlex.split(trained["provenance"]["command"])[1:]
    words = spelled([word for word in words if not word.startswith("out=")])
    refuse_other_networks(words)
    objects = Objects(configured(words), words, lambda *_: None)
    name = name_of(objects.config)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, f"{name}.safetensors")
        halve(folder / "model.safetensors", path, objects)
        refuse_other_classes(path)
        content, numbers = path.read_bytes(), measured(path, objects)
    record = {
        "file": path.name,
        "bytes": len(content),
        "sha256": sha256(content).hexdigest(),
        **numbers,
        "trained": {key: value for key, value in trained["ours"].items() if key != "history"},
        "training": {key: trained["provenance"].get(key) for key in PROVENANCE},
    }
    write_atomically(FOLDER / path.name, content)
    write_atomically(FOLDER / f"{name}.json", f"{to_json(record)}\n".encode())
    files = sorted(FOLDER.glob("*.safetensors"))
    sums = "".join(f"{sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    write_atomically(FOLDER / "SHA256SUMS", sums.encode())
    print(to_json(record))


def refuse_other_networks(words: Sequence[str]) -> None:
    """InputError for a network that the commands which look for one of its name would not make."""
    for key in map(key_of, words):
        if key.startswith("model.architecture.") and key not in READ:
            raise InputError(f"{key} makes another network than commands do by its name: train without it")


def name_of(config: DictConfig) -> str:
    """The name by which commands find the network of a model for its data."""
    data = config.data.get("published")
    if data is None:
        raise InputError("no command would look for a network of these data: `published` in their file of conf/data")
    return f"{called(config)}-{data}"


def refuse_other_classes(path: Path) -> None:
    """InputError if the network of this name that is published now knows other classes."""
    now = FOLDER / path.name
    if now.exists() and weights.read_metadata(now)["classes"] != weights.read_metadata(path)["classes"]:
        advice = "give these data another name, `published` in their file of conf/data"
        raise InputError(f"{now} was trained on other classes: {advice}")


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of experiment=train")
    try:
        publish(parser.parse_args().folder)
    except InputError as error:
        sys.exit(f"publish.py: {error}")
