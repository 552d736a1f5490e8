"""Rows of Table 3 on a network whose layers 6 and 7 differ in width, so that removing the wrong one is seen."""

import pytest

from zfnet import ZFNet
from zfnet.model import variant


@pytest.mark.parametrize(
    ("name", "hidden", "layers"),
    [
        ("krizhevsky without layer 7", (8,), ["fc6", "fc8"]),
        ("krizhevsky without layers 6, 7", (), ["fc8"]),
        ("fig3 fc 2048", (4, 3), ["fc6", "fc7", "fc8"]),
        ("fig3 fc 8192", (16, 12), ["fc6", "fc7", "fc8"]),
    ],
)
def test_a_variant_changes_the_layers_that_it_names(name: str, hidden: tuple[int, ...], layers: list[str]) -> None:
    changed = variant(name, maps=(3, 4, 5, 5, 4), hidden=(8, 6), image_size=64, num_classes=3)
    assert changed["hidden"] == hidden
    model = ZFNet(**changed)
    assert [layer for layer, _ in model.named_children() if layer.startswith("fc")] == layers
    assert [model.get_submodule(layer).out_features for layer in layers] == [*hidden, 3]
