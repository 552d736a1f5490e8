"""Are the pixels that a picture shows enough for the unit, and does the unit need them?

The strongest pixels of each picture are kept and all others filled, or they are filled and all others kept: which share
of the activation remains, and which is lost? Samek et al. (2017), arXiv:1509.06321.
"""

import torch

from experiments.ablation.intervention import Trials
from experiments.ablation.units import Units
from zfnet.analysis import faithfulness

SHARES = (5, 10, 20)  # percent of the pixels that the unit sees


def trials(units: Units, others: Units) -> tuple[Trials, Trials]:
    """Sufficiency and necessity of one layer: a row for each unit, share and fill, with a column for each picture.

    Args:
        others: units of the same layer, by which the effective field is measured.
    """
    kept: Trials = {name: [] for name in (*units.columns(), "fill", "share")}
    lost: Trials = {name: [] for name in kept}
    rows = torch.arange(len(units.maps))
    grounds = {fill: units.ground(fill) for fill in faithfulness.FILLS}
    for share in SHARES:
        masks = units.masks(others, share) | {"random": units.strongest(units.noise(), share)}
        for fill, ground in grounds.items():
            for columns in (kept, lost):
                same: Trials = {"fill": [fill] * len(rows), "share": [share] * len(rows)}
                for name, column in (same | units.columns()).items():
                    columns[name] += column
            for picture, mask in masks.items():
                left = units.respond(torch.where(mask[:, None], units.crops, ground)) / units.values
                rest = units.respond(torch.where(mask[:, None], ground, units.crops)) / units.values
                kept.setdefault(picture, []).extend(units.answers(picture, left, rows))
                lost.setdefault(picture, []).extend(units.answers(picture, 1 - rest, rows))
    return kept, lost
