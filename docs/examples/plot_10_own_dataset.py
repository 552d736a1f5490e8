"""
A dataset of your own
=====================

A dataset is anything with items by index. Subclass `Images` to say more: names of classes and files, and which images
cannot be read. Here the images are gratings, and the question is which orientation each map of a network prefers.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import zfnet
from zfnet import ZFNet, scan
from zfnet.data import BrokenImage, Images
from zfnet.rendering import grid, signed_image
from zfnet.weights import load

published = Path(zfnet.__file__).parents[1] / "published"
model = ZFNet(16, maps=(32, 64, 96, 96, 64), hidden=(384, 384))
model = load(model, published / "zfnet_small-scenes.safetensors")

# %%
# `__len__` and `__getitem__` are all that is needed. An item is an image as the network is given it, and a label. An
# image that cannot be read raises `BrokenImage`: the scan leaves it out, and names it.


class Gratings(Images):
    """Gratings of some orientations and periods."""

    classes = tuple(f"{degrees} degrees" for degrees in range(0, 180, 15))

    def __init__(self, periods, size, transform):
        self.periods, self.size, self.transform = periods, size, transform
        self.labels = [label for label in range(len(self.classes)) for _ in periods]

    def __len__(self):
        return len(self.labels) + 1

    def __getitem__(self, index):
        if index == len(self.labels):
            raise BrokenImage(f"{self.file(index)}: there is no such grating")
        label, period = self.labels[index], self.periods[index % len(self.periods)]
        angle = torch.deg2rad(torch.tensor(15.0 * label))
        rows, columns = torch.meshgrid(*[torch.arange(float(self.size))] * 2, indexing="ij")
        phase = (rows * angle.cos() - columns * angle.sin()) * 2 * torch.pi / period
        return self.transform((0.5 + 0.5 * phase.sin()).expand(3, -1, -1)), label

    def file(self, index):
        return f"grating {index}"


gratings = Gratings(periods=(4, 6, 8, 12), size=224, transform=model.preprocessing)
found = scan(model, gratings, ["relu1"], k=1, progress=False, workers=0)
print(f"{found.images} images were read; not read: {found.broken}")

# %%
# Each map of layer 1, by the orientation of the grating that it responds to most.

top = found["relu1"]
preferred = torch.tensor(gratings.labels)[top.image[:, 0]]
order = preferred.argsort(stable=True)
filters = signed_image(model.conv1.weight.detach())
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
axes[0].bar(range(len(gratings.classes)), preferred.bincount(minlength=len(gratings.classes)))
axes[0].set(xticks=range(0, 12, 3), xticklabels=gratings.classes[::3], ylabel="maps", title="preferred orientation")
axes[1].imshow(grid(filters[order], columns=8, gap=1).permute(1, 2, 0), interpolation="nearest")
axes[1].set_title("filters, in the same order")
axes[1].set_axis_off()
plt.show()
