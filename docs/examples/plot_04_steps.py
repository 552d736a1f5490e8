"""
The way down, step by step
==========================

How does one activation get back to pixels? The deconvnet walks the network backwards: it *unpools* by the switches,
*rectifies* the signal, and *filters* it with the transposed weights.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import zfnet
from zfnet import Deconvnet, ZFNet
from zfnet.data import Scenes
from zfnet.rendering import signed_image
from zfnet.weights import load

published = Path(zfnet.__file__).parents[1] / "published"
model = ZFNet(16, maps=(32, 64, 96, 96, 64), hidden=(384, 384))
model = load(model, published / "zfnet_small-scenes.safetensors")
scenes = Scenes("val", 16, transform=model.preprocessing)
image, label = scenes[12]

# %%
# Record a forward pass up to layer 5: its activations, and the switches of every pooling below.

deconvnet = Deconvnet(model)
recording = deconvnet.record(image[None], ["relu5"])
activations = recording.activations["relu5"]
print("switches of", ", ".join(recording.switches))

# %%
# The signal starts as the strongest activation, and zero everywhere else.

signal = torch.where(activations == activations.max(), activations, 0)
steps = deconvnet.steps(recording, "relu5", signal)
for name, operation, result in steps:
    shape, left = tuple(result.shape[1:]), int((result != 0).sum())
    print(f"{name:6} {operation:16} {shape!s:16} {left:>7,} numbers are not zero")

# %%
# The strength of the signal at each place, summed over the maps, after some of the steps. One number becomes a
# pattern that fills the receptive field of the unit. Dark is zero.

drawn = [step for step in steps if step[0].startswith(("conv", "pool"))][:-1]
figure, axes = plt.subplots(2, 4, figsize=(10, 5.4), layout="constrained")
for axis, (name, _, result) in zip(axes.flat, drawn, strict=False):
    axis.imshow(result[0].abs().sum(0).sqrt(), cmap="magma")
    axis.set_title(f"{'unpooled' if name.startswith('pool') else 'filtered'}: {name}")
projection = signed_image(steps[-1][2])[0]
axes.flat[-2].imshow(projection.permute(1, 2, 0))
axes.flat[-2].set_title("projection")
axes.flat[-1].imshow(model.preprocessing.pixels(image).clamp(0, 1).permute(1, 2, 0))
axes.flat[-1].set_title(f"image: {scenes.classes[label]}")
for axis in axes.flat:
    axis.set_axis_off()
plt.show()
