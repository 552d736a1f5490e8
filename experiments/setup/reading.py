"""How images are read: settings that every experiment on images has."""

from typing_extensions import TypedDict


class Reading(TypedDict, total=False):
    """How images are read, the same in every experiment.

    Args:
        batch_size: images in a batch.
        workers: processes that read images; None: one for each core, up to eight.
        progress: show progress bars.
    """

    batch_size: int
    workers: int | None
    progress: bool


DEFAULTS: dict[str, int | bool | None] = {"batch_size": 64, "workers": None, "progress": True}
