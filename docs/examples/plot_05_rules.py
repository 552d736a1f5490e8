"""
Deconvnet, gradient and guided backpropagation
==============================================

Three methods differ only in what happens at a ReLU. The deconvnet passes what is positive on the way back. The
gradient passes what was positive on the way forward. Guided backpropagation asks for both.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import zfnet
from zfnet import DECONVNET, GRADIENT, GUIDED, Deconvnet, ZFNet, scan
from zfnet.data import Scenes
from zfnet.rendering import signed_image
from zfnet.weights import load

published = Path(zfnet.__file__).parents[1] / "published"
model = ZFNet(16, maps=(32, 64, 96, 96, 64), hidden=(384, 384))
model = load(model, published / "zfnet_small-scenes.safetensors")
scenes = Scenes("val", 32, transform=model.preprocessing)

# %%
# The strongest units of four feature maps of layer 5.

layer = "relu5"
top = scan(model, scenes, [layer], k=1, progress=False)[layer]
maps = top.value[:, 0].topk(4).indices
units = top.units(maps)  # image, map, row, column
images = torch.stack([scenes[index][0] for index in units[:, 0].tolist()])
units[:, 0] = torch.arange(len(units))  # each has its own image now

# %%
# A rule set is an argument of the deconvnet, by its name or as a table. Tables can be joined: `DECONVNET | {nn.SiLU:
# ...}`.

rules = {"deconvnet": DECONVNET, "gradient": GRADIENT, "guided": GUIDED}
patches = {name: Deconvnet(model, rules=table).project_units(images, layer, units) for name, table in rules.items()}

# %%
# All three see the same receptive field. The gradient is noisy and shows no shapes. The deconvnet and the guided rule
# show parts of the object, and look much alike here. Each picture has its own scale.

figure, axes = plt.subplots(4, 4, figsize=(8, 8), layout="constrained")
crops = model.preprocessing.pixels(patches["deconvnet"].crops).clamp(0, 1)
columns = {"crop": crops} | {name: signed_image(of.projections) for name, of in patches.items()}
for column, (name, pictures) in enumerate(columns.items()):
    axes[0, column].set_title(name)
    for row, picture in enumerate(pictures):
        axes[row, column].imshow(picture.permute(1, 2, 0))
        axes[row, column].set_axis_off()
plt.show()

# %%
# The gradient is autograd's own, and the deconvnet is not: where a network has a single ReLU, above everything else,
# all three agree.

single = torch.nn.Sequential(model.conv1, torch.nn.ReLU())
first = [[0, 5, 30, 30]]
same = [Deconvnet(single, rules=table).project_units(images[:1], "1", first).projections for table in rules.values()]
print([bool(torch.allclose(same[0], other)) for other in same])
