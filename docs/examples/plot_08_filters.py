"""
First-layer filters and their spectra
=====================================

The filters of the first layer can be looked at directly. Their spectra tell which frequencies they see, whether one
of them dominates, and what a stride of two pixels cannot hold. Figure 6 of the paper is about these questions.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import zfnet
from zfnet import ZFNet
from zfnet.analysis.filters import aliased_energy, dominance, power, spectral_energy
from zfnet.rendering import grid, signed_image
from zfnet.training import filter_rms
from zfnet.weights import load

published = Path(zfnet.__file__).parents[1] / "published"
model = ZFNet(16, maps=(32, 64, 96, 96, 64), hidden=(384, 384))
model = load(model, published / "zfnet_small-scenes.safetensors")
filters = model.conv1.weight.detach()

# %%
# All filters on one scale, zero grey, and the power of each at all frequencies: zero is in the middle of a tile.

spectra, frequencies = power(filters, size=32)
tiles = torch.fft.fftshift(spectra, dim=(1, 2)).sqrt()[:, None]
figure, axes = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
axes[0].imshow(
    grid(signed_image(filters, together=len(filters)), columns=6, gap=1).permute(1, 2, 0), interpolation="nearest"
)
axes[0].set_title("filters of layer 1")
axes[1].imshow(grid(tiles / tiles.amax(), columns=6, gap=2).permute(1, 2, 0))
axes[1].set_title("their spectra")
for axis in axes:
    axis.set_axis_off()
plt.show()

# %%
# Does one filter dominate? Training scales a filter back whose root mean square exceeds 0.1.

rms = filter_rms(filters)
print(f"root mean square: largest {rms.max():.3f}, median {rms.median():.3f}, quotient {dominance(filters):.2f}")

# %%
# The shares of low, middle and high frequencies, filter by filter. A layer of stride 2 cannot hold a quarter of a
# cycle per pixel or more: such frequencies look like lower ones.

bands = spectral_energy(filters)
order = bands[:, 0].argsort()
lost = aliased_energy(filters, stride=2)
figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
below = torch.zeros(len(filters))
for name, share, colour in zip(
    ("low", "middle", "high"), bands[order].T, ("#0072b2", "#56b4e9", "#e69f00"), strict=True
):
    axis.bar(range(len(filters)), share, bottom=below, label=name, color=colour)
    below += share
axis.plot(lost[order], "k.", label="beyond the stride")
axis.set(xlabel="filters, by their share of low frequencies", ylabel="share of the power", ylim=(0, 1.16))
axis.legend(loc="upper left", ncols=4)
plt.show()
