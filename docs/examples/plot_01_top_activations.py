"""
The strongest activations of a feature map
==========================================

Which images does a feature map respond to most, and what in them does it respond to? This is Figure 2 of the paper,
for three feature maps of one layer.
"""

from pathlib import Path

import matplotlib.pyplot as plt

import zfnet
from zfnet import Deconvnet, ZFNet, project_top, scan
from zfnet.data import Scenes
from zfnet.rendering import grid, signed_image
from zfnet.weights import load

# %%
# The network comes with the sources of zfnet. It was trained on rendered scenes of sixteen kinds of objects. The file
# of its weights also holds the preprocessing.

published = Path(zfnet.__file__).parents[1] / "published"
model = ZFNet(16, maps=(32, 64, 96, 96, 64), hidden=(384, 384))
model = load(model, published / "zfnet_small-scenes.safetensors")
scenes = Scenes("val", 96, transform=model.preprocessing)

# %%
# A scan runs all images once. It keeps where each feature map is strongest: the value, image, row and column. Each
# image counts once for a map.

layer = "relu4"
top = scan(model, scenes, [layer], k=9, progress=False)[layer]
maps = top.value[:, 0].topk(3).indices.tolist()
for number in maps:
    print(f"map {number}: strongest in images {top.image[number].tolist()}")

# %%
# The deconvnet projects each of these activations back to pixels. A crop is the receptive field of the unit, cut from
# its image.

patches = project_top(Deconvnet(model), scenes, layer, top, maps)
crops = model.preprocessing.pixels(patches.crops).clamp(0, 1)
projections = signed_image(patches.projections, together=9)  # nine share a scale; grey is zero

# %%
# Below each map's crops are its projections. They show what the nine crops have in common: what the unit responded
# to.

figure, axes = plt.subplots(2, 3, figsize=(9, 6), layout="constrained")
for column, number in enumerate(maps):
    for axis, tiles in zip(axes[:, column], (crops, projections), strict=True):
        nine = tiles[9 * column : 9 * column + 9]
        axis.imshow(grid(nine, columns=3, gap=4).permute(1, 2, 0))
        axis.set_axis_off()
    axes[0, column].set_title(f"{layer}, map {number}")
plt.show()
