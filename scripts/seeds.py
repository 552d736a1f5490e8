"""What docs/units.md says of networks that were trained with several seeds: tables from the committed results.

scripts/report.py writes them into the page.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from experiments.output.tables import table
from experiments.questions.seeds import summary

PAPERS = "seeds/zfnet_small-scenes"  # the result with the paper's learning rate


def likeness(results: Mapping[str, Any]) -> str:
    """How alike the units of several runs are: what the command printed.

    Args:
        results: those of experiment=seeds, by folder.
    """
    return summary(results[PAPERS]["ours"])


def dead_maps(results: Mapping[str, Any], published: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """How many maps of each layer are dead in each run, by the learning rate of the training.

    Args:
        results: those of experiment=seeds, by folder.
        published: what is known of the network of scenes that comes with the sources.
        metadata: that of its file.
    """
    rows = []
    for result in results.values():
        ours, settings = result["ours"], result["settings"]
        recipe, size = settings["recipe"], settings["architecture"]["image_size"]
        seeds = ", ".join(map(str, ours["seeds"]))
        dead = [f"{', '.join(map(str, n['dead'].values()))} of {n['maps']}" for n in ours["layers"].values()]
        error = statistics.mean(ours["validation_error"].values())
        name = f"seeds {seeds}; {size} pixels, {recipe['epochs']} epochs"
        rows.append([name, f"{recipe['learning_rate']:g}", *dead, f"{100 * error:.1f}"])
    dead = [f"{count['dead']} of {count['maps']}" for count in published["dead_maps"].values()]
    name = f"the published network; {metadata['preprocessing']['size']} pixels, {published['trained']['epochs']} epochs"
    error = published["validation_error"]["1 crops"]["top1"]
    rows.append([name, f"{metadata['identity']['learning_rate']:g}", *dead, f"{100 * error:.1f}"])
    head = ["trained with", "learning rate", *published["dead_maps"], "validation error, %"]
    return table(head, rows)
