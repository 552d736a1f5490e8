"""Does a network relate the eye of one dog to the eye of another? Zeiler & Fergus (2013, arXiv:1311.2901), Table 1.

Mask the same part in N images. In image i the features of a layer change by eps_i = x_i - x~_i. If the layer relates
the part in different images, the signs of these changes agree more than those of masks at random positions::

    Delta = mean over pairs i < j of Hamming(sign eps_i, sign eps_j) / dimensions

A sign is -1, 0 or 1. Most features after a ReLU are 0 with and without the mask, and count as agreeing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from zfnet.checks import check_weights
from zfnet.errors import InputError, unknown_name
from zfnet.graph import Graph, graph_of
from zfnet.recording import activations

ZEROS = ("agree", "drop")
MATCHES = ("size", "changed")
SIDES = (0.75, 1.0, 1.25, 1.5, 2.0)  # of the masks that are tried to match the features changed, of a part's sides
NO_CHANGE = 1e-5  # of a layer's largest feature: smaller changes are float32's rounding, which has a sign too


class Consistency(NamedTuple):
    """The sign-Hamming distance between the changes that one mask causes in N images; small: they agree.

    Attributes:
        mean: over pairs of images.
        spread: standard deviation over pairs; for random masks, over pairs of masks.
        interval: 95 %, of the mean, by resampling images: pairs share images.
        changed: the share of features that a mask changes at all.
        p: the share of draws from the part's and its random masks that agree at least as well as the part's.
    """

    mean: float
    spread: float
    interval: tuple[float, float]
    changed: float
    p: float | None


def random_boxes(
    avoid: Tensor, size: tuple[int, int], image_size: tuple[int, int], count: int, generator: torch.Generator
) -> Tensor:
    """Draw boxes (count, 4) of one size in an image, clear of others; positions may repeat, all are equally likely.

    Args:
        avoid: boxes (P, 4: top, left, bottom, right), pixels.
        size, image_size: rows and columns of a box and of the image.
    """
    (height, width), (rows, columns) = size, image_size
    top, left = torch.arange(rows - height + 1)[:, None], torch.arange(columns - width + 1)[None]
    free = torch.ones(len(top), left.shape[1], dtype=torch.bool)
    for first_row, first_column, last_row, last_column in avoid.tolist():
        clear = (top >= last_row) | (top + height <= first_row)
        free &= clear | (left >= last_column) | (left + width <= first_column)
    corners = free.nonzero()
    if not len(corners):
        raise InputError(f"a random mask of {height} x {width} pixels does not fit beside the parts: mask fewer parts")
    corners = corners[torch.randint(len(corners), (count,), generator=generator)]
    return torch.cat([corners, corners + torch.tensor(size)], 1)


def sign_changes(
    model: nn.Module | Graph,
    image: Tensor,
    boxes: Tensor,
    layers: Sequence[str],
    *,
    fill: float = 0.0,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """The signs of features' changes, unmasked minus masked, by layer: (K, D), int8.

    Args:
        image: (C, H, W).
        boxes: K masks (K, 4: top, left, bottom, right), pixels.
        fill: the value of masked pixels in the network's input, where 0 is the mean colour.
    """
    masked = image.expand(len(boxes) + 1, -1, -1, -1).clone()
    for canvas, (top, left, bottom, right) in zip(masked[1:], boxes.tolist(), strict=True):
        canvas[:, top:bottom, left:right] = fill
    signs = {}
    for layer, outputs in activations(graph_of(model), masked, layers, batch_size).items():
        features = outputs.flatten(1)
        change = features[:1] - features[1:]
        rounding = max(NO_CHANGE, 2 * torch.finfo(change.dtype).eps)
        change[change.abs() <= rounding * features[0].abs().max()] = 0
        signs[layer] = change.sign().to(torch.int8)
    return signs


def hamming(signs: Tensor, *, zeros: str = "agree") -> Tensor:
    """The share of dimensions in which two rows of signs (M, D) of -1, 0, 1 differ, for all pairs: (M, M), float64.

    Args:
        signs: (M, D), of -1, 0 and 1.
        zeros: two zeros "agree", or "drop" leaves out the dimensions in which both are zero.
    """
    if zeros not in ZEROS:
        raise unknown_name("treatment of zeros", zeros, ZEROS)
    product, both = signs.new_zeros(2, len(signs), len(signs), dtype=torch.float64)
    for columns in signs.split(2**16, 1):  # whole numbers, exact in float32 up to 2**24
        s = columns.float()
        product += s @ s.T  # + 1 where both are the same, - 1 where they are opposite
        both += s.abs() @ s.abs().T  # where neither is zero
    count = both.diagonal()
    either = count[:, None] + count - both  # where not both are zero
    differ: Tensor = either - (product + both) / 2
    dimensions = either.clamp(min=1) if zeros == "drop" else torch.full_like(either, signs.shape[1])
    return differ / dimensions


def permutation_test(distances: Tensor, permutations: int, generator: torch.Generator) -> float:
    """Do the first masks of N images agree better than chance? p = (1 + draws that are as small) / (1 + draws).

    If the part were like any other position, any of the K masks of an image could be its first one: draw one for each
    image and compare the mean over pairs.

    Args:
        distances: (N, K, N, K), of the K masks of N images, the part's first.
        permutations: how many are drawn.
        generator: of the draws.
    """
    images, masks = distances.shape[:2]
    flat = distances.reshape(images * masks, -1)
    first = torch.arange(images) * masks
    i, j = torch.triu_indices(images, images, 1)
    observed = flat[first[i], first[j]].mean()
    small = 0
    for count in [512] * (permutations // 512) + [permutations % 512]:
        drawn = first + torch.randint(masks, (count, images), generator=generator)
        small += int((flat[drawn[:, i], drawn[:, j]].mean(1) <= observed + 1e-12).sum())
    return (1 + small) / (1 + permutations)


def bootstrap_pairs(distances: Tensor, generator: torch.Generator, draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the mean of distances (N, N) over pairs of images, by drawing images with replacement.

    An image that is drawn twice is no pair with itself.
    """
    images = len(distances)
    drawn = torch.randint(images, (draws, images), generator=generator)
    i, j = torch.triu_indices(images, images, 1)
    first, second = drawn[:, i], drawn[:, j]
    pairs = first != second
    means = (distances[first, second] * pairs).sum(1) / pairs.sum(1)
    low, high = means[pairs.any(1)].quantile(means.new_tensor([0.025, 0.975])).tolist()
    return low, high


def correspondence(
    model: nn.Module | Graph,
    images: Tensor | Sequence[Tensor],
    parts: Sequence[Mapping[str, tuple[int, int, int, int]]],
    layers: Sequence[str],
    *,
    draws: int = 20,
    seed: int = 0,
    fill: float = 0.0,
    zeros: str = "agree",
    match: str = "size",
    permutations: int = 9999,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, dict[str, Consistency]]:
    """Mask each part, and random positions, in N images: by layer, a `Consistency` by part and of "random".

    Args:
        images: N images (C, H, W), of one size.
        parts: boxes (top, left, bottom, right) of each image by name, as in `zfnet.data.parts`.
        draws: random masks for each part of each image, clear of all parts.
        match: random masks have the part's "size"; or, of `draws` masks of each of five sizes (0.75 to 2 times the
            part's sides), those are taken that have "changed" a share of the layer's features nearest to the part's.
        fill, zeros, permutations: see `sign_changes`, `hamming`, `permutation_test`.

    Raises:
        InputError: for fewer than two images, and for boxes outside their image.
    """
    graph = graph_of(model)
    check_weights(graph.model)
    _check(images, parts, draws, permutations, zeros, match)
    random = torch.Generator().manual_seed(seed)
    masks, sides = 1 + draws, SIDES if match == "changed" else (1.0,)
    rows: dict[str, dict[str, Consistency]] = {layer: {} for layer in layers}
    controls: dict[str, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    total = len(images) * len(parts[0]) * (1 + draws * len(sides))
    with tqdm(total=total, unit=" images", desc="masks", disable=not progress) as bar:
        for part in parts[0]:
            signs: dict[str, list[Tensor]] = {layer: [] for layer in layers}
            for image, boxes in zip(images, parts, strict=True):
                masked = torch.cat(
                    [torch.tensor([boxes[part]]), *_candidates(image, boxes, part, sides, draws, random)]
                )
                changes = sign_changes(graph, image, masked, layers, fill=fill, batch_size=batch_size)
                for layer, change in changes.items():
                    signs[layer].append(_nearest(change, draws))
                bar.update(1 + draws * len(sides))
            for layer in layers:
                stacked = torch.cat(signs[layer])
                distances = hamming(stacked, zeros=zeros).cpu().reshape(len(images), masks, len(images), masks)
                changed = stacked.ne(0).double().mean(1).cpu().reshape(len(images), masks)
                p = permutation_test(distances, permutations, random)
                rows[layer][part] = _consistency(distances[:, :1, :, :1], changed[:, 0], random, p)
                controls[layer].append((distances[:, 1:, :, 1:], changed[:, 1:]))
    for layer in layers:
        distances, changed = (torch.cat(blocks, 1) for blocks in zip(*controls[layer], strict=True))
        rows[layer]["random"] = _consistency(distances, changed, random, None)
    return rows


def _candidates(
    image: Tensor,
    boxes: Mapping[str, tuple[int, int, int, int]],
    part: str,
    sides: Sequence[float],
    draws: int,
    random: torch.Generator,
) -> Iterator[Tensor]:
    """`draws` boxes at random places of each size, `sides` times the part's; larger ones only if they fit."""
    top, left, bottom, right = boxes[part]
    avoid, (_, rows, columns) = torch.tensor(list(boxes.values())), image.shape
    for side in sides:
        size = max(1, round(side * (bottom - top))), max(1, round(side * (right - left)))
        try:
            yield random_boxes(avoid, size, (rows, columns), draws, random)
        except InputError:
            if side <= 1:
                raise


def _nearest(signs: Tensor, count: int) -> Tensor:
    """The first mask's signs, and those of the `count` others that change most nearly as many features."""
    changed = signs.count_nonzero(1)
    order = (changed[1:] - changed[0]).abs().argsort(stable=True)
    return signs[torch.cat([order.new_zeros(1), 1 + order[:count].sort().values])]


def _consistency(distances: Tensor, changed: Tensor, generator: torch.Generator, p: float | None) -> Consistency:
    """The `Consistency` of distances (N, K, N, L) between masks of N images."""
    i, j = torch.triu_indices(len(distances), len(distances), 1)
    pairs = distances[i, :, j]
    interval = bootstrap_pairs(distances.mean((1, 3)), generator)
    spread = float(pairs.std(correction=0))
    return Consistency(float(pairs.mean()), spread, interval, float(changed.mean()), p)


def _check(
    images: Tensor | Sequence[Tensor],
    parts: Sequence[Mapping[str, tuple[int, int, int, int]]],
    draws: int,
    permutations: int,
    zeros: str,
    match: str,
) -> None:
    if len(images) < 2 or len(images) != len(parts):
        raise InputError(f"{len(images)} images and parts of {len(parts)}; give two or more images, each with parts")
    if not parts[0]:
        raise InputError("no parts to mask: give at least one for each image")
    if draws < 1 or permutations < 1:
        raise InputError(f"draws is {draws} and permutations {permutations}; give 1 or more")
    if zeros not in ZEROS:
        raise unknown_name("treatment of zeros", zeros, ZEROS)
    if match not in MATCHES:
        raise unknown_name("match of random masks", match, MATCHES)
    sizes = [" x ".join(map(str, image.shape)) for image in images]
    for number, (image, boxes) in enumerate(zip(images, parts, strict=True)):
        if boxes.keys() != parts[0].keys():
            raise InputError(f"image {number} has {', '.join(boxes) or 'no parts'}, and image 0 {', '.join(parts[0])}")
        if image.ndim != 3 or sizes[number] != sizes[0]:
            raise InputError(f"image {number} is {sizes[number]} and image 0 {sizes[0]}; give one (C, H, W) for all")
        for part, (top, left, bottom, right) in boxes.items():
            if not (0 <= top < bottom <= image.shape[1] and 0 <= left < right <= image.shape[2]):
                box = f"rows {top} to {bottom}, columns {left} to {right}"
                raise InputError(f"{part} of image {number} ({box}) is not in its image, {sizes[number]}")
