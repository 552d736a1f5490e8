"""
Occlusion: which places does a class depend on?
===============================================

A grey square slides over the image. Where it lowers the probability of the class, it hides what the class depends on.
This is Figure 7 of the paper.
"""

from pathlib import Path

import matplotlib.pyplot as plt

import zfnet
from zfnet import ZFNet, occlusion_maps
from zfnet.data import Scenes
from zfnet.weights import load

published = Path(zfnet.__file__).parents[1] / "published"
model = ZFNet(16, maps=(32, 64, 96, 96, 64), hidden=(384, 384))
model = load(model, published / "zfnet_small-scenes.safetensors")
scenes = Scenes("val", 16, transform=model.preprocessing)
image, label = scenes[0]

# %%
# The square has 50 pixels, as in the paper, and moves by 12. Only what a square can change is computed again; the
# numbers are those of one forward pass for each square. The fill of 0 is the mean colour.

maps = occlusion_maps(model, image, size=50, step=12, target=label)
activity, probability, _ = maps.clean
print(f"without a square: {scenes.classes[label]}, probability {probability:.3f}")
print(
    f"{maps.probability.numel()} squares: probability from {maps.probability.min():.3f} to {maps.probability.max():.3f}"
)

# %%
# `activity` is that of the strongest map of layer 5, `label` the class that the network takes the image for. `heat`
# averages over the squares that cover a pixel, so that it can be laid over the image.

figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
picture = model.preprocessing.pixels(image).clamp(0, 1).permute(1, 2, 0)
axes[0].imshow(picture)
axes[0].set_title(scenes.classes[label])
drawn = axes[1].imshow(maps.activity, cmap="viridis")
axes[1].set_title(f"activity of map {maps.map}, {maps.layer}")
figure.colorbar(drawn, ax=axes[1], shrink=0.7)
drawn = axes[2].imshow(maps.probability, cmap="viridis", vmin=0, vmax=1)
axes[2].set_title(f"probability: {scenes.classes[label]}")
figure.colorbar(drawn, ax=axes[2], shrink=0.7)
axes[3].imshow(picture)
axes[3].imshow(maps.heat(), cmap="magma", alpha=0.6)
axes[3].set_title("what the class depends on")
for axis in axes:
    axis.set_axis_off()
plt.show()

# %%
# What does the network take the image for where the object is hidden?

for number in maps.label.unique().tolist():
    print(f"{scenes.classes[number]}: {int((maps.label == number).sum())} squares")
