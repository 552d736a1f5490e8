"""Measures against cases whose answer is known: a unit that is one pixel, a linear and a constant one, random ones."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from zfnet import Deconvnet, InputError
from zfnet.analysis.faithfulness import (
    FILLS,
    PICTURES,
    WEIGHTS,
    area,
    check_shares,
    curve,
    energy,
    energy_inside,
    ground,
    points_inside,
    ranks,
    recognised,
    sobel,
    strongest,
)
from zfnet.analysis.likeness import cosine, similarity, with_shuffled_weights
from zfnet.graph import Graph

SHARES = [0, 4, 20, 52, 100]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unit_of(weight, bias=0.0, side=9, layer="1"):
    """A network of one unit that sees 5 x 5 pixels: its deconvnet, an image, and the patches of the unit at (2, 2)."""
    conv = nn.Conv2d(3, 1, 5)
    conv.weight.data, conv.bias.data = weight[None].double(), torch.tensor([bias]).double()
    conv.requires_grad_(False)
    model = nn.Sequential(conv, nn.ReLU()).double()
    image = torch.randn(1, 3, side, side, generator=seeded(1), dtype=torch.float64)
    deconvnet, units = Deconvnet(model), [[0, 0, 2, 2]]
    return deconvnet, deconvnet.project_units(image, layer, units), partial(_respond, deconvnet, layer, units, side)


def _respond(deconvnet, layer, units, side, canvases):
    return deconvnet.activations_of(canvases, layer, units, side)


def left(patches, respond, weight, keep, content=None):
    inside = torch.ones_like(patches.crops[:, 0]).bool()
    signals = {"projection": patches.projections}
    rank = ranks(weight, patches.crops, signals, inside, seeded())
    content = patches.crops if content is None else content
    return curve(respond, patches.values, content, torch.zeros_like(patches.crops), rank, inside, SHARES, keep=keep)[
        0
    ].tolist()


class TestKnownAnswers:
    def test_a_unit_that_is_one_pixel(self):
        weight = torch.zeros(3, 5, 5)
        weight[1, 0, 3] = -1.0 if unit_of(torch.ones(3, 5, 5))[1].crops[0, 1, 0, 3] < 0 else 1.0
        _, patches, respond = unit_of(weight)
        assert patches.values > 0
        assert left(patches, respond, "projection", True) == [0, 1, 1, 1, 1]  # 4 % of 25 pixels is the one
        assert left(patches, respond, "projection", False) == [1, 0, 0, 0, 0]
        assert left(patches, respond, "square", True) == [0, 0, 0, 0, 1]  # it lies at the border
        truth = torch.zeros(1, 5, 5, dtype=torch.bool)
        truth[0, 0, 3] = True
        assert energy_inside(patches.projections.square().sum(1), truth) == 1
        rank = ranks("projection", patches.crops, {"projection": patches.projections}, torch.ones_like(truth), seeded())
        assert points_inside(rank, truth) == 1 and points_inside(rank, ~truth) == 0

    def test_of_a_linear_unit_the_gradient_is_exact(self):
        weight = torch.randn(3, 5, 5, generator=seeded(3), dtype=torch.float64)
        weight = weight * unit_of(weight, layer="0")[1].values.sign()
        deconvnet, patches, respond = unit_of(weight, layer="0")  # before the ReLU
        torch.testing.assert_close(patches.projections[0], patches.values * deconvnet.model[0].weight[0])
        kept, removed = (left(patches, respond, "projection", keep) for keep in (True, False))
        np.testing.assert_allclose(np.add(kept, removed), 1)  # what is kept and what is removed add up
        signal = patches.projections[0].square().sum(0).flatten()
        parts = (patches.crops[0] * deconvnet.model[0].weight[0]).sum(0).flatten()[signal.argsort(descending=True)]
        expected = [float(parts[: round(q / 4)].sum() / parts.sum()) for q in SHARES]
        np.testing.assert_allclose(kept, expected, atol=1e-12)

    def test_of_a_linear_unit_that_sees_itself_no_order_is_better(self):
        weight = torch.randn(3, 5, 5, generator=seeded(3), dtype=torch.float64)
        _, _, respond = unit_of(weight)
        seen = weight[None]
        clean = respond(seen)
        inside = torch.ones(1, 5, 5, dtype=torch.bool)
        areas = {}
        for name in ("projection", *WEIGHTS):
            rank = ranks(name, seen, {"projection": weight[None]}, inside, seeded())
            kept = curve(respond, clean, seen, torch.zeros_like(seen), rank, inside, SHARES, keep=True)
            areas[name] = float(area(kept, SHARES))
        assert max(areas, key=areas.get) == "projection"

    def test_a_constant_unit_needs_nothing_and_shows_nothing(self):
        _, patches, respond = unit_of(torch.zeros(3, 5, 5), bias=2.0)
        for weight in ("projection", *WEIGHTS):
            assert left(patches, respond, weight, True) == left(patches, respond, weight, False) == [1] * len(SHARES)
        assert not patches.projections.any()
        inside = torch.ones(1, 5, 5, dtype=torch.bool)
        assert cosine(patches.projections, patches.crops, inside).isnan()
        assert similarity(patches.projections, patches.crops, inside).isnan()
        assert energy_inside(patches.projections.square().sum(1), inside).isnan()

    def test_a_unit_that_does_not_fire_has_no_curve(self):
        _, patches, respond = unit_of(torch.zeros(3, 5, 5), bias=-2.0)
        assert np.isnan(left(patches, respond, "projection", True)).all()

    def test_a_random_network_shuffled_is_another_random_network(self):
        def network(seed):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3), nn.ReLU())

        images = torch.rand(6, 3, 40, 40, generator=seeded(2))
        units = torch.tensor([[i, m, 2, 3] for i in range(6) for m in range(8)])

        def projected(model):
            return Deconvnet(model).project_units(images, "4", units, signals=torch.ones(len(units))).projections

        first = network(0)
        other, again = projected(network(1)), projected(with_shuffled_weights(Graph(first), "4", None, seeded()))
        inside = torch.ones(len(units), *other.shape[2:], dtype=torch.bool)
        near = [float(similarity(projected(first), pixels, inside).mean()) for pixels in (other, again)]
        assert abs(near[0] - near[1]) < 0.1 and max(near) < 0.9
        assert float(similarity(projected(first), projected(first), inside).min()) == pytest.approx(1)

    def test_noise_is_told_apart_by_chance(self):
        maps = torch.arange(60).repeat_interleave(9)
        hits, chance = recognised(torch.randn(len(maps), 40, generator=seeded()), maps)
        result = hits[~hits.isnan()]
        assert len(result) == 60 * 4 and chance == pytest.approx(1 / 60)
        assert abs(float(result.mean()) - chance) < 4 * (chance / len(result)) ** 0.5


def test_ranks_are_an_order_that_begins_inside():
    crops = torch.rand(2, 3, 6, 7, generator=seeded())
    inside = torch.ones(2, 6, 7, dtype=torch.bool)
    inside[1, :2] = False
    signals = {"mine": torch.randn(2, 3, 6, 7, generator=seeded(1))}
    for weight in (*WEIGHTS, "mine"):
        rank = ranks(weight, crops, signals, inside, seeded())
        assert rank.flatten(1).sort(1).values.equal(torch.arange(42).expand(2, 42))
        assert (rank[1][~inside[1]] >= inside[1].sum()).all()
        assert rank.equal(ranks(weight, crops, signals, inside, seeded()))
    energy = signals["mine"].square().sum(1)[0].flatten()
    assert ranks("mine", crops, signals, inside, seeded())[0].flatten().argsort().equal(energy.argsort(descending=True))
    equal = [ranks("flat", crops, {"flat": torch.zeros_like(crops)}, inside, seeded(n)) for n in (0, 1)]
    assert not equal[0].equal(equal[1])  # drawn, and not from the upper left
    with pytest.raises(InputError, match=r"no weight 'edge' .did you mean 'edges'"):
        ranks("edge", crops, {}, inside, seeded())


def test_the_centre_comes_first_and_edges_are_edges():
    crops = torch.zeros(1, 3, 7, 7)
    crops[..., 4:] = 1
    inside = torch.ones(1, 7, 7, dtype=torch.bool)
    square, disc, edges = (ranks(w, crops, {}, inside, seeded())[0] for w in ("square", "disc", "edges"))
    assert (square[2:5, 2:5] < 9).all() and (square[1:6, 1:6] < 25).all()
    assert disc[3, 3] == 0 and (disc[3, 2:5] < 5).all() and disc[0, 0] >= 45
    assert (edges[:, 3:5] < 14).all()
    inside[..., :2] = False  # the image ends there: no edge of its own
    crops[..., :2] = 9
    assert (ranks("edges", crops, {}, inside, seeded())[0, :, 2] >= 14).all()


def test_derivatives_of_each_channel():
    crops = torch.zeros(1, 2, 6, 7)
    crops[:, 0, :, 4:], crops[:, 1, 2:] = 1, -1  # an edge that runs down, and one that runs across
    inside = torch.ones(1, 6, 7, dtype=torch.bool)
    across, down = sobel(crops, inside).chunk(2, 1)
    expected = torch.zeros(2, 2, 6, 7)
    expected[0, 0, :, 3:5], expected[1, 1, 1:3] = 4, -4
    assert across[0].equal(expected[0]) and down[0].equal(expected[1])
    inside[..., :4] = False  # the image ends there: no edge of its own
    assert not sobel(crops, inside)[..., :5].any() and sobel(crops, inside)[:, 3, 1:3, 5:].all()


@pytest.mark.parametrize(("percent", "count"), [(0, 0), (10, 3), (50, 14), (100, 28)])
def test_a_share_is_of_the_pixels_inside(percent, count):
    inside = torch.ones(1, 6, 7, dtype=torch.bool)
    inside[:, :2] = False
    rank = ranks("random", torch.zeros(1, 3, 6, 7), {}, inside, seeded())
    chosen = strongest(rank, inside, percent)
    assert chosen.sum() == count and not (chosen & ~inside).any()


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ([0, 120], "shares must lie between 0 and 100 percent; got 120"),
        ([-5, 100], "between 0 and 100 percent; got -5"),
        ([50], "give two or more percentages, rising"),
        ([0, 50, 20], "give two or more percentages, rising"),
    ],
)
def test_shares_outside_of_0_to_100_are_refused(shares, says):
    with pytest.raises(InputError, match=says):
        check_shares(shares)


def test_the_area_is_the_mean_over_shares():
    assert area(torch.ones(3, 5), SHARES).tolist() == [1, 1, 1]
    assert area(torch.tensor([0.0, 1.0]), [0, 100]) == 0.5
    assert area(torch.tensor([0.0, 1.0, 1.0]), [0, 20, 100]) == pytest.approx(0.9)


def test_what_stands_where_pixels_are_removed():
    crops = 3 + 2 * torch.randn(2, 3, 40, 40, generator=seeded())
    inside = torch.ones(2, 40, 40, dtype=torch.bool)
    inside[1, :10] = False
    crops = crops * inside[:, None]
    grey, blur, noise = (ground(crops, inside, fill, seeded()) for fill in FILLS)
    assert not grey.any()
    assert float(noise.mean()) == pytest.approx(3, abs=0.1) and float(noise.std()) == pytest.approx(2, abs=0.1)
    assert float((blur - 3).abs()[inside[:, None].expand_as(blur)].max()) < 1.5  # no darker where the image ends
    flat = ground(torch.full_like(crops, 5) * inside[:, None], inside, "blur", seeded())
    torch.testing.assert_close(flat[1, :, 10:], torch.full((3, 30, 40), 5.0))
    with pytest.raises(InputError, match=r"no fill 'gray' .did you mean 'grey'"):
        ground(crops, inside, "gray", seeded())


def test_pictures_that_are_alike_are_told_apart():
    maps = torch.tensor([4, 4, 7, 7, 7, 9])
    features = torch.tensor([[1.0, 0, 0], [0.9, 0, 0.1], [0, 1, 0], [0, 0.9, 0], [0, 1, 0.1], [0, 0, 1]])
    hits, chance = recognised(features, maps)
    assert hits.isnan().tolist() == [True, False, True, False, True, True]  # the second of each is asked for
    assert hits[[1, 3]].tolist() == [1, 1]
    assert chance == pytest.approx((1 / 4 + 2 / 4) / 2)
    swapped, _ = recognised(features[[0, 3, 2, 1, 4, 5]], maps)
    assert swapped[[1, 3]].tolist() == [0, 0]


def test_energy_and_points_by_hand():
    truth = torch.tensor([[[True, True], [False, False]]])
    assert energy_inside(torch.tensor([[[3.0, 1.0], [0.0, 4.0]]]), truth) == 0.5
    assert points_inside(torch.tensor([[[2, 1], [3, 0]]]), truth) == 0
    assert points_inside(torch.tensor([[[2, 0], [3, 1]]]), truth) == 1


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(channels):
    generator = seeded(3)
    crops, signal = torch.rand(2, 2, channels, 6, 6, generator=generator)
    inside = torch.ones(2, 6, 6, dtype=torch.bool)
    for weight in (*WEIGHTS, "signal"):
        assert ranks(weight, crops, {"signal": signal}, inside, generator).shape == (2, 6, 6)
    assert all(ground(crops, inside, fill, generator).shape == crops.shape for fill in FILLS)
    torch.testing.assert_close(energy(signal), (signal**2).sum(1))


def test_half_precision_does_not_overflow():
    crops = (300 + 20 * torch.randn(2, 3, 20, 20, generator=seeded())).half()  # their squares are too large
    inside = torch.ones(2, 20, 20, dtype=torch.bool)
    assert ranks("crop", crops, {"crop": crops}, inside, seeded()).equal(
        ranks("crop", crops, {"crop": crops.float()}, inside, seeded())
    )
    for fill in FILLS:
        filled = ground(crops, inside, fill, seeded())
        assert filled.dtype == torch.float16
        torch.testing.assert_close(filled, ground(crops.float(), inside, fill, seeded()).half())


def test_every_picture_has_a_weight():
    signals = {p.content for p in PICTURES.values()} - {"crop"}
    assert {p.weight for p in PICTURES.values()} == signals | set(WEIGHTS)
