"""Does a network know that the eye of one dog is the eye of another?  Zeiler & Fergus (2013, arXiv:1311.2901), Table 1.

Mask the same part in N images.  In image i the features of a layer change by eps_i = x_i - x~_i.  If the layer relates
the part in different images, the signs of these changes agree more than those of masks at random places:

    Delta = mean over pairs i < j of Hamming(sign eps_i, sign eps_j) / dimensions

A sign is -1, 0 or 1: most features after a ReLU are 0 with and without the mask, and count as agreeing.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from zfnet.checks import check_weights
from zfnet.errors import InputError, unknown_name
from zfnet.graph import Graph, graph_of
from zfnet.recording import activations

ZEROS = ("agree", "drop")
NO_CHANGE = 1e-5  # of a layer's largest feature: less is float32's rounding, which has a sign too


class Consistency(NamedTuple):
    """The sign-Hamming distance between the changes that one mask causes in N images; small: they agree."""

    mean: float  # over pairs of images
    spread: float  # standard deviation over pairs; for random masks, over pairs of masks
    interval: tuple[float, float]  # 95%, of the mean, by drawing images again: pairs share images
    changed: float  # the share of features that a mask changes at all
    p: float | None  # how often masks drawn from the part's and its random ones agree as well as the part's


def random_boxes(
    avoid: Tensor, size: tuple[int, int], image_size: tuple[int, int], count: int, generator: torch.Generator
) -> Tensor:
    """Boxes (count, 4: top, left, bottom, right) of one size, in the image and clear of those to `avoid` (P, 4).

    All such places are equally likely, and may be drawn twice.  InputError if there is none.
    """
    (height, width), (rows, columns) = size, image_size
    top, left = torch.arange(rows - height + 1)[:, None], torch.arange(columns - width + 1)[None]
    free = torch.ones(len(top), left.shape[1], dtype=torch.bool)
    for first_row, first_column, last_row, last_column in avoid.tolist():
        clear = (top >= last_row) | (top + height <= first_row)
        free &= clear | (left >= last_column) | (left + width <= first_column)
    places = free.nonzero()
    if not len(places):
        raise InputError(f"a random mask of {height} x {width} pixels has no place beside the parts: mask fewer")
    corners = places[torch.randint(len(places), (count,), generator=generator)]
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
    """The signs of how each mask changes an image's features: by layer (K, D) int8, of eps = with all - with the mask.

    image (3, H, W), masks `boxes` (K, 4) filled with `fill` in the network's input, where 0 is the mean colour.
    """
    masked = image.expand(len(boxes) + 1, -1, -1, -1).clone()
    for canvas, (top, left, bottom, right) in zip(masked[1:], boxes.tolist(), strict=True):
        canvas[:, top:bottom, left:right] = fill
    signs = {}
    for layer, features in activations(graph_of(model), masked, layers, batch_size).items():
        features = features.flatten(1)
        change = features[:1] - features[1:]
        change[change.abs() <= NO_CHANGE * features[0].abs().max()] = 0
        signs[layer] = change.sign().to(torch.int8)
    return signs


def hamming(signs: Tensor, *, zeros: str = "agree") -> Tensor:
    """The share of dimensions in which signs (M, D) of -1, 0, 1 differ, for every two: (M, M), float64.

    zeros: two zeros "agree"; or "drop" the dimensions in which both are zero.
    """
    if zeros not in ZEROS:
        raise unknown_name("treatment of zeros", zeros, ZEROS)
    product, both = signs.new_zeros(2, len(signs), len(signs), dtype=torch.float64)
    for some in signs.split(2**16, 1):  # whole numbers, exact in float32 up to 2**24
        s = some.float()
        product += s @ s.T  # + 1 where both are the same, - 1 where they are opposite
        both += s.abs() @ s.abs().T  # where neither is zero
    count = both.diagonal()
    either = count[:, None] + count - both  # where not both are zero
    differ = either - (product + both) / 2
    return differ / (either.clamp(min=1) if zeros == "drop" else signs.shape[1])


def permutation_test(distances: Tensor, permutations: int, generator: torch.Generator) -> float:
    """Do the masks 0 of N images agree better than chance?  distances (N, K, N, K) between K masks of each image.

    If the part were as good as any place, any mask of an image could be its mask 0: draw one for each image and compare
    the mean over pairs.  p = (1 + draws that are as small) / (1 + draws).
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


def bootstrap(distances: Tensor, generator: torch.Generator, draws: int = 2000) -> tuple[float, float]:
    """The 95% interval of the mean of distances (N, N) over pairs, by drawing N images with replacement.

    An image drawn twice is no pair with itself.
    """
    images = len(distances)
    drawn = torch.randint(images, (draws, images), generator=generator)
    i, j = torch.triu_indices(images, images, 1)
    one, other = drawn[:, i], drawn[:, j]
    pairs = one != other
    means = (distances[one, other] * pairs).sum(1) / pairs.sum(1)
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
    permutations: int = 9999,
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, dict[str, Consistency]]:
    """Mask each part, and places elsewhere, in N images (3, S, S): by layer, a `Consistency` by part and "random".

    parts: of each image, the same names, with boxes (top, left, bottom, right) as in `zfnet.data.parts`.
    draws: random masks by seed for each part of each image, of the part's size and clear of all parts.
    fill: see `sign_changes`; zeros: see `hamming`.  InputError for fewer than two images and boxes outside their image.
    """
    graph = graph_of(model)
    check_weights(graph.model)
    _check(images, parts, draws, permutations, zeros)
    random = torch.Generator().manual_seed(seed)
    masks = 1 + draws
    found: dict[str, dict[str, Consistency]] = {layer: {} for layer in layers}
    elsewhere: dict[str, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    with tqdm(total=len(images) * len(parts[0]) * masks, unit=" images", desc="masks", disable=not progress) as bar:
        for part in parts[0]:
            signs: dict[str, list[Tensor]] = {layer: [] for layer in layers}
            for image, boxes in zip(images, parts, strict=True):
                mine = torch.tensor([boxes[part]])
                size = (int(mine[0, 2] - mine[0, 0]), int(mine[0, 3] - mine[0, 1]))
                avoid, image_size = torch.tensor(list(boxes.values())), (image.shape[1], image.shape[2])
                both = torch.cat([mine, random_boxes(avoid, size, image_size, draws, random)])
                changes = sign_changes(graph, image, both, layers, fill=fill, batch_size=batch_size)
                for layer, change in changes.items():
                    signs[layer].append(change)
                bar.update(masks)
            for layer in layers:
                every = torch.cat(signs[layer])
                distances = hamming(every, zeros=zeros).cpu().reshape(len(images), masks, len(images), masks)
                changed = every.ne(0).double().mean(1).cpu().reshape(len(images), masks)
                p = permutation_test(distances, permutations, random)
                found[layer][part] = _consistency(distances[:, :1, :, :1], changed[:, 0], random, p)
                elsewhere[layer].append((distances[:, 1:, :, 1:], changed[:, 1:]))
    for layer in layers:
        apart, changed = (torch.cat(some, 1) for some in zip(*elsewhere[layer], strict=True))
        found[layer]["random"] = _consistency(apart, changed, random, None)
    return found


def _consistency(distances: Tensor, changed: Tensor, generator: torch.Generator, p: float | None) -> Consistency:
    """Of distances (N, K, N, L) between masks of N images."""
    i, j = torch.triu_indices(len(distances), len(distances), 1)
    pairs = distances[i, :, j]
    interval = bootstrap(distances.mean((1, 3)), generator)
    spread = float(pairs.std(correction=0))
    return Consistency(float(pairs.mean()), spread, interval, float(changed.mean()), p)


def _check(
    images: Tensor | Sequence[Tensor],
    parts: Sequence[Mapping[str, tuple[int, int, int, int]]],
    draws: int,
    permutations: int,
    zeros: str,
) -> None:
    if len(images) < 2 or len(images) != len(parts):
        raise InputError(
            f"{len(images)} images and parts of {len(parts)}; give two or more images, each with its parts"
        )
    if not parts[0]:
        raise InputError("no parts to mask: give at least one for each image")
    if draws < 1 or permutations < 1:
        raise InputError(f"draws is {draws} and permutations {permutations}; give 1 or more")
    if zeros not in ZEROS:
        raise unknown_name("treatment of zeros", zeros, ZEROS)
    for number, (image, boxes) in enumerate(zip(images, parts, strict=True)):
        if boxes.keys() != parts[0].keys():
            raise InputError(f"image {number} has {', '.join(boxes) or 'no parts'}, and image 0 {', '.join(parts[0])}")
        if image.ndim != 3 or image.shape[1] != image.shape[2]:
            raise InputError(f"image {number} is {' x '.join(map(str, image.shape))}; give squares (3, S, S)")
        for part, (top, left, bottom, right) in boxes.items():
            if not (0 <= top < bottom <= image.shape[1] and 0 <= left < right <= image.shape[2]):
                raise InputError(
                    f"{part} of image {number} (rows {top} to {bottom}, columns {left} to {right}) is not in its"
                    f" {image.shape[1]} x {image.shape[2]} pixels"
                )
