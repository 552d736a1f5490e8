"""Pages that a paper can print: text of 7 points or more, TrueType fonts, photographs at 200 pixels an inch.

A `Page` has the width of a page's text, and is filled from the top down in whole pixels, so that pictures are not
resampled. Its height is that of its content, with the caption below. Lines and heat maps are vectors in the PDF.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pikepdf
import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from zfnet.errors import InputError, unknown_name
from zfnet.rendering import grid, resized

DPI = 200
WIDTH = 6.9  # inches: the text of a page of a journal
SIZE = 7.0  # points: the smallest text
LARGEST = 3 * 10**6  # bytes of a PDF
LETTER = 0.53  # mean width of a letter, in sizes of the text
CAPTION_COLOUR = "0.25"
LINE = round(1.3 * SIZE * DPI / 72)  # pixels from one line of text to the next
TILE_GAP = 4  # pixels between the tiles of `Page.tiles`

matplotlib.rcParams.update(
    {
        "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
        "font.size": SIZE,
        "axes.titlesize": SIZE + 1,
        "axes.labelsize": SIZE,
        "xtick.labelsize": SIZE,
        "ytick.labelsize": SIZE,
        "legend.fontsize": SIZE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "figure.facecolor": "white",
    }
)


class Style(NamedTuple):
    """The colours of a figure."""

    heat: str  # name of a colour map
    lines: Sequence[str]


OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
STYLES = {  # "safe" can be told apart by colour-blind readers; doi:10.1038/nmeth.1618
    "safe": Style("viridis", OKABE_ITO),
    "paper": Style("jet", ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#ffff33", "#a65628", "#f781bf")),
}


def style_of(name: str) -> Style:
    """The style of that name. Raises InputError for any other."""
    if name not in STYLES:
        raise unknown_name("style", name, STYLES)
    return STYLES[name]


class Page:
    """A page that is filled from the top down.

    Args:
        width: see `inches`.

    Attributes:
        columns: its width in pixels.
        y: how far down it is filled, in pixels; code that adds content increases it.
        figure: matplotlib's figure; its height is right after `done`.
    """

    def __init__(self, width: float = WIDTH):
        width = inches(width)
        self.columns, self.y = round(width * DPI), 4
        self.figure = Figure(figsize=(width, 1))
        self._axes: list[tuple[Axes, tuple[float, float, float, float]]] = []
        self._texts: list[tuple[Any, float, float]] = []

    def axes(self, x: float, y: float, columns: float, rows: float, **more: Any) -> Axes:
        """Axes of so many pixels, their top left at pixel (x, y)."""
        axes = self.figure.add_axes((0, 0, 1, 1), label=str(len(self._axes)), **more)
        self._axes.append((axes, (x, y, columns, rows)))
        return axes

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        """Text whose middle is at pixel (x, y) from the top left."""
        artist = self.figure.text(0, 0, words, {"va": "center", "size": SIZE} | style)
        self._texts.append((artist, x, y))

    def image(self, image: Tensor, x: float, y: float) -> Axes:
        """An image (3, H, W) in 0..1 pixel for pixel, its top left at (x, y)."""
        axes = self.axes(x, y, image.shape[2], image.shape[1])
        show(axes, image)
        return axes

    def tiles(self, images: Tensor, titles: Sequence[str], x: float, y: float, side: int, frames: Any = ()) -> int:
        """Images (N, 3, H, W) in 0..1 in rows, below titles of the columns; returns how high they are.

        Args:
            images: row by row.
            titles: one for each column.
            x, y: pixel of the top left, where the titles are.
            side: width of an image in pixels.
            frames: a colour for each image, or none.
        """
        size = (round(side * images.shape[2] / images.shape[3]), side)
        pictures = enlarged(images.cpu(), size).clamp(0, 1)
        for picture, colour in zip(pictures, frames, strict=False):
            edge = torch.ones(size, dtype=torch.bool)
            edge[4:-4, 4:-4] = False
            picture[:, edge] = torch.tensor(to_rgb(colour))[:, None]
        for n, title in enumerate(titles):
            self.text(x + side / 2 + n * (side + TILE_GAP), y + LINE / 2, title, ha="center")
        block = grid(pictures, len(titles), TILE_GAP)
        self.image(block, x, y + LINE)
        return LINE + block.shape[1]

    def legend(self, axes: Axes, columns: int = 5) -> None:
        """The names of the lines of some axes, below what is there."""
        handles, names = axes.get_legend_handles_labels()
        height = LINE * math.ceil(len(names) / columns)
        own = self.axes(0, self.y, self.columns, height)
        own.axis("off")
        own.legend(handles, names, loc="center", ncols=columns, frameon=False, borderpad=0)
        self.y += height

    def caption(self, words: str, gap: int = LINE) -> None:
        """Lines over the whole width, below what is there; a line break in the words is one on the page."""
        self.y += gap
        for paragraph in words.splitlines():
            for line in textwrap.wrap(paragraph, letters(self.columns / DPI)):
                self.text(0, self.y + LINE / 2, line, color=CAPTION_COLOUR)
                self.y += LINE

    def done(self) -> Figure:
        """The figure, as high as the page is filled."""
        width, height = self.columns, math.ceil(self.y) + 2
        self.figure.set_size_inches(width / DPI, height / DPI)
        for axes, (x, y, columns, rows) in self._axes:
            axes.set_position((x / width, 1 - (y + rows) / height, columns / width, rows / height))
        for artist, x, y in self._texts:
            artist.set_position((x / width, 1 - y / height))
        return self.figure


def inches(width: float) -> float:
    """A width in inches; above 100 it is taken as pixels (200 to an inch)."""
    wide = width / DPI if width > 100 else width
    if not 2 <= wide <= 40:
        raise InputError(f"width is {width}; give inches from 2 to 40: the text of a page is 6.9 wide")
    return wide


def letters(width: float) -> int:
    """How many letters of the smallest text fit into a line of so many inches."""
    return max(int(width * 72 / (LETTER * SIZE)), 20)


def shortened(name: str, letters: int = 18) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= letters else name[: letters - 1] + "…"


def plots(height: float, width: float = WIDTH) -> Figure:
    """A figure of that size in inches whose axes and words matplotlib arranges."""
    return Figure(figsize=(inches(width), height), layout="constrained")


def caption(figure: Figure, words: str) -> None:
    """The caption of a figure of `plots`, below it."""
    lines = (line for part in words.splitlines() for line in textwrap.wrap(part, letters(figure.get_figwidth())))
    figure.supxlabel("\n".join(lines), x=0.005, ha="left", size=SIZE, color=CAPTION_COLOUR)


def show(axes: Axes, image: Tensor) -> AxesImage:
    """An image (3, H, W) in 0..1 that fills the axes, without ticks and frame."""
    axes.axis("off")
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return axes.imshow(pixels, interpolation="none", aspect="auto")


def heat(axes: Axes, values: Tensor, colours: str | Colormap, **limits: Any) -> QuadMesh:
    """A small map (H, W) as squares of colour, vectors in a PDF."""
    axes.axis("off")
    mesh = axes.pcolormesh(values.cpu().numpy(), cmap=colours, edgecolors="face", linewidth=0.05, **limits)
    axes.invert_yaxis()
    return mesh


def frame(axes: Axes) -> None:
    """A thin grey frame, for a picture that may be white at its edge."""
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color="0.6", linewidth=0.5)


def box(axes: Axes, box: Sequence[float], scale: float = 1.0, colour: str = "white", width: float = 1.0) -> None:
    """A frame (top, left, bottom, right), in image pixels, on an image that is shown `scale` times as large."""
    top, left, bottom, right = (scale * edge - 0.5 for edge in box)
    for edge, line in (("black", width + 1), (colour, width)):  # visible on any background
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=edge, lw=line))


def hatched(image: Tensor, where: Tensor) -> Tensor:
    """An image (3, H, W) in 0..1 with diagonal lines on white `where` (H, W) there is no image."""
    rows, columns = (torch.arange(n, device=image.device) for n in image.shape[-2:])
    lines = torch.where((rows[:, None] + columns) % 6 == 0, 0.72, 1.0)
    return torch.where(where, lines, image)


def enlarged(images: Tensor, size: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """Images or signals (N, C, H, W) at another size; "nearest" shows each pixel as a square where that is larger."""
    if interpolation == "nearest" and min(size) >= min(images.shape[-2:]):
        return torch.nn.functional.interpolate(images, size, mode="nearest-exact")
    if interpolation not in ("bicubic", "nearest"):
        raise unknown_name("interpolation", interpolation, ("bicubic", "nearest"))
    return resized(images, size)


def save(figure: Figure, path: Path) -> None:
    """Write path.png and path.pdf, photographs at 200 pixels an inch in both; the PDF has at most 3 MB."""
    figure.savefig(path.with_suffix(".png"), dpi=DPI)
    lossless = io.BytesIO()
    figure.savefig(lossless, format="pdf", dpi=DPI, metadata={"CreationDate": None})  # the same bytes each time
    for quality in (95, 85, 70, 50):
        content = _with_jpeg(lossless, quality)
        if len(content) <= LARGEST:
            break
    path.with_suffix(".pdf").write_bytes(content)


def _with_jpeg(lossless: io.BytesIO, quality: int) -> bytes:
    """A PDF with its photographs as JPEG; matplotlib only has a lossless form, many times as large."""
    content = io.BytesIO()
    with pikepdf.open(lossless) as pdf:
        for stream in pdf.objects:
            if isinstance(stream, pikepdf.Stream) and stream.get("/ColorSpace") == pikepdf.Name.DeviceRGB:
                jpeg = io.BytesIO()
                pikepdf.PdfImage(stream).as_pil_image().save(jpeg, "JPEG", quality=quality, subsampling=0)
                if jpeg.tell() < len(stream.read_raw_bytes()):
                    stream.write(jpeg.getvalue(), filter=pikepdf.Name.DCTDecode)
        pdf.save(content, deterministic_id=True)
    return content.getvalue()
