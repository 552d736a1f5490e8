"""Figure 9: Caltech-256, the accuracy of a pretrained network by the number of training images of each class.

What to look for: the curve is steep at first: in the paper six images of a class pass what others reached with 60.
"""

from experiments.tables.transfer import PRETRAINED, Published, comparison

CURVE = {  # measured in the paper's plot, and its error bars' half width
    1: (27.2, 0.9),
    2: (39.2, 2.3),
    3: (46.1, 0.8),
    4: (51.8, 0.3),
    5: (54.9, 0.4),
    6: (57.0, 0.6),
    7: (58.9, 0.6),
    10: (62.6, 0.5),
    15: (65.7, 0.2),
    30: (70.6, 0.2),
    45: (72.7, 0.4),
    60: (74.2, 0.3),
}
PAPER = Published("Caltech-256", classes=256, rows={"Bo et al. 2013": {60: (55.2, 0.3)}, PRETRAINED: CURVE})

main = comparison("fig9", PAPER, "Classify by 1 to 60 images of each class: a pretrained network.", per_class=(*CURVE,))
