"""Speed as ratios, each measured side by side in one run: medians of alternating repeats.

    python scripts/bench.py [forward record scan project extended ablation occlusion train scale] [--json FILE]
                            [--device cuda] [--repeats N] [--small]

forward   ZFNet at 224 in eval mode, against the same layers composed from stock torch.nn modules
record    tracing ResNet50 at 224 and recording five of its layers, against its forward pass
scan      scanning relu1..relu5, against the bare forward pass to relu5 over the same tensors; and scanning photographs,
          against the slower of decoding them alone and the network alone. Threads and workers are the same in all
          three: first one of each, so that either has a core of its own where there are two; then as many as there are
          cores, where both want all of them: no order of work is faster than the sum of the processor time that both
          take alone, which is printed too. Photographs are those of ZFNET_REAL_DATA, or else rendered JPEGs
project   project_units on winning units of layers 1 to 5, against Captum's NeuronDeconvolution on the same units
extended  project_units by EXTENDED on winning units of five layers of EfficientNet-B0, against autograd's gradient of
          one unit at a time, whose forward pass ends at the layer
ablation  the activations of single units of layers 1 to 5 with half of their receptive fields covered, all at once,
          against one unit at a time: the whole image up to the layer, and the receptive field alone
occlusion a square of 50 pixels at the paper's 900 places, against plain batches of the same network at the best batch
          size, and against Captum's Occlusion at its best; beside it the multiply-adds that the windows save, and how
          much of that bound was reached
train     an epoch of the paper's recipe on bytes of 64 pixels, of ZFNet with a third and with half of the paper's maps,
          in bfloat16 on a GPU: against bare updates on one batch in its memory
scale     the pieces that docs/scale.md counts with: decoding, networks, tars, and what a scan keeps of 50,000 maps;
          no ratios; runs only if it is named

The file of --json is rewritten after every line, with the hardware, its driver, the versions and the commit.
--small tests the script itself in seconds: few images of 64 pixels, networks of few maps. Its figures mean nothing.
"""

import argparse
import contextlib
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision import models
from tqdm import tqdm

from scripts import scale
from zfnet import DECONVNET, Deconvnet, TopActivations, ZFNet, occlusion_maps, receptive_field, scan
from zfnet.analysis.occlusion import OcclusionMaps, multiply_adds
from zfnet.checks import check_images
from zfnet.data.batches import Batches
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.graph import Graph
from zfnet.layers import spread
from zfnet.operations import DIFFERENTIATED_NORMS
from zfnet.training import Recipe, network_input, renormalise, train

ROOT = Path(__file__).resolve().parents[1]
SIDE, SMALL = 224, False  # side of the images in pixels; --small
WIDTHS = {"third of": ((32, 64, 96, 96, 64), (384, 384)), "half of": ((48, 128, 192, 192, 128), (2048, 2048))}
LAYERS = [f"relu{n}" for n in range(1, 6)]
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "captum")
TARGETS = {
    "forward": 1.3,
    "record": 1 / 1.2,
    "scan": 0.95,
    "overlap": 0.95,
    "train": 0.8,
    "relu1": 100,
    "relu2": 25,
    "relu3": 7,
    "relu4": 4,
    "relu5": 3,
    "all five": 8,
    "extended": 4,
    "ablation": 5,
    "ZFNet": 4,
    "VGG11": 2.5,
    "SqueezeNet": 2.5,
    "Captum": 5,
}


def medians(device: str, repeats: int, **contenders: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each contender, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in tqdm(range(repeats + 1), leave=False):
        for name, run in contenders.items():
            start = perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first is for warming up
                times[name].append(perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def stock(model: ZFNet) -> nn.Sequential:
    """The same layers and weights from torch.nn alone, in torch's own memory format."""
    layers: list[nn.Module] = []
    for layer in copy.deepcopy(model).to(memory_format=torch.contiguous_format):
        if isinstance(layer, nn.MaxPool2d):
            layer = nn.MaxPool2d(3, 2, ceil_mode=True)
        elif isinstance(layer, nn.LocalResponseNorm):
            layer = nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)
        elif isinstance(layer, nn.ReLU):
            layer = nn.ReLU()
        layers.append(layer)
    return nn.Sequential(*layers).eval()


def photographs(count: int, device: str) -> Tensor:
    """Scenes as the network's input: images with edges and objects, so that units fire where they would."""
    scenes = Scenes("val", count, size=SIDE, transform=Preprocessing(size=SIDE, resize=None))
    return torch.stack([scenes[i][0] for i in range(count)]).to(device)


def bench_forward(model: ZFNet, device: str, repeats: int) -> list[dict]:
    plain, rows = stock(model), []
    for batch in (1, 16):
        images = photographs(batch, device)
        with torch.inference_mode():
            ours, theirs = model(images), plain(images)
            worst = float((ours - theirs).abs().max() / theirs.abs().max())
            rounds = repeats * (5 if batch == 1 else 1)  # one image is over so soon that the clock is noisy
            spent = medians(device, rounds, ours=lambda x=images: model(x), theirs=lambda x=images: plain(x))
        rows.append(row(f"forward, batch {batch}", spent, batch, "stock torch.nn", TARGETS["forward"], deviation=worst))
    return rows


def bench_record(model: ZFNet, device: str, repeats: int) -> list[dict]:
    network, batch = models.resnet50().eval().to(device), 8
    images, layers = photographs(batch, device), ["relu", *(f"layer{n}.0.relu_2" for n in range(1, 5))]

    def bare() -> Tensor:
        with torch.no_grad():
            return network(images)

    spent = medians(device, repeats, ours=lambda: Deconvnet(network).record(images, [*layers, "fc"]), theirs=bare)
    return [row("trace and record", spent, batch, "forward pass of ResNet50", TARGETS["record"])]


def bench_scan(model: ZFNet, device: str, repeats: int) -> list[dict]:
    count, batch = 32 if SMALL else 256, 64
    images = photographs(32, device).repeat(count // 32, 1, 1, 1)
    images += 0.1 * torch.randn_like(images)
    dataset = TensorDataset(images.cpu(), torch.zeros(count, dtype=torch.int64))
    trunk = model[: list(dict(model.named_children())).index("relu5") + 1]

    def bare() -> None:
        with torch.no_grad():
            for part in dataset.tensors[0].split(batch):
                trunk(part.to(device))

    graph = Graph(model)
    spent = medians(
        device, repeats, ours=lambda: scan(graph, dataset, LAYERS, batch_size=batch, progress=False), theirs=bare
    )
    rows = [row("scan relu1..relu5", spent, count, "bare forward pass to relu5", TARGETS["scan"])]
    with tempfile.TemporaryDirectory() as folder:
        files = real_photographs() or jpegs(Path(folder), 32, 32 if SMALL else 256 if device == "cpu" else 2048)
        cores = os.cpu_count() or 1
        for threads, workers in dict.fromkeys(
            [(1, 1), (cores, cores)] if device == "cpu" else [(cores, min(cores, 8))]
        ):
            rows.append(overlap(model, files, device, repeats, threads, workers))
            if device == "cpu" and not SMALL:
                squeezenet = models.squeezenet1_0().eval().to(memory_format=torch.channels_last)
                rows.append(overlap(squeezenet, files, device, repeats, threads, workers))
    return rows


def overlap(network: nn.Module, files: Photos, device: str, repeats: int, threads: int, workers: int) -> dict:
    """Scanning photographs, against the slower of decoding them alone and the network alone over ready tensors."""
    layers = LAYERS if isinstance(network, ZFNet) else [f"features.{n}" for n in (2, 5, 8, 12)]
    graph, indices, spent_before = (
        Graph(network),
        range(32 if SMALL else min(len(files), 512 if device == "cpu" else 2048)),
        torch.get_num_threads(),
    )
    node, most = graph.node(layers[-1]), {"batch_size": 16 if SMALL else 64, "indices": indices, "workers": workers}
    ready = [batch.images for batch in Batches(files, **most)]
    processor: dict[str, list[list[float]]] = {"scan": [], "decoding": [], "network": []}  # own, and of workers

    def counted(name: str, run: Callable[[], object]) -> Callable[[], None]:
        def measured() -> None:
            before = processor_time()
            run()
            processor[name].append([now - then for now, then in zip(processor_time(), before, strict=True)])

        return measured

    def forward() -> None:
        with torch.inference_mode():
            for images in ready:
                graph.run(
                    check_images(network, images), {node}, lambda node, args, kwargs: graph.call(node, args, kwargs)
                )

    torch.set_num_threads(threads)
    try:
        spent = medians(
            device,
            repeats,
            scan=counted("scan", lambda: scan(graph, files, layers, progress=False, **most)),
            decoding=counted("decoding", lambda: [None for _ in Batches(files, **most)]),
            network=counted("network", forward),
        )
    finally:
        torch.set_num_threads(spent_before)
    count = len(indices)
    speed = {name: count / seconds for name, seconds in spent.items()}
    slower = min(("decoding", "network"), key=lambda name: speed[name])
    own, total = (
        {name: statistics.median(part(times) for times in kept) for name, kept in processor.items()}
        for part in (lambda times: times[0], sum)
    )
    bound = count * min(os.cpu_count() or 1, threads + workers) / (total["decoding"] + total["network"])
    busy = own["network"] / own["scan"]  # of the main process: what it does besides the network is lost to it
    against = f"{slower} alone; images a second: " + ", ".join(f"{name} {of:.0f}" for name, of in speed.items())
    if device == "cpu":
        against += (
            f"; at most {bound:.0f} by the processor time of both, of which the scan is {speed['scan'] / bound:.0%}"
        )
        against += f"; the network alone takes {busy:.0%} of the processor time of the scan's main process"
    times = {"ours": spent["scan"], "theirs": spent[slower]}
    name = f"scan, {type(network).__name__}, {threads}+{workers}"
    how = {"threads": threads, "workers": workers, "bound": bound, "busy": busy}
    return row(name, times, count, against, TARGETS["overlap"], **how, **speed)


def processor_time() -> tuple[float, float]:
    """Seconds of this process, and of those that it has started and that have ended."""
    times = os.times()
    return times.user + times.system, times.children_user + times.children_system


def real_photographs() -> Photos | None:
    """The photographs of ZFNET_REAL_DATA, where they are."""
    folder = Path(os.environ.get("ZFNET_REAL_DATA", "")) / "imagenet_samples"
    return Photos(folder, transform=Preprocessing(size=SIDE, resize=SIDE * 8 // 7)) if folder.is_dir() else None


def jpegs(folder: Path, different: int, count: int) -> Photos:
    """So many photographs, an eighth larger than the network's input; a few are rendered, and each is there often."""
    scenes = Scenes("val", different, size=SIDE * 8 // 7)
    for n in range(count):
        file = folder / f"{n:05d}.jpg"
        if n < different:
            pixels = scenes[n][0]
            Image.fromarray(pixels.mul(255).byte().movedim(0, -1).numpy()).save(file, quality=90)
        else:
            file.write_bytes((folder / f"{n % different:05d}.jpg").read_bytes())
    return Photos(folder, transform=Preprocessing(size=SIDE, resize=SIDE * 8 // 7))


def winners(top: TopActivations, maps: int) -> Tensor:
    """Units (M, 4), all that a scan found of the first maps that are above 0 on so many images."""
    alive = (top.value[:, -1] > 0).nonzero().flatten()[:maps]
    return top.units(alive.tolist())


def bench_project(model: ZFNet, device: str, repeats: int) -> list[dict]:
    from captum.attr import NeuronDeconvolution

    images, maps, rows = photographs(8, device), 6, []
    # Captum differentiates the norm: results are compared with that option, times with the paper's
    paper, deconvnet = Deconvnet(model), Deconvnet(model, rules=DECONVNET | DIFFERENTIATED_NORMS)
    plain = stock(model)
    tops = scan(model, TensorDataset(images.cpu()), LAYERS, k=6, progress=False)
    total = {"ours": 0.0, "theirs": 0.0}
    for layer in LAYERS:
        units = winners(tops[layer], maps)
        neuron = NeuronDeconvolution(plain, plain[list(dict(model.named_children())).index(layer)])

        def theirs(neuron: NeuronDeconvolution = neuron, units: Tensor = units) -> list[Tensor]:
            return [neuron.attribute(images[i : i + 1], (m, r, c)).detach() for i, m, r, c in units.tolist()]

        worst = 0.0
        for pixels, box, value, whole in zip(*deconvnet.project_units(images, layer, units)[1:], theirs(), strict=True):
            top_, left, bottom, right = box.tolist()
            inside = whole[0, :, max(top_, 0) : bottom, max(left, 0) : right] * value
            canvas = pixels[:, max(-top_, 0) :, max(-left, 0) :][:, : inside.shape[1], : inside.shape[2]]
            worst = max(worst, float((canvas - inside).abs().max() / inside.abs().max()))
        spent = medians(
            device,
            max(1, repeats // 2),
            ours=lambda layer=layer, units=units: paper.project_units(images, layer, units),
            theirs=theirs,
        )
        total = {name: total[name] + spent[name] for name in total}
        rows.append(row(f"project {layer}", spent, len(units), "Captum", TARGETS[layer], deviation=worst))
    rows.append(row("project, all five", total, 180, "Captum", TARGETS["all five"]))
    return rows


class _Reached(Exception):
    """The forward pass has come to its layer."""


def gradients(network: nn.Module, layer: str, images: Tensor, units: Tensor) -> list[Tensor]:
    """Autograd's gradient of one unit at a time, whose forward pass ends at the layer."""
    outputs: list[Tensor] = []

    def end(module: nn.Module, args: Any, output: Tensor) -> None:
        outputs[:] = [output]
        raise _Reached

    handle, found = network.get_submodule(layer).register_forward_hook(end), []
    for i, m, row_, column in units.tolist():
        image = images[i : i + 1].clone().requires_grad_()
        with contextlib.suppress(_Reached):
            network(image)
        found += torch.autograd.grad(outputs[0][0, m, row_, column], image)
    handle.remove()
    return found


def bench_extended(model: ZFNet, device: str, repeats: int) -> list[dict]:
    network = models.efficientnet_b0().eval().to(device)
    images, deconvnet, rows = photographs(8, device), Deconvnet(network, rules="extended"), []
    layers = spread(deconvnet.graph, SIDE)
    tops, total = scan(network, TensorDataset(images.cpu()), layers, k=6, progress=False), {"ours": 0.0, "theirs": 0.0}
    for layer in layers:
        units, field = winners(tops[layer], 6), receptive_field(deconvnet.graph, layer, SIDE)
        whole = field.size[0] > 2 * SIDE  # as Figure 2 does
        spent = medians(
            device,
            max(1, repeats // 2),
            ours=lambda layer=layer, units=units, whole=whole: deconvnet.project_units(
                images, layer, units, whole=whole
            ),
            theirs=lambda layer=layer, units=units: gradients(network, layer, images, units),
        )
        total = {name: total[name] + spent[name] for name in total}
        rows.append(row(f"extended, {layer}", spent, len(units), "autograd, unit by unit", TARGETS["extended"]))
    rows.append(row("extended, all five", total, 180, "autograd, unit by unit", TARGETS["extended"]))
    return rows


def bench_ablation(model: ZFNet, device: str, repeats: int) -> list[dict]:
    images, rows = photographs(8, device), []
    deconvnet = Deconvnet(model)
    tops = scan(model, TensorDataset(images.cpu()), LAYERS, k=6, progress=False)
    total = dict.fromkeys(("ours", "image", "field"), 0.0)
    for layer in LAYERS:
        units = winners(tops[layer], 6)
        canvases, _, boxes, _ = deconvnet.project_units(images, layer, units)
        canvases[..., : canvases.shape[-1] // 2] = 0
        trunk = model[: list(dict(model.named_children())).index(layer) + 1]

        def image(
            layer: str = layer,
            units: Tensor = units,
            canvases: Tensor = canvases,
            boxes: Tensor = boxes,
            trunk: nn.Module = trunk,
        ) -> Tensor:
            activations = []
            with torch.inference_mode():
                for (i, m, r, c), canvas, (top, left, bottom, right) in zip(
                    units.tolist(), canvases, boxes.tolist(), strict=True
                ):
                    picture = images[i : i + 1].clone()
                    inside = picture[0, :, max(top, 0) : bottom, max(left, 0) : right]
                    inside[:] = canvas[:, max(-top, 0) :, max(-left, 0) :][:, : inside.shape[1], : inside.shape[2]]
                    activations.append(trunk(picture)[0, m, r, c])
            return torch.stack(activations)

        def field(layer: str = layer, units: Tensor = units, canvases: Tensor = canvases) -> list[Tensor]:
            pairs = zip(canvases.split(1), units.split(1), strict=True)
            return [deconvnet.activations_of(canvas, layer, unit, SIDE) for canvas, unit in pairs]

        def ours(layer: str = layer, units: Tensor = units, canvases: Tensor = canvases) -> Tensor:
            return deconvnet.activations_of(canvases, layer, units, SIDE)

        worst = float((ours() - image()).abs().max() / image().abs().max())
        spent = medians(device, max(1, repeats // 2), ours=ours, image=image, field=field)
        total = {name: total[name] + spent[name] for name in total}
        times = {"ours": spent["ours"], "theirs": spent["image"]}
        rows.append(
            row(f"ablate {layer}", times, len(units), "one image at a time", TARGETS["ablation"], deviation=worst)
        )
    for name, against in (("image", "one image at a time"), ("field", "one receptive field at a time")):
        times = {"ours": total["ours"], "theirs": total[name]}
        rows.append(row("ablate, all five", times, 180, against, TARGETS["ablation"]))
    return rows


def bench_occlusion(model: ZFNet, device: str, repeats: int) -> Iterator[dict]:
    from captum.attr import Occlusion

    image = photographs(1, device)[0]
    for name in ("ZFNet", *(() if SMALL else ("VGG11", "SqueezeNet"))):
        network: nn.Module = model
        if name != "ZFNet":
            network = models.vgg11() if name == "VGG11" else models.squeezenet1_0()
            network = network.eval().to(device, memory_format=torch.channels_last)
        graph = Graph(network)
        maps = occlusion_maps(graph, image)
        share = 6  # plain batches at every sixth place: all of VGG11's would take minutes
        batches = {batch: _plain(network, image, maps, batch, share) for batch in (1, 8, 16, 32, 64)}
        trial = medians(device, 1, **{str(batch): lambda run=run, n=batch: run(n) for batch, run in batches.items()})
        best = min(batches, key=lambda batch: trial[str(batch)] / batch)
        worst = float((batches[best]() - maps.probability.flatten()[::share]).abs().max() / maps.probability.max())
        spent = medians(
            device, max(1, repeats // 2), ours=lambda g=graph: occlusion_maps(g, image), theirs=batches[best]
        )
        spent["theirs"] *= maps.label.numel() / len(range(0, maps.label.numel(), share))
        count, (all_, reached) = maps.label.numel(), multiply_adds(graph, tuple(image.shape[-2:]))
        near = spent["theirs"] / spent["ours"] / (all_ / reached)
        against = f"plain batches of {best}; multiply-adds bound it by {all_ / reached:.2f}, of which it is {near:.0%}"
        yield row(f"occlude {name}", spent, count, against, TARGETS[name], deviation=worst, bound=all_ / reached)
        if name == "ZFNet":
            captum_ = Occlusion(network)

            def theirs(at_once: int, step: int = 6, captum_: Any = captum_, target: int = maps.target) -> Tensor:
                with torch.no_grad():
                    return captum_.attribute(
                        image[None], (3, 50, 50), (3, step, step), 0.0, target, perturbations_per_eval=at_once
                    )

            trial = medians(device, 1, **{str(n): lambda n=n: theirs(n, 18) for n in (1, 8, 16, 32, 64)})
            best = int(min(trial, key=lambda n: trial[n]))
            spent = medians(
                device,
                max(1, repeats // 2),
                ours=lambda g=graph: occlusion_maps(g, image),
                theirs=lambda n=best: theirs(n),
            )
            against = f"Captum's Occlusion, {best} at once"
            yield row(f"occlude {name}", spent, count, against, TARGETS["Captum"])


def _plain(network: nn.Module, image: Tensor, maps: OcclusionMaps, batch: int, share: int) -> Callable[..., Tensor]:
    """The probability at every `share`-th place, `batch` whole images at a time."""
    boxes = maps.boxes.flatten(0, 1)[::share].tolist()

    def run(count: int | None = None) -> Tensor:
        probabilities = []
        with torch.inference_mode():
            for first in range(0, len(boxes[:count]), batch):
                batch_boxes = boxes[:count][first : first + batch]
                images = image[None].repeat(len(batch_boxes), 1, 1, 1).contiguous(memory_format=torch.channels_last)
                for picture, (top, left, bottom, right) in zip(images, batch_boxes, strict=True):
                    picture[:, top:bottom, left:right] = 0
                probabilities.append(network(images).softmax(1)[:, maps.target])
        return torch.cat(probabilities)

    return run


def bench_train(model: ZFNet, device: str, repeats: int) -> Iterator[dict]:
    side, batch = (64, 32) if SMALL else (64, 128)
    count = 64 if SMALL else 256 if device == "cpu" else 30_000
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    dataset = TensorDataset(images, torch.arange(count) % 60)
    for name, (maps, hidden) in ({"few of": ((8,) * 5, (8,))} if SMALL else WIDTHS).items():
        network = ZFNet(60, maps=maps, hidden=hidden, image_size=side)
        Preprocessing(size=side, resize=side, scale=255, mean=(123.68, 116.78, 103.94), std=1).attach(network)
        network.to(device, memory_format=torch.channels_last)
        recipe = Recipe(epochs=1, batch_size=batch, max_shift=None, pixel_mean=True)

        def ours(network: nn.Module = network, recipe: Recipe = recipe) -> None:
            train(network, dataset, recipe=recipe, progress=False)

        def theirs(network: nn.Module = network, recipe: Recipe = recipe) -> None:
            network.train()
            optimizer, dtype = recipe.make_optimizer(network), recipe.dtype(torch.device(device))
            ready, labels = network_input(network, images[:batch]), dataset.tensors[1][:batch].to(device)
            for _ in range(count // batch):
                with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                    loss = F.cross_entropy(network(ready), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                renormalise(network)

        spent = medians(device, max(1, repeats // 2), ours=ours, theirs=theirs)
        precision = str(recipe.dtype(torch.device(device))).removeprefix("torch.")
        speed = count / spent["ours"]
        against = f"bare updates, {precision}; {speed:,.0f} images a second"
        yield row(f"train, {name} maps", spent, count, against, TARGETS["train"], images_per_second=speed)


def bench_scale(model: ZFNet, device: str, repeats: int) -> Iterator[dict]:
    with tempfile.TemporaryDirectory() as folder:
        files = real_photographs() or jpegs(Path(folder), 32, 32 if SMALL else 256)
        yield from scale.pieces(files, model, Path(folder), repeats, SMALL)


def row(name: str, spent: dict[str, float], items: int, against: str, target: float, **more: float) -> dict:
    ratio = spent["theirs"] / spent["ours"]
    times = {f"{who} ms per item": 1e3 * seconds / items for who, seconds in spent.items()}
    return {"what": name, "against": against, **times, "ratio": ratio, "target": target, **more}


def about(device: str) -> dict[str, Any]:
    """The conditions of the figures: hardware, driver, versions, commit."""

    def said(*words: str) -> str | None:
        try:
            return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    cuda = device == "cuda"
    return {
        "hardware": torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads",
        "machine": platform.machine(),
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": said("git", "rev-parse", "HEAD"),
        "changed": bool(said("git", "status", "--porcelain", "--untracked-files=no")),
    }


def main() -> None:
    global SIDE, SMALL
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named: dict[str, Callable[[ZFNet, str, int], Iterable[dict]]] = {"scale": bench_scale}
    benches: dict[str, Callable[[ZFNet, str, int], Iterable[dict]]] = {
        "forward": bench_forward,
        "record": bench_record,
        "scan": bench_scan,
        "project": bench_project,
        "extended": bench_extended,
        "ablation": bench_ablation,
        "occlusion": bench_occlusion,
        "train": bench_train,
    }
    parser.add_argument("what", nargs="*", metavar="|".join(benches | named), help="all but scale if none is named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table to this file")
    parser.add_argument("--about", action="store_true", help="print hardware, versions and commit, and measure nothing")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="test the script itself: its figures mean nothing")
    options = parser.parse_args()
    if wrong := [what for what in options.what if what not in benches | named]:
        parser.error(f"no benchmark {wrong[0]!r}; available: {', '.join(benches | named)}")
    torch.manual_seed(0)
    if options.device == "cpu":
        torch.set_num_threads(1 if options.small else 2)
    facts = about(options.device)
    if options.about:
        print(json.dumps(facts, indent=1))
        return
    few: dict[str, Any] = {}
    if options.small:
        SIDE, SMALL, few = 64, True, {"maps": (8,) * 5, "hidden": (8,), "num_classes": 10}
    model = ZFNet(init="he", image_size=SIDE, **few).eval().to(options.device)
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "captum"))
    print(f"ZFNet at {SIDE}, {facts['hardware']} ({facts['machine']}), {versions}, commit {facts['commit']}")
    print(f"| {'what':20} | {'ours, ms':>9} | {'theirs, ms':>10} | {'ratio':>7} | {'target':>6} | deviation | against")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for what in options.what or benches:
        for line in (benches | named)[what](model, options.device, options.repeats):
            rows.append(line)
            if "ratio" in line:
                deviation = f"{line['deviation']:.1e}" if "deviation" in line else ""
                print(
                    f"| {line['what']:20} | {line['ours ms per item']:9.3f} | {line['theirs ms per item']:10.3f} "
                    f"| {line['ratio']:7.2f} | {line['target']:6} | {deviation:9} | {line['against']}",
                    flush=True,
                )
            else:
                print(f"| {line['what']} | {line['value']:.4g} {line['unit']} | {line['how']}", flush=True)
            if options.json:
                options.json.write_text(json.dumps({**facts, "small": SMALL, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
