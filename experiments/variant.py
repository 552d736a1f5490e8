"""One network of Table 3, trained where Tables 2 and 3 find it: what a sweep or a cluster does one by one.

python experiments/run.py -m experiment=variant "variant=fig3,'fig3 fc 2048'" seed=0,1
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from experiments.output.results import Provenance, results, write_result
from experiments.setup.networks import Networks
from zfnet.model import variant as variant_of
from zfnet.training import Recipe


def main(
    out: str | Path,
    *,
    networks: Networks,
    architecture: Callable[..., nn.Module],
    recipe: Recipe,
    variant: str = "fig3",
) -> dict[str, Any]:
    """Train the variant of that name unless it is there; write its errors by epoch."""
    provenance = Provenance(seed=recipe.seed)
    changes = variant_of(variant, **architecture.keywords)  # type: ignore[attr-defined]
    _, history = networks.trained(variant, lambda: architecture(**changes), recipe)
    ours = {"history": history}
    with results(out) as folder:
        return write_result(folder, "variant", {"history": None}, ours, {"variant": variant}, provenance)
