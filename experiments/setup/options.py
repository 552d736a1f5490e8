"""Settings that many experiments share, documented once: a main takes them as `**options: Unpack[Showing]`."""

from typing import Any, Literal

from typing_extensions import TypedDict

from experiments.setup.hints import Count, Natural, Share, Width


class Reading(TypedDict, total=False):
    """How images are read, and whether an interrupted run resumes.

    Args:
        batch_size: images in a batch.
        workers: processes that read images; null: one for each core, up to eight.
        progress: show progress bars.
        fresh: discard the state of an interrupted run (scans, features, measurements, checkpoints) and start again.
    """

    batch_size: Count
    workers: Natural | None
    progress: bool
    fresh: bool


class Showing(Reading, total=False):
    """How projections are made and shown.

    Args:
        rules: the rule set: "deconvnet", "extended" (docs/rules.md), "guided" or "gradient".
        collisions: the value of a place to which several overlapping pooling windows send: "add", "max", ...
        norm: contrast normalisation in reverse: "identity" passes the signal through, as in the paper; or "gradient".
        contrast: a projection's scale ends at this quantile of its non-zero absolute values.
        colour: "rgb", or "grey": the mean of a projection's colours.
        interpolation: "bicubic", or "nearest", which shows pixels as squares.
        width: of the page, inches; above 100, pixels.
    """

    rules: Literal["deconvnet", "extended", "gradient", "guided"]
    collisions: Literal["add", "overwrite", "max"]
    norm: Literal["identity", "gradient"]
    contrast: Share
    colour: Literal["rgb", "grey"]
    interpolation: Literal["bicubic", "nearest"]
    width: Width


class Stateless(TypedDict, total=False):
    """How images are read, for experiments that keep no state."""

    batch_size: int
    workers: int | None
    progress: bool


def stateless(reading: Reading) -> Stateless:
    """`Reading` without `fresh`."""
    rest: Any = {name: value for name, value in reading.items() if name != "fresh"}
    return rest


READING: dict[str, Any] = {"batch_size": 64, "workers": None, "progress": True, "fresh": False}
SHOWING: dict[str, Any] = {
    "rules": "deconvnet",
    "collisions": "add",
    "norm": "identity",
    "contrast": 0.995,
    "colour": "rgb",
    "interpolation": "bicubic",
    "width": 6.9,
}
