"""Task B, prediction: maps whose answer is known, and what a trial is made of."""

from functools import partial

import pytest
import torch
from conftest import sequential
from torch import nn
from torch.utils.data import TensorDataset

from experiments.ablation import prediction
from experiments.ablation.judge import Judge
from experiments.ablation.prediction import BATCH, PICTURES, REFERENCES, asked, by_image, moved, ranking, trials
from experiments.ablation.units import Units
from zfnet import Deconvnet, InputError, TopActivations, scan
from zfnet.analysis.statistics import two_way
from zfnet.data.preprocessing import Preprocessing

AS_THEY_ARE = Preprocessing(size=24, resize=None, mean=0.0, std=1.0)
MAPS = range(3)  # of `detector`: red, green, blue


class MeanColour:
    """A judge that sees the mean colour of what is shown, and counts what it is asked."""

    def __init__(self):
        self.asked = 0

    def describe(self, parts, shown=None):
        self.asked += len(parts)
        weights = torch.ones(len(parts), *parts.shape[2:]) if shown is None else shown
        return (parts * weights[:, None]).sum((2, 3)) / weights.sum((1, 2))[:, None]


def detector(stride=4):
    """Three maps, each the mean of one colour over 8 x 8 pixels."""
    conv = nn.Conv2d(3, 3, 8, stride)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        for m in MAPS:
            conv.weight[m, m] = 1 / 64
    return sequential(AS_THEY_ARE, conv=conv, relu=nn.ReLU())


def spots(count=240, ground=0.3):
    """Images with an 8 x 8 spot of a random colour, at a random place of the lattice, on noise of one grey."""
    random = torch.Generator().manual_seed(1)
    images = ground + 0.05 * torch.randn(count, 3, 24, 24, generator=random)
    for image in images:
        row, column = (4 * torch.randint(5, (2,), generator=random)).tolist()
        image[:, row : row + 8, column : column + 8] = 0.4 + 0.6 * torch.rand(3, 1, 1, generator=random)
    return TensorDataset(images.clamp(0, 1), torch.zeros(count, dtype=torch.int64))


class Setting:
    """A network, images, the scan of a layer, and the references of some maps."""

    def __init__(self, model, data, layer, maps):
        self.deconvnet, self.data, self.layer, self.maps = Deconvnet(model), data, layer, list(maps)
        self.top = scan(model, data, [layer], len(data), workers=0, progress=False)[layer]
        nine = TopActivations(*(column[:, :REFERENCES] for column in self.top))
        self.references = Units(self.deconvnet, data, layer, nine.units(self.maps), 0)

    def trials(self, judge, seed=0, top=None, **more):
        top = self.top if top is None else top
        return trials(self.deconvnet, self.data, self.layer, top, self.maps, judge, self.references, seed, **more)


@pytest.fixture(scope="module")
def colours():
    return Setting(detector(), spots(), "relu", MAPS)


def share(columns, picture, pair=None):
    right = [r for r, p in zip(columns[picture], columns["pair"], strict=True) if pair in (None, p)]
    return sum(right) / len(right)


def test_a_detector_of_colours_is_predicted_from_what_it_sees(colours):
    columns = colours.trials(MeanColour())
    assert {len(column) for column in columns.values()} == {20 * len(MAPS)}
    assert {*columns} == {"map", "image", "rows", "columns", "pair", *PICTURES}
    assert {*columns["rows"], *columns["columns"]} == {8}
    assert share(columns, "crop") > 0.97 and share(columns, "masked crop") > 0.9
    assert share(columns, "crop", "extreme") == 1
    assert share(columns, "random crop") < share(columns, "crop") - 0.15  # where the spot is seldom seen whole


def test_the_masked_crop_shows_the_pixels_that_a_map_reads():
    """Four of 64 pixels; the others are of a colour that has nothing to do with it."""
    model = detector(stride=8)
    with torch.no_grad():
        model.conv.weight.zero_()
        for m in MAPS:
            model.conv.weight[m, m, 3:5, 3:5] = 1 / 4
    random = torch.Generator().manual_seed(2)
    images, read = (torch.rand(240, 3, 1, 1, generator=random).repeat(1, 1, 24, 24) for _ in range(2))
    for row in range(3, 24, 8):
        for column in range(3, 24, 8):
            images[:, :, row : row + 2, column : column + 2] = read[:, :, :2, :2]
    data = TensorDataset(images, torch.zeros(240, dtype=torch.int64))
    columns = Setting(model, data, "relu", MAPS).trials(MeanColour())
    assert share(columns, "masked crop") > 0.7 and share(columns, "crop") < 0.65


def test_a_map_that_ignores_its_image_is_not_predicted(colours):
    """Its ranking has nothing to do with what is in the images."""
    random = torch.Generator().manual_seed(3)
    maps = 24
    torch.manual_seed(3)
    model = sequential(AS_THEY_ARE, conv=nn.Conv2d(3, maps, 8, 4), relu=nn.ReLU())
    setting = Setting(model, spots(), "relu", range(maps))
    values = torch.rand(maps, 240, generator=random).sort(1, descending=True).values + 1
    images = torch.rand(maps, 240, generator=random).argsort(1)
    row, column = torch.randint(5, (2, maps, 240), generator=random)
    columns = setting.trials(MeanColour(), top=TopActivations(values, images, row, column))
    of_maps, of_images = torch.tensor(columns["map"]), torch.tensor(columns["image"])
    for picture in PICTURES:
        found = two_way(torch.tensor(columns[picture]) - 0.5, of_maps, of_images)
        assert found.low < 0 < found.high and abs(found.mean) < 0.1, picture


def test_the_same_seed_gives_the_same_digits(colours):
    one = colours.trials(MeanColour(), seed=5)
    assert one == colours.trials(MeanColour(), seed=5)
    assert one["image"] != colours.trials(MeanColour(), seed=6)["image"]


def test_each_picture_is_described_once(colours, monkeypatch):
    judge, read = MeanColour(), []
    known = Units.__init__

    def counted(self, deconvnet, data, layer, units, seed):
        read.extend(units[:, 0].unique().tolist())
        known(self, deconvnet, data, layer, units, seed)
        units_seen.append(len(units))

    units_seen = []
    monkeypatch.setattr(Units, "__init__", counted)
    monkeypatch.setattr(prediction, "BATCH", 7)
    colours.trials(judge)
    assert len(read) == len(set(read)) and len(units_seen) > 10
    assert judge.asked == 3 * sum(units_seen) + len(read)  # crops, masked, random ones, whole images
    assert sum(units_seen) <= len(MAPS) * (2 * REFERENCES + 2 * 20)


def test_a_real_judge(model, data):
    """The fixtures' network on rendered scenes, by another small network."""
    from zfnet.data.scenes import Scenes

    scenes = Scenes("val", 100, size=32, transform=Preprocessing(size=32, resize=36))
    setting = Setting(model, scenes, "relu2", [0, 1, 2])
    torch.manual_seed(1)
    other = sequential(
        AS_THEY_ARE,
        conv1=nn.Conv2d(3, 8, 5, 2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(8, 8, 3, 2),
        relu2=nn.ReLU(),
        conv3=nn.Conv2d(8, 8, 3, 2),
        relu3=nn.ReLU(),
    )
    columns = setting.trials(Judge(other, model.preprocessing), tasks=2)
    assert {len(column) for column in columns.values()} == {len(columns["map"])}
    assert 1 <= len(columns["map"]) <= 6
    assert {right for picture in PICTURES for right in columns[picture]} <= {0, 0.5, 1}


@pytest.mark.parametrize(("images", "tasks"), [(240, 20), (801, 20), (100, 2), (140, 5)])
def test_ranks_of_references_and_queries(images, tasks):
    queries = {"extreme": tasks - tasks // 2, "percentile": tasks // 2}
    ranks = asked(images, 50, queries, torch.Generator().manual_seed(0))
    known, upper, lower = ranks.split([18, tasks, tasks], 1)
    assert known[3].tolist() == [*range(9), *range(images - 1, images - 10, -1)]
    first = queries["extreme"]
    for row, others in zip(known.tolist(), torch.cat([upper, lower], 1).tolist(), strict=True):
        assert not {*row} & {*others}
    assert (upper[:, :first].sort(1).values == torch.arange(9, 9 + first)).all()
    assert (lower[:, :first].sort(1).values == torch.arange(images - 9 - first, images - 9)).all()
    assert ((upper[:, first:] - images / 10).abs() <= tasks / 4 + 1).all()
    assert ((images - lower[:, first:] - images / 10).abs() <= tasks / 4 + 1).all()
    assert len({tuple(row) for row in torch.cat([upper, lower], 1).tolist()}) > 1 or tasks == 2  # drawn by map


def test_too_few_images_are_refused_by_how_many_are_needed(colours):
    colours = Setting(detector(), spots(239), "relu", MAPS)
    with pytest.raises(InputError, match="needs 240 images for 20 tasks a map; there are 239"):
        colours.trials(MeanColour())
    with pytest.raises(InputError, match="tasks is 1; give at least 2"):
        colours.trials(MeanColour(), tasks=1)


def silent(images, alive):
    """A scan of one map of 6 x 7 places that is above 0 in the first images alone."""
    value = torch.zeros(1, images)
    value[0, :alive] = torch.arange(alive, 0, -1)
    zero = torch.zeros(1, images, dtype=torch.int64)
    return TopActivations(value, torch.arange(images)[None], zero + 3 * (value > 0), zero + 2 * (value > 0))


def test_images_that_activate_a_map_alike_are_in_random_order_and_have_a_random_place():
    rank = partial(ranking, silent(400, 30), [0], (6, 7))
    values, units = rank(torch.Generator().manual_seed(0))
    assert (values.diff() <= 0).all() and units[0, :30, 0].tolist() == list(range(30))
    assert (units[0, :30, 2:] == torch.tensor([3, 2])).all()
    assert units[0, :, 0].sort().values.tolist() == list(range(400)) and units[0, 30:, 0].tolist() != [*range(30, 400)]
    places = units[0, 30:, 2:].unique(dim=0, return_counts=True)
    assert len(places[0]) == 42 and places[1].max() < 30
    assert not torch.equal(rank(torch.Generator().manual_seed(1))[1], units)
    assert torch.equal(rank(torch.Generator().manual_seed(0))[1], units)


def test_an_image_that_could_not_be_read_is_in_no_ranking():
    top = silent(200, 150)
    for column, missing in zip(top, (-torch.inf, -1, -1, -1, -torch.inf), strict=True):
        column[:, 190:] = missing
    values, units = ranking(top, [0], (6, 7), torch.Generator().manual_seed(0))
    assert values.shape == (1, 190) and (units[..., 0] >= 0).all()


def test_two_queries_that_activate_a_map_alike_are_no_trial(colours):
    """A map that is above 0 in 40 of 240 images has upper queries among them; one that is in 9 has none."""
    for alive, expected in ((40, {"extreme": 30, "percentile": 30}), (9, {})):
        row = silent(240, alive)
        top = TopActivations(*(column.expand(3, -1).clone() for column in row))
        columns = colours.trials(MeanColour(), top=top._replace(row=top.row.clamp(max=4), column=top.column))
        assert {pair: columns["pair"].count(pair) for pair in set(columns["pair"])} == expected
        assert {len(column) for column in columns.values()} == {len(columns["map"])}


def test_batches_keep_an_image_together():
    units = torch.zeros(500, 4, dtype=torch.int64)
    units[:, 0] = torch.randint(40, (500,), generator=torch.Generator().manual_seed(0)).sort().values
    batches = by_image(units)
    assert torch.equal(torch.cat(batches), units)
    images = [{*some[:, 0].tolist()} for some in batches]
    assert sum(map(len, images)) == len(set.union(*images)) and len(batches) == 4
    most = int(units[:, 0].unique(return_counts=True)[1].max())
    assert max(map(len, batches)) < BATCH + most


def test_a_box_elsewhere_is_as_large_and_within_the_image():
    boxes = torch.tensor([[0, 0, 5, 3]]).repeat(4000, 1)
    drawn = moved(boxes, (8, 6), torch.Generator().manual_seed(0))
    assert (drawn[:, 2:] - drawn[:, :2] == torch.tensor([5, 3])).all()
    corners, count = drawn[:, :2].unique(dim=0, return_counts=True)
    assert corners.tolist() == [[r, c] for r in range(4) for c in range(4)]
    assert count.min() > 180  # of 250: all places alike
    whole = torch.tensor([[0, 0, 8, 6]])
    assert torch.equal(moved(whole, (8, 6), torch.Generator().manual_seed(0)), whole)


def test_a_box_at_the_border_is_moved_and_not_cut():
    boxes = torch.tensor([[-2, 1, 3, 4], [4, 4, 9, 7], [2, 2, 7, 5], [-3, -1, 12, 2]])
    assert moved(boxes, (8, 6)).tolist() == [[0, 1, 5, 4], [3, 3, 8, 6], [2, 2, 7, 5], [0, 0, 8, 3]]


def test_crops_do_not_tell_where_units_are():
    """Noise: where strong units lie at a corner and weak ones in the middle, no crop tells them apart."""
    conv = nn.Conv2d(3, 8, 9, 3, padding=4)
    model = sequential(AS_THEY_ARE, conv=conv, relu=nn.ReLU())
    random = torch.Generator().manual_seed(4)
    data = TensorDataset(torch.rand(240, 3, 24, 24, generator=random), torch.zeros(240, dtype=torch.int64))
    setting = Setting(model, data, "relu", range(8))
    values = torch.rand(8, 240, generator=random).sort(1, descending=True).values + 1
    images = torch.rand(8, 240, generator=random).argsort(1)
    place = torch.where(torch.arange(240) < 120, 0, 4).repeat(8, 1)
    columns = setting.trials(MeanColour(), top=TopActivations(values, images, place, place))
    for picture in ("crop", "random crop"):
        assert abs(share(columns, picture) - 0.5) < 0.15, picture


def test_a_judge_does_not_see_what_is_hidden(model):
    torch.manual_seed(2)
    other = sequential(AS_THEY_ARE, conv=nn.Conv2d(3, 8, 9, 4, padding=4), relu=nn.ReLU())
    judge = Judge(other, model.preprocessing)
    parts, shown = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64)
    shown[:, 20:40, 10:50] = 1
    changed = torch.where(shown[:, None] == 1, parts, torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(judge.describe(parts, shown), judge.describe(changed, shown))
    assert not torch.allclose(judge.describe(parts), judge.describe(changed))
