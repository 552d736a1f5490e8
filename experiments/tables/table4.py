"""Table 4: Caltech-101, by 15 and 30 training images of each class.

What to look for: a pretrained network with a new softmax is far better than the same network trained from scratch on
these images, most of all with few images.
"""

from experiments.tables.transfer import PRETRAINED, SCRATCH, Published, comparison

PAPER = Published(
    "Caltech-101",
    classes=101,
    rows={
        "Bo et al. 2013": {30: (81.4, 0.33)},
        "Yang et al. 2009": {15: (73.2, None), 30: (84.3, None)},
        "DeCAF": {30: (86.1, None)},  # in the text of ECCV alone, which does not say of how many images: as we read it
        SCRATCH: {15: (22.8, 1.5), 30: (46.5, 1.7)},
        PRETRAINED: {15: (83.8, 0.5), 30: (86.5, 0.5)},
    },
)

main = comparison(
    "table4", PAPER, "Classify by 15 and 30 images of each class: a pretrained network, one from scratch."
)
