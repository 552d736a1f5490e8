"""Table 5: Caltech-256, by 15 to 60 training images of each class.

What to look for: the more classes there are, the more pretraining is worth; from scratch a fourth of the images buys
next to nothing.
"""

from experiments.tables.transfer import main

__all__ = ["main"]
