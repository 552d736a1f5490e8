"""Stand-ins for what experiments on networks from scratch and on transfer take minutes to make."""

from functools import partial

import torch
from torch import nn
from torch.utils.data import TensorDataset

from experiments.setup.networks import Trained
from zfnet import ZFNet
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.training import Recipe

RECIPE = Recipe(epochs=1, batch_size=8, max_shift=4, seed=7)
TINY = {"maps": [4, 6, 6, 6, 6], "hidden": [8, 8], "image_size": 64, "num_classes": 6, "init": "he"}
ARCHITECTURE = partial(ZFNet, **TINY)
CONTROL = {  # of transfer
    "scratch": partial(ZFNet, maps=(4, 4, 4, 4, 4), hidden=(8,), image_size=64, init="he"),
    "recipe": Recipe(epochs=1, batch_size=8, max_shift=2),
}
HISTORY = [  # of a network in three epochs: its rate fell at the third, and its validation error by no more than 0.4 %
    {"epoch": 1, "validation_error": 0.6, "learning_rate": 0.01},
    {"epoch": 2, "validation_error": 0.5, "learning_rate": 0.01},
    {"epoch": 3, "validation_error": 0.496, "learning_rate": 0.001},
]


def printed(text):
    """The numbers of rows `name | number | - | ...`."""
    rows = [line.split(" | ")[1:] for line in text.strip().splitlines()]
    return [[None if cell == "-" else float(cell) for cell in row] for row in rows]


class Networks:
    """As `experiments.setup.networks.Networks`, but each network is as it begins."""

    preprocessing = Preprocessing(size=64, resize=72)
    classes = ("a", "b", "c", "d", "e", "f")

    def __init__(self):
        images = torch.randint(256, (36, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        self.training = TensorDataset(images[:24], torch.arange(24) % 6)
        self.validation = TensorDataset(images[24:], torch.arange(12) % 6)
        self.made = {}
        self.asked = []

    def trained(self, name, architecture, recipe):
        self.asked.append((name, recipe.seed))
        if (name, recipe) not in self.made:
            torch.manual_seed(recipe.seed)
            model = architecture().eval()
            model.preprocessing = self.preprocessing
            model.known = name, recipe.seed
            self.made[name, recipe] = model
        return Trained(self.made[name, recipe], HISTORY)


def pretrained():
    """A network for transfer; its layer 4 is the last but one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 16))
    model.preprocessing = Preprocessing(size=32, resize=36)
    return model.eval()


def held_out(objects=1):
    """64 images for `pretrained`, of 8 classes."""
    how = Preprocessing(size=32, resize=36)
    return Scenes("val", 64, size=32, classes="held_out", objects=objects, transform=how)
