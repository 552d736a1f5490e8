"""How far do features move when the image does?  Zeiler & Fergus (2013, arXiv:1311.2901), Figure 5.

An image is shifted down, enlarged or turned, and the distance of its features from those of the image as it was is
taken, with the probability that the network gives to the true label.  The paper's claim: in layer 1 a small transform
has a large effect, in layer 7 the distance grows in proportion to a shift or an enlargement.

What is transformed is the square that the network sees, in the 8 bits of a photograph: so a transform by nothing, by
whole pixels or by quarter turns loses nothing.  All others are resampled by cubic splines, the image's edge is blended
into what is filled in, and where the image shrinks each pixel is the mean of several samples.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor, nn
from tqdm import tqdm

from zfnet.checks import check_images, check_weights
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError, unknown_name
from zfnet.graph import Graph, graph_of
from zfnet.recording import activations

NOTHING = {"translation": 0.0, "scale": 1.0, "rotation": 0.0}  # the amount of each transform that leaves all as it is
FILLS = ("grey", "black", "edge", "reflect")
DISTANCES: dict[str, Callable[[Tensor], Tensor | float]] = {  # what the Euclidean one is divided by, of features (D,)
    "rms": lambda features: features.numel() ** 0.5,
    "euclidean": lambda features: 1.0,
    "relative": lambda features: features.double().norm(),
}


class Invariance(NamedTuple):
    """What A amounts of a transform do to N images."""

    amounts: Tensor  # (A,): pixels down, magnification, or degrees anticlockwise
    distance: dict[str, Tensor]  # (N, A) by layer
    probability: Tensor  # (N, A), of the true label


def transformed(
    image: Tensor, kind: str, amount: float, *, fill: str = "grey", preprocessing: Preprocessing | None = None
) -> Tensor:
    """An image (3, S, S) as a network sees it: shifted down by pixels, enlarged, or turned anticlockwise by degrees.

    fill: what is uncovered: the preprocessing's mean ("grey"), "black", the nearest pixel ("edge"), or the
    image in a mirror ("reflect").  preprocessing: how `image` was made; None: RGB in 0..1.  InputError for images that
    are not square, unknown names, shifts beyond the image, scales below 0.1.
    """
    if kind not in NOTHING:
        raise unknown_name("transform", kind, NOTHING)
    if fill not in FILLS:
        raise unknown_name("fill", fill, FILLS)
    if image.ndim != 3 or image.shape[1] != image.shape[2]:
        raise InputError(f"an image of {' x '.join(map(str, image.shape))} cannot be turned: give a square, (3, S, S)")
    preprocessing = preprocessing or Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
    size = image.shape[1]
    down, scale, degrees = (float(amount) if kind == name else NOTHING[name] for name in NOTHING)
    if not abs(down) <= size:
        raise InputError(f"a shift by {amount} pixels leaves nothing of an image of {size}")
    if not (0.1 <= scale < math.inf and math.isfinite(degrees)):
        raise InputError(f"{kind} is {amount}; give {'0.1 or more' if kind == 'scale' else 'degrees'}")

    samples = math.ceil(1 / scale)  # along each side of an output pixel
    c, s = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    back = np.array([[c, s], [-s, c]])  # from a place in the output, seen from its centre, to one in the image
    first = (1 / samples - size) / 2
    offset = back @ (first, first) + (size - 1) / 2 - (down, 0)

    def sampled(plane: np.ndarray, **how: Any) -> Tensor:
        fine = affine_transform(plane, back / samples, offset, (size * samples,) * 2, **how)
        return torch.from_numpy(fine).reshape(size, samples, size, samples).mean((1, 3))

    beyond = "reflect" if fill == "reflect" else "nearest"
    rgb = torch.stack([sampled(plane, order=3, mode=beyond) for plane in _levels(image, preprocessing)])
    if fill in ("grey", "black"):
        cover = sampled(np.ones((size, size), np.float32), order=1, mode="grid-constant")
        ground = torch.from_numpy(_levels(torch.zeros_like(image), preprocessing)) if fill == "grey" else 0
        rgb = cover * rgb + (1 - cover) * ground
    return preprocessing.normalise(rgb.clamp(0, 255).round() / 255).to(image)


def _levels(image: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """What the network sees as RGB (3, H, W), whole numbers from 0 to 255."""
    return (preprocessing.pixels(image.detach().cpu().float()).clamp(0, 1) * 255).round().numpy()


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
    batch_size: int = 64,
    progress: bool = True,
) -> Invariance:
    """Transform N images (3, S, S), as the network sees them, by every amount; measure features and probability.

    kind: "translation", "scale" or "rotation".  fill: see `transformed`.  distance: "euclidean"; "rms", the same for
    one unit, divided by the square root of their number; "relative", divided by the length of the image's features.
    The paper does not say; its axes end at 15 in layer 1 and at 1.4 in layer 7, to which only "rms" comes near.
    InputError for no images, images that are not square, and labels that are none of the network's classes.
    """
    graph = graph_of(model)
    check_weights(graph.model)
    if distance not in DISTANCES:
        raise unknown_name("distance", distance, DISTANCES)
    if not len(images) or len(images) != len(labels):
        raise InputError(f"{len(images)} images and {len(labels)} labels; give at least one image, each with its label")
    if not len(amounts):
        raise InputError(f"no amounts of {kind}; give at least one")
    preprocessing = getattr(graph.model, "preprocessing", None)
    output = graph.layers[-1]
    distances: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    probabilities = []
    with tqdm(total=len(images) * len(amounts), unit=" images", desc=kind, disable=not progress) as bar:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            every = (NOTHING.get(kind, 0), *amounts)
            series = [transformed(image, kind, a, fill=fill, preprocessing=preprocessing) for a in every]
            batch = check_images(graph.model, torch.stack(series))
            found = activations(graph, batch, list(dict.fromkeys([*layers, output])), batch_size)
            # in another place of a batch the same image's features differ by rounding; its distance is 0 all the same
            moved = (batch != batch[:1]).flatten(1).any(1)
            for layer in layers:
                features = found[layer].flatten(1)
                far = torch.linalg.vector_norm(features - features[0], dim=1, dtype=torch.float64)
                distances[layer].append(torch.where(moved, far / DISTANCES[distance](features[0]), 0)[1:].cpu())
            p = _probability(found[output], int(label), number)
            probabilities.append(torch.where(moved, p, p[0])[1:].cpu())
            bar.update(len(amounts))
    return Invariance(
        torch.as_tensor(amounts, dtype=torch.float64),
        {layer: torch.stack(rows) for layer, rows in distances.items()},
        torch.stack(probabilities),
    )


def _probability(logits: Tensor, label: int, number: int) -> Tensor:
    if logits.ndim != 2:
        raise InputError(f"the network's output is {tuple(logits.shape)}; probabilities need (images, classes)")
    if label < 0:
        raise InputError(f"image {number} has no label: give data with labels (labels.csv or class folders)")
    if label >= logits.shape[1]:
        raise InputError(f"image {number} has label {label}, of a network with {logits.shape[1]} classes")
    return logits.double().softmax(1)[:, label]


def reach(kind: str, amounts: Tensor) -> Tensor:
    """How much of a transform there is in each amount, from 0; turned on, an image comes nearer again."""
    away = (amounts - NOTHING[kind]).abs()
    return torch.minimum(away % 360, -away % 360) if kind == "rotation" else away


def linearity(reach: Tensor, distance: Tensor) -> Tensor:
    """How much of the variance of distances (N, A) a line through zero explains, for each image: at most 1, (N,)."""
    slope = distance @ reach / (reach @ reach)
    left = (distance - slope[:, None] * reach).square().sum(1)
    return 1 - left / (distance - distance.mean(1, keepdim=True)).square().sum(1)


def rise(reach: Tensor, distance: Tensor, at: float = 0.1) -> Tensor:
    """The distance at a share `at` of the longest reach, as a share of the largest distance, for each of N images.

    In proportion it is `at`; where small transforms have a large effect it is near 1.
    """
    places = np.unique(reach.numpy())
    means = np.stack([distance[:, reach == place].mean(1).numpy() for place in places], 1)  # of both directions
    found = [np.interp(at * places[-1], places, row) for row in means]
    return torch.from_numpy(np.array(found)) / distance.amax(1)
