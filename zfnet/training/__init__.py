"""Train a network as the paper did, on a CPU or several GPUs, and measure its errors.

recipe -> loop -> checkpoints, evaluation. Zeiler & Fergus (2014), section 3.
"""

from zfnet.data.crops import in_memory
from zfnet.processes import processes
from zfnet.training.checkpoints import Checkpoint, run_identity
from zfnet.training.evaluation import error_rates, missed, network_input
from zfnet.training.loop import Diverged, History, filter_rms, rate_falls, renormalise, train
from zfnet.training.recipe import Recipe

__all__ = [
    "Checkpoint",
    "Diverged",
    "History",
    "Recipe",
    "error_rates",
    "filter_rms",
    "in_memory",
    "missed",
    "network_input",
    "processes",
    "rate_falls",
    "renormalise",
    "run_identity",
    "train",
]
