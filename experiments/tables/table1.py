"""Table 1: does masking the same part of different images change their features alike?

The caption's sense: the sign-Hamming distance between the changes of features, of layers 5 and 7, when the right eye,
the left eye or the nose is masked in images of dogs, and when random places are. The picture shows the masks, as
Figure 8.

What to look for: lower than random means that the layer relates the part in different images. In the paper the eyes
and the nose are well below random in layer 5 and hardly in layer 7, which tells breeds apart. Compare it with the share
of features that a mask changes at all: two masks that change little agree a lot. With match=changed the
random masks change as many features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from experiments.output.feature_maps import network_name, which_layers
from experiments.output.pages import TILE_GAP, Page
from experiments.output.results import Result
from experiments.output.tables import table
from experiments.setup.checks import stand_for
from experiments.setup.hints import Count, Finite, Length, Limits, Names, Seed, Width
from experiments.setup.options import Reading, stateless
from zfnet import InputError
from zfnet.analysis.correspondence import Consistency, correspondence, random_boxes
from zfnet.data.images import Box, as_images
from zfnet.data.parts import parts_of
from zfnet.data.preprocessing import Preprocessing
from zfnet.graph import Graph

PAPER = {  # layers 5 and 7; what is behind the +- is not said
    "right eye": ([0.067, 0.007], [0.069, 0.015]),
    "left eye": ([0.069, 0.007], [0.068, 0.013]),
    "nose": ([0.079, 0.017], [0.069, 0.011]),
    "random": ([0.107, 0.017], [0.073, 0.014]),
}


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Annotated[Sequence[str], Length(2)] = ("relu5", "relu7"),
    parts: str | None = None,
    names: Names = ("right eye", "left eye", "nose"),
    kind: str | None = "dog",
    count: Annotated[int, Limits(2)] | None = None,
    draws: Count = 20,
    seed: Seed = 0,
    fill: Finite = 0.0,
    zeros: Literal["agree", "drop"] = "agree",
    match: Literal["size", "changed"] = "size",
    permutations: Count = 9999,
    width: Width = 6.9,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Mask the same parts of different images; print how similar the changes of features are, and draw the masks.

    Args:
        model: the network.
        data: the images.
        out: the folder of the result.
        layers: two, which stand for the paper's 5 and 7.
        parts: a CSV file (file, part, x, y, side); null: the boxes of the data set.
        names: of the parts to mask.
        kind: the class of the images, if the data set has boxes; null: all that have the parts.
        count: number of images, drawn by seed (the paper: 5); null: all.
        draws: random masks for each part of each image.
        seed: of images, random masks and permutations.
        fill: the mask, in normalised images, where 0 is the mean colour.
        zeros: features that change in neither image "agree", or are left out ("drop").
        match: random masks have the part's "size"; or, of several sizes, have "changed" as many features.
        permutations: draws of the permutation test.
        width: of the page, inches.
        reading: see `Reading`.
    """
    result, page = Result("table1", out, locals()), Page(width)
    stand_for(layers, (5, 7))
    boxes = _boxes(data, names, parts, kind, count, seed)
    images, masks, graph = [data[i][0] for i in boxes], list(boxes.values()), Graph(model)
    how: Any = {k: v for k, v in stateless(reading).items() if k != "workers"}
    how |= {"fill": fill, "zeros": zeros, "match": match, "draws": draws, "seed": seed, "permutations": permutations}
    consistency = correspondence(graph, images, masks, layers, **how)
    notes = _notes(len(images), draws, permutations, match)
    result.text(f"{_table(consistency, layers)}\n\n{notes}\n{which_layers(graph, layers, (5, 7))}")
    draw(page, images[:5], masks[:5], fill, Preprocessing.of(model), seed)
    page.caption(_caption(model, len(images), fill))
    result.figure(page.done())
    ours: dict[str, Any] = {part: [_entry(consistency[layer][part]) for layer in layers] for part in (*names, "random")}
    paper: dict[str, Any] = {part: _paper(part) for part in ours}
    ours["images"] = [as_images(data).file(i) or i for i in boxes]
    ours["boxes"] = [{part: list(box) for part, box in of.items()} for of in masks]
    result.settings["image_size"] = images[0].shape[-1]
    return result.finish(ours, paper)


def _caption(model: nn.Module, images: int, fill: float) -> str:
    return (
        f"The masks of Table 1, on {min(5, images)} of the {images} images of {network_name(model)}: the value "
        f"{fill:g} in normalised images, where 0 is the mean colour. Random ones have the first part's size."
    )


def _boxes(
    data: Any, names: Sequence[str], parts: str | None, kind: str | None, count: int | None, seed: int
) -> dict[int, dict[str, Box]]:
    """The boxes of the parts by image, for all images that have them, or `count` of them."""
    if not names:
        raise InputError("names is empty: give the parts to mask")
    boxes = parts_of(data, names, table=parts, kind=kind)
    if count is not None and not 2 <= count <= len(boxes):
        raise InputError(f"count is {count}; give 2 to {len(boxes)}: so many images have {', '.join(names)}")
    chosen = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(seed))[:count].sort().values.tolist()
    images = list(boxes)
    return {images[n]: boxes[images[n]] for n in chosen}


def _entry(c: Consistency) -> dict[str, Any]:
    return {"mean": c.mean, "spread": c.spread, "interval": list(c.interval), "p": c.p, "changed": c.changed}


def _paper(part: str) -> list[dict[str, float]] | None:
    return [{"mean": mean, "spread": spread} for mean, spread in PAPER[part]] if part in PAPER else None


def _table(consistency: dict[str, dict[str, Consistency]], layers: Sequence[str]) -> str:
    head = ["occluded"]
    for number, layer in zip((5, 7), layers, strict=True):
        head += [f"paper, layer {number}", f"ours, {layer}", "95% of the mean", "p", "changed"]
    rows: list[list[Any]] = []
    for part in consistency[layers[0]]:
        row = [part]
        for n, layer in enumerate(layers):
            c = consistency[layer][part]
            published = "{:.3f} ± {:.3f}".format(*PAPER[part][n]) if part in PAPER else ""
            digits = max(3, 1 - int(f"{c.mean:e}"[-3:]))  # two that count
            mean, spread, low, high = (f"{value:.{digits}f}" for value in (c.mean, c.spread, *c.interval))
            row += [published, f"{mean} ± {spread}", f"{low} to {high}"]
            row += ["" if c.p is None else f"{c.p:.4f}", f"{c.changed:.1%}"]
        rows.append(row)
    return table(head, rows)


def _notes(images: int, draws: int, permutations: int, match: str) -> str:
    alike = "of its size" if match == "size" else "that change most nearly as many features"
    return (
        f"Mean sign-Hamming distance over the {images * (images - 1) // 2:,} pairs of {images} images, ± its standard "
        "deviation over pairs; 95% by drawing the images again; changed: the share of features that a mask changes.\n"
        f"p, one-sided: how often masks agree as well as the part's, in {permutations:,} draws of one for each image "
        f"from the part's and {draws} random ones {alike}."
    )


def draw(
    page: Page,
    images: Sequence[Tensor],
    parts: Sequence[dict[str, Box]],
    fill: float,
    preprocessing: Preprocessing,
    seed: int,
) -> None:
    """Each image as it is, with each part masked, and with masks at two random places."""
    random = torch.Generator().manual_seed(seed)
    titles = ["image", *parts[0], "random", "random"]
    tiles = []
    for image, boxes in zip(images, parts, strict=True):
        top, left, bottom, right = next(iter(boxes.values()))
        avoid = torch.tensor(list(boxes.values()))
        size = bottom - top, right - left
        masks = [*boxes.values(), *random_boxes(avoid, size, (image.shape[1], image.shape[2]), 2, random).tolist()]
        for top, left, bottom, right in [(0, 0, 0, 0), *masks]:
            picture = image.clone()
            picture[:, top:bottom, left:right] = fill
            tiles.append(preprocessing.pixels(picture))
    side = (page.columns + TILE_GAP) // len(titles) - TILE_GAP
    page.y += page.tiles(torch.stack(tiles), titles, 0, page.y, side)
