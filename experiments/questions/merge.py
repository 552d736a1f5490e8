"""Merge the shards of a scan, made by experiment=scan shard=0/64 to 63/64, into the scan that other experiments read.

The result equals the scan of one process, bit for bit: counts and sums of whole numbers do not depend on their order,
nor do the strongest of the strongest. If a shard is missing, or belongs to another network or other images, an error
names it and nothing is merged.
"""

from pathlib import Path
from typing import Any

from torch import nn

from experiments.output.feature_maps import scan_table
from experiments.output.results import Result
from experiments.setup.hints import Count
from zfnet import InputError
from zfnet.scan_files import merge_shards, read_scan
from zfnet.scanning import scan_identity


def main(
    model: nn.Module, data: Any, out: str | Path, *, scans: Path, count: Count | None = None, distinct: bool = True
) -> dict[str, Any]:
    """Merge the shards of a scan.

    Args:
        model: the network that was scanned.
        data: the images.
        out: the folder of the result.
        scans: the folder of kept scans of this network and these images; the shards are in it.
        count: number of shards; null: as the shards record it.
        distinct: as in the scan.
    """
    result = Result("merge", out, locals())
    layers = merge_shards(model, data, scans, count, distinct=distinct)
    merged = read_scan(scans, scan_identity(model, data, distinct), layers)
    if merged is None:
        raise InputError(f"the scan in {scans} was replaced by another run meanwhile; run this again")
    text, ours = scan_table(merged, max(top.value.shape[1] for top in merged.values()))
    result.text(text)
    return result.finish(ours)
