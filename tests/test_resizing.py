"""scripts/resizing.py: ranks and images of two scans are compared map by map."""

import torch

from scripts.resizing import compared
from zfnet import TopActivations


def top(images: list[list[int]], values: list[list[float]]) -> TopActivations:
    image, value = torch.tensor(images), torch.tensor(values)
    return TopActivations(value=value, image=image, row=image, column=image, unclipped=value)


def test_ranks_and_images_are_compared_map_by_map() -> None:
    ones = [[3.0, 2.0], [3.0, 2.0], [3.0, 0.0]]
    one, other = top([[0, 1], [2, 3], [4, 5]], ones), top([[1, 0], [2, 7], [4, 5]], ones)
    # the third map has one strong image alone and does not count; of the first both ranks changed, of the second one
    assert compared(one, other) == {"maps": 2, "ranks_changed": 0.75, "images_shared": 1.5}
    assert compared(one, one) == {"maps": 2, "ranks_changed": 0.0, "images_shared": 2.0}
