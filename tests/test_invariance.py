from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from zfnet.analysis.invariance import DISTANCES, FILLS, NOTHING, invariance, linearity, reach, rise, transformed
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError

PLAIN = Preprocessing(size=16, resize=None, mean=(0.2, 0.4, 0.6), std=(1, 1, 1))


def noise(size=16, seed=0):
    """An image as a photograph has it, in 8 bits."""
    values = torch.randint(256, (3, size, size), generator=torch.Generator().manual_seed(seed))
    return PLAIN.normalise(values / 255)


def smooth(y, x):
    """A picture known between its pixels."""
    return np.stack([0.5 + 0.4 * np.sin(a * y + b * x) for a, b in ((0.1, 0.07), (-0.05, 0.12), (0.08, 0.03))])


def network():
    torch.manual_seed(1)
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 6, 5, 2),
        relu1=nn.ReLU(inplace=True),
        flatten=nn.Flatten(),
        fc6=nn.Linear(216, 10),
        relu6=nn.ReLU(inplace=True),
        fc8=nn.Linear(10, 4),
    )
    model = nn.Sequential(layers)
    model.preprocessing = PLAIN
    return model


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(("kind", "amount"), [*NOTHING.items(), ("rotation", 360), ("rotation", -720)])
def test_nothing_changes_nothing(kind, amount, fill):
    image = noise(17)
    assert torch.equal(transformed(image, kind, amount, fill=fill, preprocessing=PLAIN), image)


@pytest.mark.parametrize("pixels", [1, 5, -7, 16])
def test_a_shift_by_whole_pixels_moves_them_down(pixels):
    image = noise()
    moved = transformed(image, "translation", pixels, fill="black", preprocessing=PLAIN)
    expected = PLAIN.normalise(torch.zeros(3, 16, 16))
    for row in range(16):
        if 0 <= row - pixels < 16:
            expected[:, row] = image[:, row - pixels]
    assert torch.equal(moved, expected)


def test_what_is_uncovered_in_integers():
    column = torch.tensor([10, 20, 30, 40]) / 255
    image = column[:, None].expand(3, 4, 4)

    def moved(fill):
        shifted = transformed(image, "translation", 2, fill=fill) * 255
        assert torch.equal(shifted, shifted[:1, :, :1].expand(3, 4, 4))
        return shifted[0, :, 0].round().int().tolist()

    assert moved("black") == [0, 0, 10, 20]
    assert moved("edge") == [10, 10, 10, 20]
    assert moved("reflect") == [20, 10, 10, 20]
    grey = PLAIN.pixels(transformed(PLAIN.normalise(image), "translation", 2, preprocessing=PLAIN)) * 255
    assert grey[:, :, 0].round().int().tolist() == [[51, 51, 10, 20], [102, 102, 10, 20], [153, 153, 10, 20]]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_exact_and_anticlockwise(turns):
    image = noise()
    assert torch.equal(transformed(image, "rotation", 90 * turns, preprocessing=PLAIN), image.rot90(turns, (1, 2)))


@pytest.mark.parametrize(
    ("kind", "amount"),
    [
        ("translation", 2.5),
        ("translation", -3.3),
        ("scale", 1.3),
        ("scale", 1.8),
        ("scale", 0.7),
        ("rotation", 30),
        ("rotation", 200),
    ],
)
def test_between_pixels_it_is_the_same_picture(kind, amount):
    size = 41
    y, x = (np.indices((size, size)) - (size - 1) / 2).astype(float)
    image = torch.from_numpy(smooth(y, x)).float()
    result = transformed(image, kind, amount).numpy()
    down, scale, degrees = (amount if kind == name else none for name, none in NOTHING.items())
    z = ((x + 1j * y) / scale) * np.exp(1j * np.radians(degrees)) - 1j * down  # where each pixel comes from
    known = (np.abs(z.real) < size / 2 - 2) & (np.abs(z.imag) < size / 2 - 2)
    assert known.mean() > 0.35
    assert np.abs(result - smooth(z.imag, z.real))[:, known].max() < 2 / 255


def test_what_is_finer_than_a_pixel_becomes_its_mean():
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    small = transformed(checks.float().expand(3, 32, 32), "scale", 0.5)[:, 10:22, 10:22]
    assert (small - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("kind", NOTHING)
@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels_each_by_itself(kind, channels):
    image = torch.randint(256, (channels, 12, 12)) / 255
    amount = {"translation": 2.5, "scale": 0.6, "rotation": 25}[kind]
    together = transformed(image, kind, amount, fill="edge")
    for channel, plane in enumerate(image):
        assert torch.equal(together[channel], transformed(plane.expand(3, -1, -1), kind, amount, fill="edge")[0])


def test_an_image_need_not_be_square():
    image = torch.randint(256, (1, 9, 13)) / 255
    assert torch.equal(transformed(image, "rotation", 180), image.flip(1, 2))
    middle = slice(2, 11)  # a quarter turn of the square in the middle
    assert torch.equal(transformed(image, "rotation", 90)[..., middle], image[..., middle].rot90(1, (1, 2)))


def test_channels_are_the_networks():
    caffe = Preprocessing(size=8, resize=None, channels="BGR", scale=255, mean=(104, 117, 123), std=(1, 1, 1))
    red = torch.zeros(3, 8, 8)
    red[0] = 1
    shifted = transformed(caffe.normalise(red), "translation", 8, preprocessing=caffe)
    torch.testing.assert_close(shifted, torch.zeros(3, 8, 8), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "amount", "settings", "message"),
    [
        ("rotatoin", 1, {}, "no transform 'rotatoin' .did you mean 'rotation'"),
        ("rotation", 1, {"fill": "gray"}, "no fill 'gray' .did you mean 'grey'"),
        ("translation", 17, {}, "leaves nothing"),
        ("translation", float("nan"), {}, "leaves nothing"),
        ("scale", 0, {}, "scale is 0; give 0.1 or more"),
        ("rotation", float("inf"), {}, "degrees"),
    ],
)
def test_bad_transforms_are_refused(kind, amount, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        transformed(noise(), kind, amount, **settings)
    assert "\n" not in str(caught.value)


# ---- features --------------------------------------------------------------------------------------------------------


def test_distances_and_probabilities_are_those_of_single_images():
    model, images, labels, amounts = network(), [noise(16, 1), noise(16, 2)], [3, 0], [-4, 0, 2.5, 4]
    result = invariance(
        model,
        images,
        labels,
        ["conv1", "relu1", "relu6"],
        "translation",
        amounts,
        distance="euclidean",
        batch_size=3,
        progress=False,
    )
    assert result.amounts.tolist() == amounts
    model.eval()
    with torch.no_grad():
        for n, (image, label) in enumerate(zip(images, labels, strict=True)):
            for a, amount in enumerate(amounts):
                moved = transformed(image, "translation", amount, preprocessing=PLAIN)
                for layer, stop in (("conv1", 1), ("relu1", 2), ("relu6", 5)):
                    clean, other = (model[:stop](x[None].clone()).flatten() for x in (image, moved))
                    expected = (other - clean).double().norm()
                    torch.testing.assert_close(result.distance[layer][n, a], expected, rtol=1e-4, atol=1e-6)
                p = model(moved[None]).softmax(1)[0, label]
                torch.testing.assert_close(result.probability[n, a].float(), p, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", NOTHING)
def test_nothing_is_at_distance_0_wherever_in_a_batch(kind):
    class Drifting(nn.Module):
        """A network whose features depend on the place in the batch, as rounding makes all do."""

        def forward(self, x):
            drift = torch.arange(x.shape[0], dtype=x.dtype)[:, None]
            return x.flatten(1)[:, :5] + 1e-6 * drift

    amounts = [NOTHING[kind]] * 3
    result = invariance(Drifting(), [noise()], [0], ["add"], kind, amounts, progress=False)
    assert result.distance["add"].tolist() == [[0, 0, 0]]
    assert result.probability.unique().numel() == 1


def test_normalised_distances_are_the_euclidean_one_divided():
    image, model = noise(), network().eval()
    settings = [model, [image], [0], ["relu1"], "rotation", [20, 180]]
    far = {name: invariance(*settings, distance=name, progress=False).distance["relu1"] for name in DISTANCES}
    with torch.no_grad():
        clean = model[:2](image[None]).double()
    torch.testing.assert_close(far["rms"], far["euclidean"] / 216**0.5, rtol=1e-10, atol=0)
    torch.testing.assert_close(far["relative"], far["euclidean"] / clean.norm(), rtol=1e-4, atol=0)


ENDS = {"softmax": nn.Softmax(1), "logarithms": nn.LogSoftmax(1), "sigmoid": nn.Sigmoid()}


@pytest.mark.parametrize("end", ENDS)
def test_probabilities_are_the_networks_own(end):
    model, image = nn.Sequential(*network(), ENDS[end]).eval(), noise()
    model.preprocessing = PLAIN
    with torch.no_grad():
        own = model(image[None])[0, 2]
    probability = invariance(model, [image], [2], ["1"], "scale", [1.0], progress=False).probability
    assert float(probability) == pytest.approx(float(own.exp() if end == "logarithms" else own), rel=1e-5)


def test_the_probability_of_one_logit_is_that_of_class_1():
    model, image = nn.Sequential(nn.Flatten(), nn.Linear(768, 1)).eval(), noise()
    model.preprocessing = PLAIN
    with torch.no_grad():
        own = float(model(image[None]).sigmoid())
    both = [invariance(model, [image], [n], ["1"], "scale", [1.0], progress=False).probability for n in (0, 1)]
    assert [float(p) for p in both] == pytest.approx([1 - own, own], rel=1e-5)


def test_the_network_is_left_as_it_was():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    invariance(model, [noise()], [0], ["relu1"], "scale", [1.5], progress=False)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [], "labels": []}, "0 images and 0 labels"),
        ({"labels": [0, 1]}, "1 images and 2 labels"),
        ({"labels": [-1]}, "image 0 has no label"),
        ({"labels": [4]}, "image 0 has label 4, but the network has 4 classes"),
        ({"images": [torch.zeros(16, 16)]}, "an image of shape .16, 16. cannot be transformed; give .channels"),
        ({"layers": ["relu7"]}, "no layer of Sequential 'relu7'"),
        ({"kind": "shift"}, "no transform 'shift'"),
        ({"amounts": []}, "no amounts of scale"),
        ({"distance": "cosine"}, "no distance 'cosine'"),
        ({"score": "odds"}, "no score 'odds'"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    good = {"images": [noise()], "labels": [0], "layers": ["relu1"], "kind": "scale", "amounts": [1.5]}
    with pytest.raises(InputError, match=message) as caught:
        invariance(network(), **(good | change), progress=False)
    assert "\n" not in str(caught.value)


# ---- the claims in numbers -------------------------------------------------------------------------------------------


def test_reach_grows_from_nothing():
    assert reach("translation", torch.tensor([-3.0, 0, 2])).tolist() == [3, 0, 2]
    assert reach("scale", torch.tensor([1.0, 1.5])).tolist() == [0, 0.5]
    assert reach("rotation", torch.tensor([0.0, 90, 180, 270, 360, 400])).tolist() == [0, 90, 180, 90, 0, 40]


def test_a_proportional_distance_is_linear_and_rises_slowly():
    far = reach("translation", torch.arange(-10.0, 11).double())
    proportional, sudden = 3 * far, (far > 0).double()
    line = linearity(far, torch.stack([proportional, sudden]))
    assert line[0] == pytest.approx(1) and line[1] < 0
    assert rise(far, torch.stack([proportional, sudden])).tolist() == pytest.approx([0.1, 1])
    assert rise(far, proportional[None], at=0.25).tolist() == pytest.approx([0.25])


def test_rise_takes_both_directions_alike():
    far = torch.tensor([2.0, 1, 0, 1, 2]).double()
    assert rise(far, torch.tensor([[8.0, 6, 0, 2, 8]]).double(), at=0.5).tolist() == [0.5]
