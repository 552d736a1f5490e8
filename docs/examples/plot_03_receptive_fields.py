"""
Receptive fields of the units of a layer
========================================

A unit of a deep layer sees only a part of the image: its receptive field. How large is it, and where does it lie?
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from torch import nn

from zfnet import ZFNet, layer_table, receptive_field
from zfnet.data import Scenes

# %%
# The table of layers of the paper's network. A *unit* is one number of a layer's output; all units of a feature map
# share one filter.

model = ZFNet()
print(f"{'layer':6} {'output':>16} {'units':>10} {'field':>6}")
for row in layer_table(model, 224):
    if row.layer.startswith(("conv", "pool")):
        print(f"{row.layer:6} {row.output!s:>16} {row.units:>10,} {row.receptive_field[0]:>6}")

# %%
# The field of one unit of each of the layers 1 to 5, near the middle of the image.

image, label = Scenes("val", 8)[3]
figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
axis.imshow(image.permute(1, 2, 0))
for n, colour in enumerate(("#56b4e9", "#009e73", "#f0e442", "#e69f00", "#d55e00"), 1):
    field = receptive_field(model, f"conv{n}", 224)
    middle = (112 - field.start[0] - field.size[0] // 2) // field.stride[0]
    top, left, bottom, right = field.box(middle, middle)
    axis.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, lw=2, label=f"layer {n}")
    )
axis.set_axis_off()
axis.legend(loc="lower left")
plt.show()

# %%
# At the border a field reaches beyond the image: `box` is the whole field, `seen` the part of it that reaches the
# unit.

field = receptive_field(model, "conv5", 224)
print("box: ", field.box(0, 0))
print("seen:", field.seen(0, 0))

# %%
# Where a network has branches, the maps of one layer may have fields of different sizes. Here a layer joins maps of a
# 1x1 and a 3x3 convolution.


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        return torch.cat([self.small(x), self.large(x)], 1)


branches = Branches()
print([receptive_field(branches, "cat", 16, map=number).size for number in range(4)])
