"""
A network that is not plain ReLU
================================

The paper's rules are for ReLU networks. The rule set `extended` is an extension of them: what the forward pass
decided is held fixed, and the rest is transposed. Here a small network with SiLU and group normalisation is trained
for some seconds, and projected.
"""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.data import TensorDataset

import zfnet
from zfnet import Deconvnet, InputError, ZFNet, project_top, scan
from zfnet.data import Scenes
from zfnet.rendering import grid, signed_image
from zfnet.training import Recipe, error_rates, train
from zfnet.weights import load

# %%
# Any module will do, as long as `torch.fx` can trace it. The first layer is that of a network which comes with the
# sources, so that a few seconds of training are enough.

published = Path(zfnet.__file__).parents[1] / "published"
trained = ZFNet(16, maps=(32, 64, 96, 96, 64), hidden=(384, 384))
trained = load(trained, published / "zfnet_small-scenes.safetensors")

torch.manual_seed(0)
model = nn.Sequential(
    OrderedDict(
        conv1=trained.conv1,
        act1=nn.SiLU(),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        norm1=nn.GroupNorm(4, 32),
        conv2=nn.Conv2d(32, 48, 3, padding=1),
        act2=nn.SiLU(),
        pool2=nn.MaxPool2d(2),
        norm2=nn.GroupNorm(6, 48),
        conv3=nn.Conv2d(48, 48, 3, padding=1),
        act3=nn.SiLU(),
        flatten=nn.Flatten(),
        head=nn.Linear(48 * 7 * 7, 16),
    )
)
model = replace(trained.preprocessing, size=64, resize=64).attach(model)
images, labels = zip(*Scenes("train", 320, size=64, transform=model.preprocessing), strict=True)
scenes = TensorDataset(torch.stack(images), torch.tensor(labels))
recipe = Recipe(epochs=12, batch_size=32, learning_rate=0.002, optimizer="adam", max_filter_rms=None)
history = train(model, scenes, recipe=recipe, workers=0, progress=False)
(error,) = error_rates(model, scenes, top=(1,), workers=0)
print(f"loss of the first and of the last epoch: {history[0]['loss']:.2f}, {history[-1]['loss']:.2f}")
print(f"{1 - error:.0%} of these images are recognised")

# %%
# The paper's rules refuse SiLU, and say what to do.

try:
    Deconvnet(model).check(["act3"], image_size=64)
except InputError as refused:
    print(refused)

# %%
# With the extended rules, a SiLU rectifies the signal as a ReLU does, and the normalisation is a scale that the
# forward pass decided.

deconvnet = Deconvnet(model, rules="extended")
top = scan(model, scenes, ["act3"], k=9, progress=False, workers=0)["act3"]
maps = top.value[:, 0].topk(4).indices.tolist()
patches = project_top(deconvnet, scenes, "act3", top, maps, workers=0)

figure, axes = plt.subplots(2, 4, figsize=(9, 4.8), layout="constrained")
crops = model.preprocessing.pixels(patches.crops).clamp(0, 1)
projections = signed_image(patches.projections, together=9)
for column, number in enumerate(maps):
    for axis, tiles in zip(axes[:, column], (crops, projections), strict=True):
        axis.imshow(grid(tiles[9 * column : 9 * column + 9], columns=3, gap=2).permute(1, 2, 0))
        axis.set_axis_off()
    axes[0, column].set_title(f"act3, map {number}")
plt.show()
