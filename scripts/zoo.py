"""torchvision's ReLU classifiers at random weights, each checked against slow twins: one row of a table for each.

    python scripts/zoo.py [NAME ...] [--size 224]

project         largest deviation from autograd with a rectifying ReLU, in float64, relative to the largest pixel
project_units   the same from `project`, in float32, of units in the corners, at an edge and in the middle;
                in float64 too, where two values of a pooling window nearly tie and float32's rounding turns a switch
field           whether receptive fields are the pixels that a gradient reaches
occlusion       largest deviation of incremental from plain occlusion, relative, in float64
Of five layers spread over the depth.
"""

import argparse
import sys
import warnings
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torchvision import models

from experiments.models import architecture, spread
from tests.oracles import deconvnet_by_autograd, extent, measured_support
from zfnet import Deconvnet, InputError, occlusion_maps, receptive_field
from zfnet.rendering import on_image

FAMILIES = (
    "alexnet",
    "vgg",
    "squeezenet",
    "googlenet",
    "inception",
    "resnet",
    "resnext",
    "wide_resnet",
    "densenet",
    "mnasnet",
    "mobilenet_v2",
    "shufflenet",
    "regnet_x",
)
REFUSED = tuple(n for n in models.list_models(module=models) if not n.startswith(FAMILIES))
ZOO = tuple(n for n in models.list_models(module=models) if n.startswith(FAMILIES))
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Row(NamedTuple):
    """Deviations are relative; `turned` counts the units of which a switch is another in float32."""

    project: float
    project_units: float
    in_float64: float
    turned: int
    units: int
    fields: int
    measured: int
    occlusion: float
    seconds: float


def drawn(name: str, seed: int = 0, **settings: object) -> nn.Module:
    """A network in float64 with random weights, batch normalisation's statistics and parameters included."""
    torch.manual_seed(seed)
    model = architecture(name, **settings)()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # some draw so small ones that all places of a map nearly tie
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, NORMALISATIONS):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.double().eval()


def worst(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-300))


def chosen(activation: Tensor) -> Tensor:
    """Units (m, 4) in two corners, at an edge and in the middle, each of the map that is strongest there."""
    rows, columns = activation.shape[-2:]
    places = dict.fromkeys([(0, 0), (rows // 2, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)])
    return torch.tensor([(0, int(activation[0, :, r, c].argmax()), r, c) for r, c in places])


def from_the_image(deconvnet: Deconvnet, images: Tensor, layer: str, units: Tensor) -> Tensor:
    """Projections (M, 3, H, W) of units of one image, from the whole of it."""
    recording = deconvnet.record(images, [layer])
    activation, pixels = recording.activations[layer], []
    for _, *where in units.tolist():
        signal = torch.zeros_like(activation)
        signal[(0, *where)] = activation[(0, *where)]
        pixels.append(deconvnet.project(recording, layer, signal)[0])
    return torch.stack(pixels)


def deviations(deconvnet: Deconvnet, images: Tensor, layer: str, units: Tensor) -> list[float]:
    """Of `project_units` from `project`, unit by unit."""
    patches = deconvnet.project_units(images, layer, units)
    found = on_image(patches.projections, patches.boxes, (images.shape[2], images.shape[3]))
    return [worst(*pair) for pair in zip(found, from_the_image(deconvnet, images, layer, units), strict=True)]


def check(model: nn.Module, size: int, supports: int = 2) -> Row:
    """The row of one network in float64, which is left in float32; so many units a layer have their field measured."""
    start = perf_counter()
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    deconvnet = Deconvnet(model)
    layers, _ = spread(deconvnet.graph, size)
    projected, exact, single, fields, supported, turned, count = 0.0, 0.0, 0.0, 0, 0, 0, 0
    units = {}
    for layer in layers:
        recording = deconvnet.record(images, [layer])
        activation = recording.activations[layer]
        signal = activation * (torch.rand_like(activation) < 0.1)
        wanted = deconvnet_by_autograd(model, images, layer, signal)
        projected = max(projected, worst(deconvnet.project(recording, layer, signal), wanted))
        units[layer] = chosen(activation)
        exact = max(exact, *deviations(deconvnet, images, layer, units[layer]))
        field = receptive_field(deconvnet.graph, layer, size)
        for _, _, row, column in units[layer][-supports:].tolist():
            measured = extent(measured_support(model, layer, (size, size), row, column))
            fields, supported = fields + (measured == field.seen(row, column)), supported + 1
    maps = occlusion_maps(deconvnet.graph, images, size=size // 4, step=size // 5, layer=layers[2])
    plain = occlusion_maps(deconvnet.graph, images, size=size // 4, step=size // 5, layer=layers[2], incremental=False)
    occluded = max(worst(getattr(maps, of), getattr(plain, of)) for of in ("activity", "score"))
    deconvnet = Deconvnet(model.float())
    for layer in layers:
        found = deviations(deconvnet, images.float(), layer, units[layer])
        count, turned = count + len(found), turned + sum(d > 1e-5 for d in found)
        single = max(single, *(d for d in found if d <= 1e-5), 0.0)
    return Row(projected, single, exact, turned, count, fields, supported, occluded, perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of these families if none is named")
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    warnings.simplefilter("error")
    print("| network | `project` | `project_units` | the same in float64 | turned | fields | occlusion | s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in given.names or ZOO:
        row = check(drawn(name), given.size)
        print(
            f"| {name} | {row.project:.0e} | {row.project_units:.0e} | {row.in_float64:.0e} "
            f"| {row.turned} of {row.units} | {row.fields} of {row.measured} | {row.occlusion:.0e} "
            f"| {row.seconds:.0f} |",
            flush=True,
        )
    for name in () if given.names else REFUSED:
        try:
            deconvnet = Deconvnet(architecture(name)())
            layer = deconvnet.graph.layers[-1]
            recording = deconvnet.record(torch.zeros(1, 3, 224, 224), [layer])
            deconvnet.project(recording, layer, torch.ones_like(recording.activations[layer]))
            print(f"{name}: goes through", flush=True)
        except InputError as error:
            print(f"{name}: {error}", flush=True)


if __name__ == "__main__":
    main()
