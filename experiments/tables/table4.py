"""Table 4: Caltech-101, by 15 and 30 training images of each class.

What to look for: a pretrained network with a new softmax is far ahead of the same trained from scratch on these
images alone, and further still where there are fewer.
"""

from experiments.tables.transfer import main

__all__ = ["main"]
