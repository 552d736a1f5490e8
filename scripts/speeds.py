"""What scripts/bench.py measured of speed, as tables: of docs/guides/speed.md, README.md and paper.md.

Each benchmark has a file, results/bench/<name>.json. A row is there if its file is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.output.tables import table

BENCHES = ("forward", "scan", "project", "extended", "record", "ablation", "occlusion")
WORDS = {  # what a row measures, for readers
    "forward, batch 1": "forward pass, batch 1",
    "forward, batch 16": "forward pass, batch 16",
    "scan relu1..relu5": "`scan` of relu1 to relu5",
    **{f"project relu{n}": f"`project_units`, layer {n}" for n in range(1, 6)},
    "project, all five": "`project_units`, all five layers",
    "extended, all five": "`project_units` by `EXTENDED`, five layers of EfficientNet-B0",
    "trace and record": "trace and `record` ResNet50",
    "ablate, all five": "`Deconvnet.activations_of`, all five layers",
    "occlude ZFNet": "`occlusion_maps`, ZFNet",
    "occlude VGG11": "`occlusion_maps`, VGG11",
    "occlude SqueezeNet": "`occlusion_maps`, SqueezeNet",
}
SHORT = ("scan relu1..relu5", "project relu1", "project relu5", "project, all five", "occlude ZFNet")
Rows = Sequence[Mapping[str, Any]]


def against(row: Mapping[str, Any]) -> str:
    """What a row is measured against, without what else was noted of it."""
    return str(row["against"]).partition(";")[0]


def speed_table(rows: Rows, names: Sequence[str] = tuple(WORDS)) -> str:
    """Milliseconds an item of ours and theirs, and their quotient; of occlusion also that of the multiply-adds."""
    chosen = [row for row in rows if row["what"] in names]
    bound = any("bound" in row for row in chosen) and all(row["what"].startswith("occlude") for row in chosen)
    cells = []
    for row in chosen:
        times = [f"{row[f'{whose} ms per item']:.3f}" for whose in ("ours", "theirs")]
        more = [f"{row['bound']:.2f}" if "bound" in row else ""] * bound
        cells.append([WORDS[row["what"]], *times, f"{row['ratio']:.2f}", *more, against(row)])
    head = ["", "ours, ms an item", "theirs, ms an item", "ratio", *["multiply-adds"] * bound, "against"]
    return table(head, cells)


def ratio(rows: Rows, what: str, beside: str) -> float | None:
    """How many times quicker, of the row that is measured against what has `beside` in its name; None if none is."""
    found = [row["ratio"] for row in rows if row["what"] == what and beside in row["against"]]
    return float(found[0]) if found else None


def times(rows: Rows, what: str, beside: str) -> str:
    """The same in words."""
    value = ratio(rows, what, beside)
    if value is None:
        return f"not measured beside {beside}"
    return f"{value:.0f} times as fast as {beside}" if value >= 10 else f"{value:.1f} times as fast as {beside}"
