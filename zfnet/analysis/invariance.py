"""How far do features move when the image does? Zeiler & Fergus (2013, arXiv:1311.2901), Figure 5.

An image is shifted down, enlarged or rotated. We measure the distance of its features from those of the original image,
and the probability that the network gives to the true label. The paper's claim: in layer 1 a small transform has
a large effect; in layer 7 the distance grows in proportion to a shift or an enlargement.

The network's input is transformed, in the 8 bits of a photograph. The identity, shifts by whole pixels and quarter
turns are exact. All other transforms are resampled with cubic splines; the image's edge is blended into the fill; where
the image shrinks, each pixel is the mean of several samples.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from torch import Tensor, nn
from tqdm import tqdm

from zfnet.analysis.occlusion.readout import SCORES, automatic
from zfnet.checks import check_images, check_weights
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError, unknown_name
from zfnet.graph import Graph, graph_of
from zfnet.recording import activations

NOTHING = {"translation": 0.0, "scale": 1.0, "rotation": 0.0}  # the amount of each transform that changes nothing
FILLS = ("grey", "black", "edge", "reflect")
DISTANCES: dict[str, Callable[[Tensor], Tensor | float]] = {  # divisors of the Euclidean distance, by features (D,)
    "rms": lambda features: features.numel() ** 0.5,
    "euclidean": lambda features: 1.0,
    "relative": lambda features: features.double().norm(),
}


class Invariance(NamedTuple):
    """The effect of A amounts of a transform on N images.

    Attributes:
        amounts: (A,), pixels down, magnification, or degrees anticlockwise.
        distance: by layer (N, A), how far its features moved.
        probability: (N, A), of the true label.
    """

    amounts: Tensor
    distance: dict[str, Tensor]
    probability: Tensor


def transformed(
    image: Tensor, kind: str, amount: float, *, fill: str = "grey", preprocessing: Preprocessing | None = None
) -> Tensor:
    """Transform one image as a network sees it.

    Args:
        image: (C, H, W).
        kind: "translation", "scale" or "rotation".
        amount: pixels down, magnification from 0.1, or degrees anticlockwise.
        fill: the uncovered area becomes the preprocessing's mean ("grey"), "black", the nearest pixel ("edge"), or the
            mirrored image ("reflect").
        preprocessing: how `image` was made; None: its values are 0..1.

    Raises:
        InputError: for another kind or fill, and an amount that leaves nothing of the image.
    """
    if kind not in NOTHING:
        raise unknown_name("transform", kind, NOTHING)
    if fill not in FILLS:
        raise unknown_name("fill", fill, FILLS)
    if image.ndim != 3:
        raise InputError(
            f"an image of shape {tuple(image.shape)} cannot be transformed; give (channels, rows, columns)"
        )
    size = np.array(image.shape[1:])
    down, scale, degrees = (float(amount) if kind == name else NOTHING[name] for name in NOTHING)
    if not abs(down) <= size[0]:
        raise InputError(f"a shift by {amount} pixels leaves nothing of an image of {size[0]}")
    if not (0.1 <= scale < math.inf and math.isfinite(degrees)):
        raise InputError(f"{kind} is {amount}; give {'0.1 or more' if kind == 'scale' else 'degrees'}")

    samples = math.ceil(1 / scale)  # along each side of an output pixel
    c, s = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    back = np.array([[c, s], [-s, c]])  # from an output position relative to the centre to one in the image
    offset = back @ ((1 / samples - size) / 2) + (size - 1) / 2 - (down, 0)

    def sampled(plane: NDArray[np.float32], **options: Any) -> Tensor:
        fine = affine_transform(plane, back / samples, offset, tuple(size * samples), **options)
        return torch.from_numpy(fine).reshape(size[0], samples, size[1], samples).mean((1, 3))

    beyond = "reflect" if fill == "reflect" else "nearest"
    levels = torch.stack([sampled(plane, order=3, mode=beyond) for plane in _levels(image, preprocessing)])
    if fill in ("grey", "black"):
        cover = sampled(np.ones(size, np.float32), order=1, mode="grid-constant")
        ground = torch.from_numpy(_levels(torch.zeros_like(image), preprocessing)) if fill == "grey" else 0
        levels = cover * levels + (1 - cover) * ground
    pixels = levels.clamp(0, 255).round() / 255
    return (preprocessing.normalise(pixels) if preprocessing else pixels).to(image)


def _levels(image: Tensor, preprocessing: Preprocessing | None) -> NDArray[np.float32]:
    """The photograph (C, H, W) that the network sees, in whole numbers from 0 to 255."""
    values = image.detach().cpu().float()
    pixels = preprocessing.pixels(values) if preprocessing else values
    levels: NDArray[np.float32] = (pixels.clamp(0, 1) * 255).round().numpy()
    return levels


def invariance(
    model: nn.Module | Graph,
    images: Tensor | Sequence[Tensor],
    labels: Sequence[int],
    layers: Sequence[str],
    kind: str,
    amounts: Sequence[float],
    *,
    fill: str = "grey",
    distance: str = "rms",
    score: str = "auto",
    batch_size: int = 64,
    progress: bool = True,
) -> Invariance:
    """Transform N images by every amount and measure their features and the probability of their labels.

    Args:
        model: a network, or the graph of one.
        images: N images (C, H, W), as the network is given them.
        labels: the class number of each.
        layers: names, whose features are measured.
        kind: "translation", "scale" or "rotation".
        amounts: of the transform; see `transformed`.
        fill: of the uncovered area; see `transformed`.
        distance: "euclidean"; "rms": divided by the square root of the number of units; "relative": divided by the norm
            of the original image's features. The paper does not say which.
        score: how outputs become probabilities, by name; see `occlusion_maps`.
        batch_size: images that are run at once.
        progress: show a progress bar.

    Raises:
        InputError: for another kind, distance or score, and for images without labels of the network.
    """
    graph = graph_of(model)
    check_weights(graph.model)
    if distance not in DISTANCES:
        raise unknown_name("distance", distance, DISTANCES)
    if score not in ("auto", *SCORES):
        raise unknown_name("score", score, ("auto", *SCORES))
    if not len(images) or len(images) != len(labels):
        raise InputError(f"{len(images)} images and {len(labels)} labels; give at least one image, each with its label")
    if not len(amounts):
        raise InputError(f"no amounts of {kind}; give at least one")
    preprocessing = getattr(graph.model, "preprocessing", None)  # other people's models have none
    output = graph.names[graph.output]
    distances: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    probabilities = []
    with tqdm(total=len(images) * len(amounts), unit=" images", desc=kind, disable=not progress) as bar:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            series = [
                transformed(image, kind, amount, fill=fill, preprocessing=preprocessing)
                for amount in (NOTHING.get(kind, 0), *amounts)
            ]
            batch = check_images(graph.model, torch.stack(series))
            outputs = activations(graph, batch, list(dict.fromkeys([*layers, output])), batch_size)
            # at another position of a batch the same image's features differ by rounding; its distance is still 0
            moved = (batch != batch[:1]).flatten(1).any(1)
            for layer in layers:
                far = _distances(outputs[layer], distance)
                distances[layer].append(torch.where(moved, far, 0)[1:].cpu())
            p = _probability(graph, outputs[output], int(label), number, score)
            probabilities.append(torch.where(moved, p, p[0])[1:].cpu())
            bar.update(len(amounts))
    return Invariance(
        torch.as_tensor(amounts, dtype=torch.float64),
        {layer: torch.stack(rows) for layer, rows in distances.items()},
        torch.stack(probabilities),
    )


def _distances(features: Tensor, distance: str) -> Tensor:
    """The distance of each image's features (N, ...) from the first one's."""
    rows = features.flatten(1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    norms: Tensor = torch.linalg.vector_norm(rows - rows[0], dim=1, dtype=torch.float64)
    return norms / DISTANCES[distance](rows[0])


def _probability(graph: Graph, outputs: Tensor, label: int, number: int, score: str) -> Tensor:
    """The network's score of the label, (N,); see `occlusion.readout`."""
    if outputs.ndim != 2:
        raise InputError(f"the network's output is {tuple(outputs.shape)}; probabilities need (images, classes)")
    if label < 0:
        raise InputError(f"image {number} has no label: give data with labels (labels.csv or class folders)")
    single = outputs.shape[1] == 1  # the probability of class 1
    if label >= (classes := 2 if single else outputs.shape[1]):
        raise InputError(f"image {number} has label {label}, but the network has {classes} classes")
    scores = SCORES[automatic(graph, outputs[:1]) if score == "auto" else score](outputs.double())
    return scores[:, label] if not single else scores[:, 0] if label else 1 - scores[:, 0]


def reach(kind: str, amounts: Tensor) -> Tensor:
    """The distance of each amount (A,) from the identity; a rotation beyond 180 degrees counts backwards."""
    change = (amounts - NOTHING[kind]).abs()
    return torch.minimum(change % 360, -change % 360) if kind == "rotation" else change


def linearity(reach: Tensor, distance: Tensor) -> Tensor:
    """The share of the variance of distances (N, A) that a line through zero explains: at most 1, (N,)."""
    slope = distance @ reach / (reach @ reach)
    residual = (distance - slope[:, None] * reach).square().sum(1)
    return 1 - residual / (distance - distance.mean(1, keepdim=True)).square().sum(1)


def rise(reach: Tensor, distance: Tensor, at: float = 0.1) -> Tensor:
    """How early distances rise: the distance at a share of the longest reach, divided by the largest distance, (N,).

    It is `at` for a proportional distance, and near 1 where small transforms have a large effect.

    Args:
        reach: (A,), of each amount; see `reach`.
        distance: (N, A).
        at: the share.
    """
    steps = np.unique(reach.numpy())
    means = np.stack([distance[:, reach == step].mean(1).numpy() for step in steps], 1)  # of both directions
    early = [np.interp(at * steps[-1], steps, row) for row in means]
    return torch.from_numpy(np.array(early)) / distance.amax(1)
