"""Table 5: Caltech-256, by 15 to 60 training images of each class.

What to look for: pretraining helps more if there are more classes; from scratch a quarter of the images is almost
useless.
"""

from experiments.tables.transfer import PRETRAINED, SCRATCH, Published, comparison

PAPER = Published(
    "Caltech-256",
    classes=256,
    rows={
        "Sohn et al. 2011": {15: (35.1, None), 30: (42.1, None), 45: (45.7, None), 60: (47.9, None)},
        "Bo et al. 2013": {15: (40.5, 0.4), 30: (48.0, 0.2), 45: (51.9, 0.2), 60: (55.2, 0.3)},
        SCRATCH: {15: (9.0, 1.4), 30: (22.5, 0.7), 45: (31.2, 0.5), 60: (38.8, 1.4)},
        PRETRAINED: {15: (65.7, 0.2), 30: (70.6, 0.2), 45: (72.7, 0.4), 60: (74.2, 0.3)},
    },
)

main = comparison(
    "table5",
    PAPER,
    "Classify by 15 to 60 images of each class: a pretrained network, one from scratch.",
    per_class=(15, 30, 45, 60),
)
