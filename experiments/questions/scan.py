"""The scan that the atlas and the ablation use: one pass over the images, for all maps of all layers at once.

For every feature map it keeps the strongest images, and how often and how strongly it fires, by class. Processes of
torchrun share the scan. So do shards, shard=0/64 to 63/64, in any order and on any computers; experiment=merge merges
them. An interrupted run resumes, and layers that were scanned before are read.
"""

from pathlib import Path
from typing import Any, Literal

from torch import nn
from typing_extensions import Unpack

from experiments.output.feature_maps import scan_table
from experiments.output.results import Result
from experiments.setup.checks import as_list
from experiments.setup.hints import Count, Names
from experiments.setup.options import Reading
from zfnet import InputError
from zfnet.data.preprocessing import Preprocessing
from zfnet.extended import RULE_SETS
from zfnet.graph import Graph
from zfnet.layers import chosen
from zfnet.scan_files import kept_scan


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    scans: Path,
    layers: Names | Literal["auto", "all"] = "auto",
    k: Count = 9,
    distinct: bool = True,
    shard: str | None = None,
    rules: Literal["deconvnet", "extended", "gradient", "guided"] = "deconvnet",
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Scan the images, and keep the strongest activations and statistics of every map.

    Args:
        model: the network.
        data: the images.
        out: the folder of the result.
        scans: the folder of kept scans of this network and these images.
        layers: by name; "auto": five, spread over the depth; "all": every layer whose units can be projected.
        k: number of images to keep for each map.
        distinct: keep an image once for each map, at its strongest position; otherwise any positions.
        shard: scan only a part, NUMBER/COUNT, numbered from 0, such as 3/64; null: everything.
        rules: a rule set; "all" layers are those that it can project.
        reading: see `Reading`.
    """
    result = Result("scan", out, locals())
    graph = Graph(model)
    size = Preprocessing.of(model).size
    names = chosen(graph, size, layers if layers in ("auto", "all") else as_list(layers), RULE_SETS[rules])
    part = None if shard is None else part_of(shard)
    scanned = kept_scan(graph, data, scans, names, k, shard=part, distinct=distinct, **reading)
    result.settings["layers"] = names
    text, ours = scan_table(scanned, k)
    result.text(text)
    return result.finish(ours)


def part_of(shard: str) -> tuple[int, int]:
    """Number and count of a shard."""
    number, _, count = shard.partition("/")
    if number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    raise InputError(f"shard is {shard}; give NUMBER/COUNT, numbered from 0: 0/64 to 63/64")
