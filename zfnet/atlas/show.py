"""One map of an atlas in a notebook, as an object that draws itself, without a file or an installation."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zfnet.atlas.build import check_scan, prepared
from zfnet.atlas.images import Reader
from zfnet.atlas.panels import Painter
from zfnet.atlas.pictures import Bytes, encoded
from zfnet.graph import Graph
from zfnet.operations import Rules
from zfnet.scanning import Scan
from zfnet.scanning import scan as scanned

SMALLEST, LARGEST = 40, 160  # pixels of a tile's longer side, as it is shown
_STYLE = "image-rendering:pixelated;display:block"


@dataclass(frozen=True)
class Panel:
    """The strongest activations of one map, strongest first: n of them.

    It draws itself in a notebook. Where `whole`, crops and projections are whole images, with the field in `boxes`.
    """

    layer: str
    map: int
    values: Tensor  # (n,)
    images: Tensor  # (n,) int64: which images of the dataset
    places: Tensor  # (n, 2) int64: rows and columns
    boxes: Tensor  # (n, 4) int64: top, left, bottom, right in pixels of the image
    crops: Tensor  # (n, 3, h, w) in 0..1, white beyond the image
    projections: Tensor  # (n, C, h, w)
    labels: Sequence[str]  # the names of the images' classes; "" where there is none
    fires: float  # share of the images in which it is above 0
    field: tuple[int, int] | None
    whole: bool
    _tiles: tuple[Bytes, Bytes]

    def __repr__(self) -> str:
        values = ", ".join(f"{value:.3g}" for value in self.values.tolist())
        return f"Panel({self.layer}, map {self.map}: {values or 'never above 0'})"

    def _repr_html_(self) -> str:
        """The panel as one piece of HTML, with its pictures within."""
        rows = zip(("crops", "projections"), self._tiles, strict=True)
        lines = [f"<tr><th>{name}</th>{''.join(map(_cell, tiles))}</tr>" for name, tiles in rows]
        labels = "".join(f"<td>{html.escape(label)}</td>" for label in self.labels)
        values = "".join(f"<td>{value:.4g}</td>" for value in self.values.tolist())
        field = "its field is not known" if self.field is None else f"its field is {self.field[0]} x {self.field[1]}"
        how = "whole images" if self.whole else "what the unit sees"
        return (
            f"<div><p><b>{html.escape(self.layer)}, map {self.map}</b>: above 0 on {self.fires:.1%} of the images; "
            f"{field} pixels; {how}. Mid-grey is 0 in projections, each with its own scale.</p>"
            f"<table style='background:transparent'>{''.join(lines)}<tr><th>value</th>{values}</tr>"
            f"<tr><th>class</th>{labels}</tr></table></div>"
        )


def _cell(tile: Bytes) -> str:
    rows, columns = tile.shape[:2]
    scale = min(max(1, -(-SMALLEST // max(rows, columns))), 16)
    scale = min(scale, max(1, LARGEST // max(rows, columns)))
    picture = base64.b64encode(encoded(tile, "webp", lossless=True)).decode()
    size = f"width={columns * scale} height={rows * scale}"
    return f"<td><img alt='' style='{_STYLE}' {size} src='data:image/webp;base64,{picture}'></td>"


def show(
    model: nn.Module | Graph,
    dataset: Any,
    layer: str | nn.Module,
    map: int,
    *,
    scan: Scan | None = None,
    k: int = 9,
    rules: Rules | str = "deconvnet",
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> Panel:
    """The strongest activations of a feature map, and their projections, for a notebook.

    Args:
        model: the network.
        dataset: what `as_images` takes.
        layer: a step's or a module's name, or the module.
        map: its number.
        scan: of that layer with `gather=True`; saves the pass over the images.
        k: winners; of a `scan` that is given, its own.
        rules: of the projections; see Deconvnet.
        batch_size, workers, progress: as of `zfnet.scan`.
    Raises InputError for a layer or map that does not exist.
    """
    if scan is not None:
        k = next((top.value.shape[1] for top in scan.values()), k)
    job = prepared(model, dataset, [layer], [map], rules, k)
    (about,) = job.layers
    if scan is None:
        reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
        scan = scanned(job.graph, job.images, job.names, k, gather=True, **reading)
    top = check_scan(scan, job)[about.name]
    assert scan.statistics is not None
    reader = Reader(job.images, {}, job.image_size, job.graph.channels, workers)
    painter = Painter(job.deconvnet, job.preprocessing, job.image_size, reader)
    units = top.units([map])
    won = ((units[:, 0] >= 0) & (top.unclipped[map] > 0)).nonzero().flatten()
    crops, projections, tiles = painter.whole_canvases(about, units, won)
    names = [*job.images.classes]
    labels = [reader.label(image) for image in units[won, 0].tolist()]
    said = ["" if n < 0 else str(names[n]) if n < len(names) else str(n) for n in labels]
    fires = int(scan.statistics[about.name].fires[map]) / max(1, scan.images)
    return Panel(
        about.name,
        map,
        top.value[map][won],
        units[won, 0],
        units[won, 2:],
        painter.boxes(about, units[won]),
        crops,
        projections,
        said,
        fires,
        about.table.receptive_field,
        about.whole,
        tiles,
    )
