"""
Switches: how max pooling is undone
===================================

Max pooling keeps the largest value of each window and loses the others. It cannot be inverted. But the forward pass
can remember *where* each maximum came from. These places are the switches, and they are all that a deconvnet needs.
"""

import matplotlib.pyplot as plt
import torch

from zfnet import pool, unpool

# %%
# A map of four rows and six columns, pooled by windows of two by two. A switch is a flat index: row times columns
# plus column.

torch.manual_seed(3)
plane = torch.randint(0, 10, (1, 1, 4, 6)).float()
values, switches = pool(plane, 2)
back = unpool(values, switches, size=(4, 6))
print("switches:", switches.flatten().tolist())

# %%
# Unpooling puts each value back at its switch. All other places become zero.


def draw(axis, map, title):
    rows, columns = map.shape
    axis.imshow(map, cmap="Blues", vmin=0, vmax=14)
    for row in range(rows):
        for column in range(columns):
            axis.text(column, row, f"{map[row, column]:g}", ha="center", va="center")
    axis.set(title=title, xticks=[], yticks=[])


figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
draw(axes[0], plane[0, 0], "map")
draw(axes[1], values[0, 0], "pooled")
draw(axes[2], back[0, 0], "unpooled")
plt.show()

# %%
# The windows of the paper overlap: three by three, every two pixels. One place may then be the maximum of several
# windows. The paper does not say what happens to the values that meet there. zfnet adds them, because that is the
# exact transpose of pooling: for any two signals the inner products below are the same.

plane = torch.randint(0, 10, (1, 1, 5, 7)).float()
values, switches = pool(plane, 3, stride=2)
signal = torch.ones_like(values)
pooled = plane.flatten()[switches.flatten()]
print("pooled with the signal:  ", float((pooled * signal.flatten()).sum()))
print("map with the unpooled:   ", float((plane * unpool(signal, switches, (5, 7))).sum()))

figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
draw(axes[0], plane[0, 0], "map")
draw(axes[1], values[0, 0], "pooled, windows overlap")
draw(axes[2], unpool(signal, switches, (5, 7))[0, 0], "ones, unpooled")
plt.show()
