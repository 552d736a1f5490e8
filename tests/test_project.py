"""From a scan's winners to their patches."""

import pytest
import torch
from torch.utils.data import TensorDataset

from zfnet import Deconvnet, InputError, TopActivations, ZFNet, scan
from zfnet.deconvnet import project_top


@pytest.fixture(scope="module")
def found() -> tuple[Deconvnet, TensorDataset, TopActivations]:
    torch.manual_seed(0)
    model = ZFNet(10, maps=(6, 8, 8, 8, 8), hidden=(8,), image_size=64, init="he")
    images = TensorDataset(torch.randn(20, 3, 64, 64), torch.zeros(20, dtype=torch.int64))
    return Deconvnet(model), images, scan(model, images, ["relu4"], 5, progress=False)["relu4"]


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_each_winner_is_projected_from_its_own_image(found, batch_size: int) -> None:
    deconvnet, images, top = found
    maps = [6, 1, 3]
    patches = project_top(deconvnet, images, "relu4", top, maps, batch_size=batch_size)
    units = [(int(top.image[m, j]), m, int(top.row[m, j]), int(top.column[m, j])) for m in maps for j in range(5)]
    alone = [deconvnet.project_units(images[i][0][None], "relu4", [(0, m, r, c)]) for i, m, r, c in units]
    torch.testing.assert_close(patches.projections, torch.cat([p.projections for p in alone]), rtol=1e-4, atol=1e-6)
    assert torch.equal(patches.crops, torch.cat([p.crops for p in alone]))
    assert torch.equal(patches.boxes, torch.cat([p.boxes for p in alone]))
    torch.testing.assert_close(patches.values, top.value[maps].flatten())


def test_missing_winners_are_zero(found) -> None:
    deconvnet, images, top = found
    few = TopActivations(*(column.clone() for column in top))
    few.value[2, 3:], few.image[2, 3:] = -torch.inf, -1
    patches = project_top(deconvnet, images, "relu4", few, [2])
    assert patches.values[:3].all() and not patches.values[3:].any()
    assert not patches.crops[3:].any() and not patches.boxes[3:].any()
    none = TopActivations(top.value, torch.full_like(top.image, -1), top.row, top.column)
    assert not project_top(deconvnet, images, "relu4", none, [0, 1]).projections.any()


def test_a_whole_scan_is_refused_where_one_layers_activations_are_asked_for(found) -> None:
    deconvnet, images, top = found
    with pytest.raises(InputError, match=r"top is of type dict; give one layer's activations: scan\(\.\.\.\)\[layer\]"):
        project_top(deconvnet, images, "relu4", {"relu4": top}, [0])  # type: ignore[arg-type]
