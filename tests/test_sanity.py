"""Sanity and recovery on networks whose answers are known: linear ones, branches, units that fall silent."""

import json

import pytest
import torch
from torch import Tensor, nn

from experiments.ablation import sanity
from experiments.ablation.units import ANOTHER, Units
from zfnet import Deconvnet
from zfnet.analysis.likeness import ranks, similarity, with_shuffled_weights

IMAGES, PLACE = 6, 3


def units_of(model: nn.Module, layer: str, images: Tensor, maps: range, *, first: int = 0, seed: int = 0) -> Units:
    """One unit of each map, each in the next image, at one place."""
    rows = [((first + m) % len(images), m, PLACE, PLACE) for m in maps]
    return Units(Deconvnet(model), [(image, 0) for image in images], layer, torch.tensor(rows), seed)


def photographs(channels: int = 3, size: int = 20, seed: int = 0) -> Tensor:
    return torch.randn(IMAGES, channels, size, size, generator=torch.Generator().manual_seed(seed))


def where(table: sanity.Columns, **wanted: object) -> list[int]:
    return [n for n in range(len(table["map"])) if all(table[name][n] == value for name, value in wanted.items())]


def of(columns: sanity.Columns, name: str, **wanted: object) -> list[float | None]:
    return [columns[name][n] for n in where(columns, **wanted)]


def mean(columns: sanity.Columns, name: str, **wanted: object) -> float:
    values = of(columns, name, **wanted)
    return sum(values) / len(values)


class Branches(nn.Module):
    """Maps that see 5 pixels and maps that see 7, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow, self.wide = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.cat([torch.relu(self.narrow(x)), torch.relu(self.wide(x))], 1)


def pooling() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    ).eval()


# ---- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [sanity.trials, sanity.recovery])
def test_columns_have_one_length_can_be_written_and_are_the_same_again(task):
    model, images = pooling(), photographs()
    columns, again = (
        task(units_of(model, "5", images, range(8)), units_of(model, "5", images, range(8), first=3)) for _ in range(2)
    )
    assert json.loads(json.dumps(columns, allow_nan=False)) == again
    assert len({len(column) for column in columns.values()}) == 1
    other = task(units_of(model, "5", images, range(8), seed=1), units_of(model, "5", images, range(8), first=3))
    assert (other == columns) == (task is sanity.recovery)  # in which nothing is drawn


def test_one_unit_of_each_map_the_strongest():
    model, images = pooling(), photographs()
    one, three = (units_of(model, "5", images, range(4), first=n) for n in (0, 3))
    rows = torch.cat([torch.cat([u.items[:, None], u.units[:, 1:]], 1) for u in (one, three)])
    both = Units(one.deconvnet, one.data, "5", rows, 0)
    columns = sanity.recovery(both, both)
    stronger = torch.where(one.values >= three.values, one.items, three.items)
    assert of(columns, "map", rule="gradient") == [0, 1, 2, 3]
    assert of(columns, "image", rule="gradient") == stronger.tolist()


def test_a_cascade_ends_at_the_image_and_a_part_is_shuffled_alone():
    model, images = pooling(), photographs()
    columns = sanity.trials(units_of(model, "5", images, range(8)), units_of(model, "5", images, range(8), first=3))
    kinds = dict.fromkeys(zip(columns["how"], columns["shuffled"], strict=True))
    assert list(kinds) == [(ANOTHER, None), ("cascade", "3"), ("alone", "3"), ("cascade", "0"), ("alone", "0")]
    assert all(len(where(columns, how=how, shuffled=s, rule=r)) == 8 for how, s in kinds for r in sanity.RULES)
    top = ({"how": how, "shuffled": "3", "rule": "projection"} for how in ("cascade", "alone"))
    assert len({tuple(of(columns, "partial", **wanted)) for wanted in top}) == 1


def test_of_a_deep_network_five_parts_are_shuffled_the_topmost_and_all_among_them():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(9)))
    units = units_of(model, "8", photographs(), range(2))
    parts = [(how, name) for kinds, name, _ in sanity.comparisons(units) for how in kinds][1:]
    assert parts == [(how, name) for name in "86420" for how in ("cascade", "alone")]


def test_where_nothing_below_has_weights_nothing_is_shuffled():
    units = units_of(nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), "1", photographs(), range(3))
    assert set(sanity.trials(units, units)["how"]) == {ANOTHER}


# ---- known answers ---------------------------------------------------------------------------------------------------


def test_of_one_convolution_the_pictures_are_its_weights():
    model, images = nn.Sequential(nn.Conv2d(3, 4, 5)), photographs()
    units = units_of(model, "0", images, range(4))
    columns = sanity.trials(units, units_of(model, "0", images, range(4)))
    shuffled = with_shuffled_weights(units.deconvnet.graph, "0", None, units.random)[0].weight.detach()
    weight, inside = model[0].weight.detach(), torch.ones(4, 5, 5, dtype=torch.bool)
    profiles = ranks(weight.double().square().sum(1), inside)
    field = torch.stack([profiles[[m for m in range(4) if m != own]].mean(0) for own in range(4)])
    for rule in sanity.RULES:
        plain, partial = (of(columns, name, rule=rule, how="cascade") for name in ("similarity", "partial"))
        assert plain == pytest.approx(similarity(weight, shuffled, inside).tolist(), abs=1e-6)
        assert partial == pytest.approx(
            similarity(weight, shuffled, inside, field).tolist(), abs=0.01
        )  # by rounding ties
        another = of(columns, "similarity", rule=rule, how=ANOTHER)
        assert another == pytest.approx(similarity(weight, weight.roll(-1, 0), inside).tolist(), abs=1e-6)


def test_weights_that_are_all_equal_can_be_shuffled_without_change():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model[0].weight.data.fill_(0.1)
    images = photographs()
    columns = sanity.trials(units_of(model, "2", images, range(4)), units_of(model, "2", images, range(4), first=3))
    for name in ("similarity", "partial", "cosine", "ssim", "hog"):
        assert of(columns, name, how="alone", shuffled="0", rule="gradient") == pytest.approx([1] * 4)
        assert max(of(columns, name, how="cascade", shuffled="0", rule="gradient")) < 1


def test_random_weights_are_alike_by_their_field_alone():
    """Sums over random paths, of which the middle has the most, and each map has its own."""
    layers = [nn.Conv2d(1 if n == 0 else 32, 32, 3, groups=1 if n == 0 else 32) for n in range(5)]
    for layer in layers:
        nn.init.uniform_(layer.weight, 0, 1)
    model, images = nn.Sequential(*layers), photographs(1)
    columns = sanity.trials(units_of(model, "4", images, range(32)), units_of(model, "4", images, range(32), first=3))
    for rule in sanity.RULES:
        for shuffled in ({"how": "cascade", "shuffled": "0"}, {"how": ANOTHER}):
            assert mean(columns, "similarity", rule=rule, **shuffled) > 0.9
            assert abs(mean(columns, "partial", rule=rule, **shuffled)) < 0.2


def test_a_unit_that_falls_silent_has_no_gradient_to_compare():
    model = nn.Sequential(nn.Conv2d(3, 2, 5), nn.ReLU())
    images = photographs()[:2]
    window = images[:, :, PLACE : PLACE + 5, PLACE : PLACE + 5]
    model[0].weight.data = window / window.flatten(1).norm(dim=1)[:, None, None, None]
    model[0].bias.data = -0.9 * window.flatten(1).norm(dim=1)  # which only its own image exceeds
    columns = sanity.trials(units_of(model, "1", images, range(2)), units_of(model, "1", images, range(2)))
    silent = {"how": "cascade", "shuffled": "0"}
    for name in sanity.MEASURES:
        assert of(columns, name, rule="gradient", **silent) == of(columns, name, rule="guided", **silent) == [None] * 2
        assert None not in of(columns, name, rule="projection", **silent)


def test_where_there_is_no_other_map_there_is_nothing_to_compare():
    model, images = pooling(), photographs()
    units = units_of(model, "5", images, range(1))
    columns, found = sanity.trials(units, units), sanity.recovery(units, units)
    assert of(columns, "similarity", how=ANOTHER) == [None] * 3
    assert found["another"] == [None] * 6
    assert None not in of(columns, "partial", rule="projection", how="cascade")


def test_each_branch_is_measured_as_if_it_were_alone():
    model, images = Branches().eval(), photographs()

    def tasks(maps):
        units, others = (units_of(model, "cat", images, maps, first=n) for n in (0, 2))
        return sanity.trials(units, others), sanity.recovery(units, others)

    both = tasks(range(10))
    for maps, side in ((range(5), 5), (range(5, 10), 7)):
        for together, alone in zip(both, tasks(maps), strict=True):
            rows = where(together, rows=side, columns=side)
            assert {name: [column[n] for n in rows] for name, column in together.items()} == alone


# ---- recovery --------------------------------------------------------------------------------------------------------


def test_without_pooling_a_projection_knows_nothing_of_the_edges_and_a_gradient_does():
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 8, 9, bias=False))
    model[0].weight.data = torch.stack([sobel, -sobel, sobel.T, -sobel.T])[:, None]
    nn.init.uniform_(model[2].weight, 0.9, 1.1)
    images = torch.zeros(8, 1, 20, 20)
    for image, (top, left) in zip(images, torch.randint(2, 11, (8, 2)).tolist(), strict=True):
        image[:, top : top + 5, left : left + 5] = 1
    columns = sanity.recovery(units_of(model, "2", images, range(8)), units_of(model, "2", images, range(8), first=3))
    assert set(columns["rule"]) == set(sanity.RULES) and columns["unswitched"] == [None] * 24
    assert abs(mean(columns, "edges", rule="projection")) < 0.2
    assert mean(columns, "edges", rule="gradient") > 0.3
    assert mean(columns, "another", rule="gradient") > 0.5  # as the maps read the same


@pytest.mark.parametrize("moved", [False, True])
def test_where_the_maxima_are_in_the_middle_switches_say_nothing(moved):
    model = nn.Sequential(nn.MaxPool2d(3, 3), nn.Conv2d(3, 6, 3), nn.ReLU())
    images = -photographs(size=24).abs()
    images[:, :, 1::3, 1::3] = 1
    if moved:
        images = images.roll(1, 3)
    columns = sanity.recovery(units_of(model, "2", images, range(6)), units_of(model, "2", images, range(6), first=3))
    assert set(columns["rule"]) == {*sanity.RULES, *map(sanity.WITHOUT, sanity.RULES)}
    values = of(columns, "unswitched", rule="projection")
    assert max(values) < 0.9 if moved else values == pytest.approx([1] * 6)
    assert of(columns, "unswitched", rule=sanity.WITHOUT("projection")) == [None] * 6
    assert (
        of(columns, "another", rule="projection") == of(columns, "another", rule="projection without switches")
    ) != moved
