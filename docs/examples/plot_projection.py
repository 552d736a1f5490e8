"""
Project an activation back to pixels
====================================

The strongest activation of a feature map is brought down to pixels through the deconvnet, and shown beside the patch that caused it.
"""

# %%
import matplotlib.pyplot as plt

print("placeholder")
