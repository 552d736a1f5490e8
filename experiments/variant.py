"""One network of Table 3, trained where Tables 2 and 3 find it, for sweeps and clusters.

python experiments/run.py -m experiment=variant "variant=fig3,'fig3 fc 2048'" seed=0,1
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from experiments.output.results import Result
from experiments.setup.networks import Networks
from experiments.tables.variants import contents, measurements
from zfnet.model import variant as variant_of
from zfnet.training import Recipe


def main(
    out: str | Path,
    *,
    networks: Networks,
    architecture: Callable[..., nn.Module],
    recipe: Recipe,
    variant: str = "fig3",
    fresh: bool = False,
) -> dict[str, Any]:
    """Train one network of Tables 2 and 3 where they find it, if it does not exist, and measure its errors.

    Args:
        out: the folder of the result.
        networks: where networks are kept.
        architecture: a partial of ZFNet, from which the variant is made.
        recipe: how it is trained; its seed is the network's.
        variant: its name, a row of Table 3.
        fresh: restart an interrupted training instead of resuming it.
    """
    result = Result("variant", out, locals())
    changes = variant_of(variant, **architecture.keywords)  # type: ignore[attr-defined]
    trained = networks.trained(variant, lambda: architecture(**changes), recipe)
    result.settings |= {"images": len(networks.training), "validation_images": len(networks.validation), "unit": "%"}
    result.settings["classes"] = networks.classes
    result.settings["digests"] = {"training": contents(networks.training), "validation": contents(networks.validation)}
    return result.finish(measurements(trained, networks))
