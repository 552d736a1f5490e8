"""Settings that many experiments share, documented once: a main takes them as `**options: Unpack[Showing]`."""

from typing import Any

from typing_extensions import TypedDict


class Reading(TypedDict, total=False):
    """How images are read.

    Args:
        batch_size: images in a batch.
        workers: processes that read images; null: one for each core, up to eight.
        progress: show progress bars.
    """

    batch_size: int
    workers: int | None
    progress: bool


class Showing(Reading, total=False):
    """How projections are made and shown.

    Args:
        rules: how the signal goes back: "deconvnet", "guided" or "gradient".
        collisions: what overlapping pooling windows do with a place that several of them send to: "add", "max", ...
        norm: contrast normalisation in reverse: passed through ("identity", as in the paper), or "gradient".
        contrast: a projection's scale ends at this quantile of its non-zero absolute values.
        colour: "rgb", or "grey": the mean of a projection's colours.
        interpolation: "bicubic", or "nearest", which shows pixels as squares.
        width: of the page, inches; above 100, pixels.
    """

    rules: str
    collisions: str
    norm: str
    contrast: float
    colour: str
    interpolation: str
    width: float


READING: dict[str, Any] = {"batch_size": 64, "workers": None, "progress": True}
SHOWING: dict[str, Any] = {
    "rules": "deconvnet",
    "collisions": "add",
    "norm": "identity",
    "contrast": 0.995,
    "colour": "rgb",
    "interpolation": "bicubic",
    "width": 6.9,
}
