"""Figure 9: Caltech-256, the accuracy of a pretrained network by the number of training images of each class.

What to look for: the curve is steep at first: in the paper six images of a class pass what others reached with 60.
"""

from experiments.tables.transfer import main

__all__ = ["main"]
