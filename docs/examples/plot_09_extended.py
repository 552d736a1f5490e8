"""
A network that is not plain ReLU
================================

The paper's rules are for ReLU networks. The rule set `extended` is an extension of them: what the forward pass
decided is held fixed, and the rest is transposed. Here a small network with SiLU and group normalisation is trained
for some seconds, and projected.
"""

from collections import OrderedDict

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.data import TensorDataset

from zfnet import Deconvnet, InputError, project_top, scan
from zfnet.data import Preprocessing, Scenes
from zfnet.rendering import grid, signed_image
from zfnet.training import Recipe, error_rates, train

# %%
# Any module will do, as long as `torch.fx` can trace it.

torch.manual_seed(0)
model = nn.Sequential(
    OrderedDict(
        conv1=nn.Conv2d(3, 24, 5, stride=2, padding=2),
        act1=nn.SiLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(24, 48, 3, padding=1),
        norm2=nn.GroupNorm(6, 48),
        act2=nn.SiLU(),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(48, 48, 3, padding=1),
        act3=nn.SiLU(),
        flatten=nn.Flatten(),
        head=nn.Linear(48 * 6 * 6, 16),
    )
)
model = Preprocessing(size=48, resize=48, mean=0.5, std=0.25).attach(model)
images, labels = zip(*Scenes("train", 320, size=48, transform=model.preprocessing), strict=True)
scenes = TensorDataset(torch.stack(images), torch.tensor(labels))
recipe = Recipe(epochs=12, batch_size=32, learning_rate=0.002, optimizer="adam", max_filter_rms=None)
history = train(model, scenes, recipe=recipe, workers=0, progress=False)
(error,) = error_rates(model, scenes, top=(1,), workers=0)
print(f"loss of the first and of the last epoch: {history[0]['loss']:.2f}, {history[-1]['loss']:.2f}")
print(f"{1 - error:.0%} of these images are recognised")

# %%
# The paper's rules refuse SiLU, and say what to do.

try:
    Deconvnet(model).check(["act3"], image_size=48)
except InputError as refused:
    print(refused)

# %%
# With the extended rules, a SiLU rectifies the signal as a ReLU does, and the normalisation is a scale that the
# forward pass decided.

deconvnet = Deconvnet(model, rules="extended")
top = scan(model, scenes, ["act2"], k=9, progress=False, workers=0)["act2"]
maps = top.value[:, 0].topk(4).indices.tolist()
patches = project_top(deconvnet, scenes, "act2", top, maps, workers=0)

figure, axes = plt.subplots(2, 4, figsize=(9, 4.8), layout="constrained")
crops = model.preprocessing.pixels(patches.crops).clamp(0, 1)
projections = signed_image(patches.projections, together=9)
for column, number in enumerate(maps):
    for axis, tiles in zip(axes[:, column], (crops, projections), strict=True):
        axis.imshow(grid(tiles[9 * column : 9 * column + 9], columns=3, gap=2).permute(1, 2, 0))
        axis.set_axis_off()
    axes[0, column].set_title(f"act2, map {number}")
plt.show()
