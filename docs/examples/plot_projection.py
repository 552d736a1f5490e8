"""
Project an activation back to pixels
====================================

The strongest activation of a feature map is projected to pixels by the deconvnet, beside the patch that caused it.
"""

# %%
# Two filters, one image of horizontal stripes.
import torch
from torch import nn

from zfnet import Deconvnet

model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
images = torch.zeros(1, 1, 8, 8)
images[:, :, ::2] = 1
deconvnet = Deconvnet(model)
recording = deconvnet.record(images)
print(deconvnet.project(recording, "2", recording.activations["2"]).shape)
