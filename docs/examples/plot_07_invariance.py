"""
Invariance of features
======================

How far do the features of a layer move when the image is shifted, enlarged or turned? This is Figure 5 of the paper,
for three images.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import zfnet
from zfnet import ZFNet
from zfnet.analysis.invariance import invariance, linearity, reach, transformed
from zfnet.data import Scenes
from zfnet.weights import load

published = Path(zfnet.__file__).parents[1] / "published"
model = ZFNet(16, maps=(32, 64, 96, 96, 64), hidden=(384, 384))
model = load(model, published / "zfnet_small-scenes.safetensors")
scenes = Scenes("val", 16, transform=model.preprocessing)
images, labels = zip(*(scenes[index] for index in (2, 7, 11)), strict=True)

# %%
# What the network is given: one image, transformed. What is uncovered becomes the mean colour.

figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
examples = {
    "image": ("scale", 1.0),
    "shifted": ("translation", 60.0),
    "enlarged": ("scale", 1.8),
    "turned": ("rotation", 60.0),
}
for axis, (title, (kind, amount)) in zip(axes, examples.items(), strict=True):
    moved = transformed(images[0], kind, amount, preprocessing=model.preprocessing)
    axis.imshow(model.preprocessing.pixels(moved).clamp(0, 1).permute(1, 2, 0))
    axis.set_title(title)
    axis.set_axis_off()
plt.show()

# %%
# Measure the distance of the features of layers 1 and 7 from those of the image itself, and the probability of its
# class.

amounts = {
    "translation": list(range(-60, 61, 5)),
    "scale": np.linspace(1, 1.8, 17).tolist(),
    "rotation": list(range(0, 361, 15)),
}
measured = {
    kind: invariance(model, images, labels, ["relu1", "relu7"], kind, steps, progress=False)
    for kind, steps in amounts.items()
}

# %%
# A line is one image. Distances are divided by the largest one. Layer 1 jumps at once; layer 7 rises slowly.

units = {"translation": "pixels down", "scale": "times as large", "rotation": "degrees"}
figure, axes = plt.subplots(3, 3, figsize=(9, 7), layout="constrained")
for row, (kind, result) in zip(axes, measured.items(), strict=True):
    for axis, layer in zip(row, ("relu1", "relu7"), strict=False):
        axis.plot(result.amounts, (result.distance[layer] / result.distance[layer].max()).T)
        axis.set(title=f"distance, {layer}", xlabel=units[kind], ylim=(0, 1.05))
    row[2].plot(result.amounts, result.probability.T, label=[scenes.classes[label] for label in labels])
    row[2].set(title="probability of the class", xlabel=units[kind], ylim=(0, 1.05))
axes[0, 2].legend(loc="lower center")
plt.show()

# %%
# In numbers: linearity is 1 where the distance grows in proportion to the transform, and below 0 where it jumps.

for kind, result in measured.items():
    shares = {layer: linearity(reach(kind, result.amounts), result.distance[layer]) for layer in ("relu1", "relu7")}
    print(f"{kind:12}", ", ".join(f"{layer} {share.mean():.2f}" for layer, share in shares.items()))
