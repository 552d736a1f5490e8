"""Scans that are kept in a folder: read again where their identity is the same, and only the layers asked for.

`top.safetensors` has the winners, `<layer>/value`, `/image`, `/row`, `/column`, and `/unclipped` where the layer clips;
`statistics.safetensors` has what was gathered, `<layer>/fires`, `/histogram`, `/sums`, `/maxima`, `/places`, with
`sampled` and `class_images`. `scan.json` says of what network and images they are, with a digest of every layer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from zfnet.graph import Graph
from zfnet.identity import Identity
from zfnet.scanning import Scan, scan


def write_scan(folder: str | Path, scan: Scan, identity: Identity) -> None:
    """Write a scan with its statistics into a folder; see `scan_identity`. The same scan has the same bytes."""
    raise NotImplementedError


def read_scan(
    folder: str | Path, identity: Identity, layers: Sequence[str] | None = None, k: int | None = None
) -> Scan | None:
    """The scan that a folder keeps; None where there is none of this identity, of these layers, or of as many as k.

    Args:
        folder: of `write_scan`.
        identity: what a scan would depend on now; see `scan_identity`.
        layers: to read, by name; None: all that there are. No other is loaded.
        k: winners of each map; None: as many as there are.
    Raises InputError for a folder that is damaged.
    """
    raise NotImplementedError


def kept_scan(
    model: nn.Module | Graph, dataset: Any, folder: str | Path, layers: Sequence[str], k: int = 9, **reading: Any
) -> Scan:
    """The scan of these layers with its statistics that a folder keeps; what it lacks is scanned now, and kept there.

    A scan that is interrupted goes on where it was. Under `torchrun` the processes share the work.

    Args:
        reading: batch_size, workers, progress, fresh, and distinct, as `zfnet.scan` takes them.
    """
    return scan(model, dataset, layers, k, gather=True, shared=True, **reading)
