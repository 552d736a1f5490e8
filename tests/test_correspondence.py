import itertools

import pytest
import torch
from torch import nn

from zfnet.analysis.correspondence import (
    SIDES,
    _candidates,
    _nearest,
    bootstrap_pairs,
    correspondence,
    hamming,
    permutation_test,
    random_boxes,
    sign_changes,
)
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def signs(*shape, seed=0):
    return torch.randint(-1, 2, shape, generator=generator(seed), dtype=torch.int8)


# ---- distances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", ["agree", "drop"])
def test_hamming_is_the_share_that_differs(zeros):
    samples = signs(7, 40)
    samples[5] = 0
    result = hamming(samples, zeros=zeros)
    for i, j in itertools.product(range(7), repeat=2):
        both = zip(samples[i].tolist(), samples[j].tolist(), strict=True)
        counted = [(a, b) for a, b in both if zeros == "agree" or a or b]
        assert result[i, j] == sum(a != b for a, b in counted) / max(len(counted), 1)


def test_hamming_in_integers():
    samples = torch.tensor([[1, 1, 0, 0, 0], [1, -1, 1, 0, 0], [-1, -1, 0, 0, 0]], dtype=torch.int8)
    assert (hamming(samples) * 5).tolist() == [[0, 2, 2], [2, 0, 2], [2, 2, 0]]
    assert (hamming(samples, zeros="drop")[0]).tolist() == [0, 2 / 3, 1]


def test_hamming_counts_more_dimensions_than_one_product_takes():
    samples = signs(3, 2**16 + 1000)
    expected = (samples[:, None] != samples[None]).double().mean(2)
    torch.testing.assert_close(hamming(samples), expected, rtol=1e-12, atol=0)


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_random_boxes_are_clear_of_the_parts_and_everywhere_else():
    avoid = torch.tensor([[2, 3, 5, 6], [7, 0, 9, 4]])
    boxes = random_boxes(avoid, (2, 3), (10, 9), 4000, generator())
    places = {
        (top, left, top + 2, left + 3)
        for top, left in itertools.product(range(9), range(7))
        if all(
            not (
                {(r, c) for r in range(top, top + 2) for c in range(left, left + 3)}
                & {(r, c) for r in range(t, b) for c in range(s, e)}
            )
            for t, s, b, e in avoid.tolist()
        )
    }
    assert set(map(tuple, boxes.tolist())) == places
    assert torch.equal(boxes, random_boxes(avoid, (2, 3), (10, 9), 4000, generator()))
    assert not torch.equal(boxes, random_boxes(avoid, (2, 3), (10, 9), 4000, generator(1)))


@pytest.mark.parametrize("size", [(6, 6), (11, 2)])
def test_a_mask_without_a_place_is_refused(size):
    with pytest.raises(InputError, match="pixels does not fit beside the parts"):
        random_boxes(torch.tensor([[4, 4, 6, 6]]), size, (10, 10), 1, generator())


def test_signs_are_those_of_single_images():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    image, boxes = torch.randn(3, 12, 12), torch.tensor([[0, 0, 4, 5], [6, 7, 12, 12], [3, 3, 9, 9]])
    result = sign_changes(model, image, boxes, ["0", "1"], fill=0.5, batch_size=2)
    with torch.no_grad():
        for n, (top, left, bottom, right) in enumerate(boxes.tolist()):
            masked = image.clone()
            masked[:, top:bottom, left:right] = 0.5
            for layer, stop in (("0", 1), ("1", 2)):
                change = model[:stop](image[None])[0] - model[:stop](masked[None])[0]
                change[change.abs() < 1e-5] = 0
                assert torch.equal(result[layer][n], change.sign().flatten().to(torch.int8))


def test_what_a_mask_cannot_reach_has_no_sign():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    image = torch.randn(3, 20, 20)
    change = sign_changes(model, image, torch.tensor([[0, 0, 4, 4]]), ["2"])["2"].reshape(8, 16, 16)
    assert change[:, :4, :4].count_nonzero() > 0
    assert change[:, 4:].count_nonzero() == change[:, :, 4:].count_nonzero() == 0


def test_rounding_has_no_sign():
    class Drifting(nn.Module):
        def forward(self, x):
            return x.flatten(1) + 1e-6 * torch.arange(x.shape[0], dtype=x.dtype)[:, None]

    image = torch.rand(3, 4, 4)
    image[:, 0, 0] = 0
    assert sign_changes(Drifting(), image, torch.tensor([[0, 0, 1, 1]]), ["add"])["add"].count_nonzero() == 0


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_permutation_test_counts_all_choices():
    images, masks = 4, 3
    distances = hamming(signs(images * masks, 30)).reshape(images, masks, images, masks)

    def mean(choice):
        return sum(float(distances[i, choice[i], j, choice[j]]) for i, j in itertools.combinations(range(images), 2))

    experiments = [mean(choice) for choice in itertools.product(range(masks), repeat=images)]
    exact = sum(value <= mean((0,) * images) + 1e-9 for value in experiments) / len(experiments)
    assert permutation_test(distances, 20000, generator()) == pytest.approx(exact, abs=0.01)


def test_permutation_test_tells_a_part_from_any_place():
    images, masks = 8, 5
    samples = signs(images, masks, 200)
    chance = hamming(samples.flatten(0, 1)).reshape(images, masks, images, masks)
    samples[:, 0, :50] = 1  # the part changes a quarter of the features alike
    planted = hamming(samples.flatten(0, 1)).reshape(images, masks, images, masks)
    assert permutation_test(planted, 999, generator()) == 1 / 1000
    assert 0.05 < permutation_test(chance, 999, generator()) < 0.95


def test_p_is_uniform_where_there_is_nothing():
    experiments = (hamming(signs(20, 50, seed=seed)).reshape(5, 4, 5, 4) for seed in range(100))
    p = torch.tensor([permutation_test(distances, 99, generator()) for distances in experiments])
    assert 0.4 < p.mean() < 0.6 and 0.01 < (p <= 0.1).float().mean() < 0.22


def test_bootstrap_holds_the_mean_and_narrows_with_images():
    def interval(images):
        samples = signs(images, 60)
        samples[: images // 2, :30] = 1
        distances = hamming(samples)
        i, j = torch.triu_indices(images, images, 1)
        low, high = bootstrap_pairs(distances, generator())
        assert low < distances[i, j].mean() < high
        return high - low

    assert interval(40) < 0.7 * interval(8)
    assert bootstrap_pairs(torch.full((5, 5), 0.25), generator()) == (0.25, 0.25)
    assert bootstrap_pairs(torch.tensor([[0.0, 0.5], [0.5, 0.0]]), generator()) == (0.5, 0.5)


def test_intervals_of_95_percent_hold_the_truth_in_95_of_100_experiments():
    """Each image has an effect of its own on all its distances, as an image whose part is hard to mask has."""
    effects = torch.rand(200, 40, generator=generator(1), dtype=torch.float64)
    distances = (effects[:, :, None] + effects[:, None, :]) / 2  # in the mean 0.5
    random = generator(2)
    intervals = [bootstrap_pairs(experiment, random, draws=300) for experiment in distances]
    assert 0.92 <= sum(low < 0.5 < high for low, high in intervals) / 200 <= 0.98


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """Images of noise with the same blob at different places, and a network whose channels are the blob's own."""
    torch.manual_seed(0)
    images, parts = [], []
    for n in range(6):
        image = 0.3 * torch.randn(3, 24, 24)
        top, left = 2 + 3 * n % 9, 3 + 2 * n
        image[:, top : top + 5, left : left + 5] = torch.tensor([2.0, -2.0, 2.0])[:, None, None]
        images.append(image)
        parts.append({"blob": (top, left, top + 5, left + 5), "corner": (19, 0, 24, 5)})
    model = nn.Sequential(nn.Conv2d(3, 10, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.preprocessing = Preprocessing(size=24)
    return model, images, parts


def test_a_part_that_is_known_everywhere_agrees(planted):
    rows = correspondence(*planted, ["2"], draws=15, permutations=999, progress=False)["2"]
    assert list(rows) == ["blob", "corner", "random"]
    assert rows["blob"].mean == 0 and rows["blob"].spread == 0 and rows["blob"].p < 0.01
    assert rows["random"].mean > 0.3 and rows["random"].p is None
    assert rows["corner"].p > 0.05
    for row in rows.values():
        assert row.interval[0] <= row.mean <= row.interval[1]
        assert row.changed == pytest.approx(1, abs=0.02)


def test_the_table_is_the_formula(planted):
    model, images, parts = planted
    rows = correspondence(model, images, parts, ["0"], draws=2, permutations=9, progress=False)["0"]
    for part in ("blob", "corner"):
        eps = [
            sign_changes(model, image, torch.tensor([boxes[part]]), ["0"])["0"][0]
            for image, boxes in zip(images, parts, strict=True)
        ]
        pairs = torch.tensor([(a != b).double().mean() for a, b in itertools.combinations(eps, 2)])
        assert rows[part].mean == pytest.approx(float(pairs.mean()), rel=1e-6)
        assert rows[part].spread == pytest.approx(float(pairs.std(correction=0)), rel=1e-5)
        assert rows[part].changed == pytest.approx(float(torch.stack(eps).ne(0).double().mean()), rel=1e-6)


def test_matched_masks_change_as_many_features(planted):
    """A small mask on the blob changes most features of a ReLU network; random ones of its size change fewer."""
    model = nn.Sequential(planted[0][0], nn.ReLU())
    images = [image * torch.where(image.abs() > 1, 3.0, 0.1) for image in planted[1]]
    parts = [{"blob": boxes["blob"]} for boxes in planted[2]]

    def rows(match):
        return correspondence(model, images, parts, ["1"], draws=6, match=match, permutations=99, progress=False)["1"]

    same_size, matched = rows("size"), rows("changed")
    assert same_size["blob"][:4] == matched["blob"][:4]
    gaps = [abs(of["random"].changed - of["blob"].changed) for of in (same_size, matched)]
    assert gaps[1] < 0.3 * gaps[0]


def test_the_nearest_masks_are_taken():
    signs_of_masks = torch.zeros(7, 20, dtype=torch.int8)
    for mask, changed in enumerate([8, 1, 9, 20, 6, 8, 15]):
        signs_of_masks[mask, :changed] = 1
    assert _nearest(signs_of_masks, 3).count_nonzero(1).tolist() == [8, 9, 6, 8]
    assert torch.equal(_nearest(signs_of_masks[:4], 3), signs_of_masks[:4])


def test_a_size_that_does_not_fit_is_left_out():
    image, boxes = torch.zeros(3, 20, 20), {"eye": (0, 0, 10, 10)}
    sizes = [
        {(bottom - top, right - left) for top, left, bottom, right in masks.tolist()}
        for masks in _candidates(image, boxes, "eye", SIDES, 4, generator())
    ]
    assert sizes == [{(8, 8)}, {(10, 10)}]


def test_the_seed_decides(planted):
    def random_row(seed):
        return correspondence(*planted, ["0"], draws=3, seed=seed, permutations=50, progress=False)["0"]

    assert random_row(1) == random_row(1)
    assert random_row(1)["random"] != random_row(2)["random"]
    assert random_row(1)["blob"].mean == random_row(2)["blob"].mean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [], "parts": []}, "0 images and parts of 0; give two or more"),
        ({"images": [torch.zeros(3, 24, 24)], "parts": [{"eye": (0, 0, 3, 3)}]}, "1 images"),
        ({"parts": [{"eye": (0, 0, 3, 3)}, {"nose": (0, 0, 3, 3)}]}, "image 1 has nose, and image 0 eye"),
        ({"parts": [{}, {}]}, "no parts to mask"),
        (
            {"parts": [{"eye": (0, 0, 3, 3)}, {"eye": (20, 0, 25, 3)}]},
            "eye of image 1 .rows 20 to 25, .* is not in its",
        ),
        (
            {"images": [torch.zeros(3, 24, 24), torch.zeros(3, 24, 20)]},
            "image 1 is 3 x 24 x 20 and image 0 3 x 24 x 24; give one",
        ),
        ({"layers": ["7"]}, "no layer of Sequential '7'"),
        ({"draws": 0}, "draws is 0"),
        ({"zeros": "keep"}, "no treatment of zeros 'keep'"),
        ({"match": "place"}, "no match of random masks 'place'"),
    ],
)
def test_bad_input_is_refused_in_one_line(planted, change, message):
    good = {"images": [torch.zeros(3, 24, 24)] * 2, "parts": [{"eye": (0, 0, 3, 3)}] * 2, "layers": ["0"]}
    with pytest.raises(InputError, match=message) as caught:
        correspondence(planted[0], **(good | change), progress=False)
    assert "\n" not in str(caught.value)
