"""torchvision's ReLU classifiers at random weights, each checked against slow twins: one row of a table for each.

    python scripts/zoo.py [NAME ...] [--size 224]
    python scripts/zoo.py --timm [FAMILY ...] [--again]

With --timm, the smallest network of every family of timm's instead: see `families.py`.

project         largest deviation from autograd with a rectifying ReLU, in float64, relative to the largest pixel
project_units   the same from `project`, in float32, of units in the corners, at an edge and in the middle;
                in float64 too, where two values of a pooling window nearly tie and float32's rounding turns a switch
field           whether the receptive fields of units of single maps are the pixels that a gradient reaches
occlusion       largest deviation of incremental from plain occlusion, relative, in float64
Of five layers spread over the depth.
"""

import argparse
import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torchvision import models

from experiments.setup.models import architecture
from tests.oracles import deconvnet_by_autograd, extent, measured_support, on_the_image
from zfnet import Deconvnet, InputError, occlusion_maps, receptive_field
from zfnet.layers import spread

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
TIMM = (
    *("test_resnet", "resnet10t", "resnet18", "resnet18d", "resnet26", "resnet34d", "resnet50c", "resnet50s"),
    *("resnet50t", "resnet50_gn", "resnet50_clip", "resnetblur18", "resnetaa34d", "resnetv2_18", "resnetv2_18d"),
    *("resnetv2_50x1_bit", "nf_resnet26", "resnext50_32x4d", "resnext50d_32x4d", "wide_resnet50_2", "regnetx_002"),
    *("regnetx_004", "regnetx_008", "densenet121", "densenetblur121d", "vgg11_bn", "hrnet_w18_small", "dla34"),
    *("dla46x_c", "dla60_res2net", "res2net50_14w_8s", "res2net50d", "res2next50", "selecsls42", "selecsls42b"),
    *("vovnet39a", "dpn68", "dpn68b", "xception41", "xception41p", "legacy_xception", "inception_v3", "inception_v4"),
    *("inception_resnet_v2", "repvgg_a0", "mobileone_s0", "mobilenetv2_035", "mobilenetv2_100", "mnasnet_050"),
    *("spnasnet_100", "fbnetc_100"),
)
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
ENDS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.LayerNorm)


class Row(NamedTuple):
    """Deviations are relative; `flips` counts the units of which a switch is another in float32."""

    project: float
    project_units: float
    in_float64: float
    flips: int
    units: int
    fields: int
    measurements: int
    occlusion: float
    seconds: float


def randomised(model: nn.Module) -> nn.Module:
    """The network in float64 with random weights, batch normalisation's statistics and parameters included."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # some draw so small ones that all units of a map nearly tie
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.Linear):  # torchvision's heads may be zero
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if isinstance(module, NORMALISATIONS) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.2)
    return model.double().eval()


def drawn(name: str, seed: int = 0, **settings: object) -> nn.Module:
    """A network of torchvision's, with random weights, in float64."""
    torch.manual_seed(seed)
    return randomised(architecture(name, **settings)())


def drawn_timm(name: str, seed: int = 0, **settings: object) -> nn.Module:
    """A network of timm's for five classes, with random weights, in float64."""
    import timm

    torch.manual_seed(seed)
    model = randomised(timm.create_model(name, pretrained=False, num_classes=5, **settings))
    for parameter in model.parameters():  # the scale of a branch may be next to nothing, and a position zero
        low, high = parameter.aminmax()
        if low == high and parameter.ndim < 2:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif low == high:
            nn.init.normal_(parameter, std=0.2)
    return model


def worst(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-300))


def strongest(activation: Tensor) -> Tensor:
    """Units (m, 4) in two corners, at an edge and in the middle, each of the map that is strongest there."""
    rows, columns = activation.shape[-2:]
    corners = [(0, 0), (rows // 2, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)]
    return torch.tensor([(0, int(activation[0, :, r, c].argmax()), r, c) for r, c in dict.fromkeys(corners)])


def from_the_image(deconvnet: Deconvnet, images: Tensor, layer: str, units: Tensor) -> Tensor:
    """Projections (M, 3, H, W) of units of one image, from the whole of it."""
    recording = deconvnet.record(images, [layer])
    activation, pixels = recording.activations[layer], []
    for _, *position in units.tolist():
        signal = torch.zeros_like(activation)
        signal[(0, *position)] = activation[(0, *position)]
        pixels.append(deconvnet.project(recording, layer, signal)[0])
    return torch.stack(pixels)


def deviations(deconvnet: Deconvnet, images: Tensor, layer: str, units: Tensor) -> list[float]:
    """Of `project_units` from `project`, unit by unit."""
    patches, size = deconvnet.project_units(images, layer, units), tuple(images.shape[2:])
    ours = [on_the_image(canvas, box, size) for canvas, box in zip(patches.projections, patches.boxes, strict=True)]
    return [worst(*pair) for pair in zip(ours, from_the_image(deconvnet, images, layer, units), strict=True)]


def check(model: nn.Module, size: int, supports: int = 2) -> Row:
    """The row of one network in float64, which is left in float32; so many units a layer have their field measured."""
    start = perf_counter()
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    deconvnet = Deconvnet(model)
    layers = spread(deconvnet.graph, size)
    project, exact, fields, measurements = 0.0, 0.0, 0, 0
    units = {}
    for layer in layers:
        recording = deconvnet.record(images, [layer])
        activation = recording.activations[layer]
        signal = activation * (torch.rand_like(activation) < 0.1)
        theirs = deconvnet_by_autograd(model, images, layer, signal)
        project = max(project, worst(deconvnet.project(recording, layer, signal), theirs))
        units[layer] = strongest(activation)
        exact = max(exact, *deviations(deconvnet, images, layer, units[layer]))
        for _, index, row, column in units[layer][-supports:].tolist():
            support = measured_support(model, layer, (size, size), row, column, index)
            seen = receptive_field(deconvnet.graph, layer, size, index).seen(row, column)
            fields, measurements = fields + (extent(support) == seen), measurements + 1
    maps = occlusion_maps(deconvnet.graph, images, size=size // 4, step=size // 5, layer=layers[2])
    plain = occlusion_maps(deconvnet.graph, images, size=size // 4, step=size // 5, layer=layers[2], incremental=False)
    occlusion = max(worst(getattr(maps, name), getattr(plain, name)) for name in ("activity", "probability"))
    deconvnet = Deconvnet(model.float())
    all_units = [d for layer in layers for d in deviations(deconvnet, images.float(), layer, units[layer])]
    flips = sum(deviation > 1e-5 for deviation in all_units)
    single = max((deviation for deviation in all_units if deviation <= 1e-5), default=0.0)
    seconds = perf_counter() - start
    return Row(project, single, exact, flips, len(all_units), fields, measurements, occlusion, seconds)


def extended_layers(deconvnet: Deconvnet, count: int = 5, among: Collection[str] | None = None) -> list[str]:
    """Modules spread over the depth of a network, or `among` these: the last ones before each share of its steps."""
    modules = dict(deconvnet.graph.model.named_modules())
    names = [name for name in deconvnet.graph.layers if isinstance(modules.get(name), ENDS)]
    names = [name for name in names if f"{name}_1" not in deconvnet.graph.layers]
    names = [name for name in names if among is None or name in among]
    return [names[round((i + 1) * (len(names) - 1) / count)] for i in range(count)]


def layer_deviation(deconvnet: Deconvnet, images: Tensor, layer: str, rules: str) -> float:
    """How far the projection of a sparse signal is from autograd's, relative to the largest pixel."""
    recording = deconvnet.record(images, [layer])
    activation = recording.activations[layer]
    signal = activation * (torch.rand_like(activation) < 0.1)
    kept = {"rectify": "gradient", "norm": "gradient"} if rules == "gradient" else {"extended": True}
    theirs = deconvnet_by_autograd(deconvnet.graph.model, images, layer, signal, **kept)
    return worst(deconvnet.project(recording, layer, signal), theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of these families if none is named")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--timm", action="store_true", help="families of timm's instead of torchvision's networks")
    parser.add_argument("--again", action="store_true", help="those of timm's, too, that results/zoo/timm.json has")
    parser.add_argument("--seconds", type=int, default=240, help="that each family of timm's may take")
    options = parser.parse_args()
    if options.timm:
        from scripts import families  # which imports this file

        return families.run(options.names, not options.again, options.seconds)
    warnings.simplefilter("error")
    print("| network | `project` | `project_units` | the same in float64 | turned | fields | occlusion | s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in options.names or ZOO:
        try:
            row = check(drawn(name), options.size)
        except InputError as error:
            print(f"| {name} | {error} |", flush=True)
            continue
        print(
            f"| {name} | {row.project:.0e} | {row.project_units:.0e} | {row.in_float64:.0e} "
            f"| {row.flips} of {row.units} | {row.fields} of {row.measurements} | {row.occlusion:.0e} "
            f"| {row.seconds:.0f} |",
            flush=True,
        )
    for name in () if options.names else REFUSED:
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
