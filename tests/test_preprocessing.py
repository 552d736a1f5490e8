import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as tv

from zfnet.data.preprocessing import Preprocessing, upright_rgb
from zfnet.errors import InputError

CAFFE = Preprocessing(
    size=227, mode="warp", channels="BGR", scale=255.0, mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0)
)
BOTH = pytest.mark.parametrize("preprocessing", [Preprocessing(), CAFFE], ids=["torchvision", "caffe"])


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@BOTH
def test_pixels_undoes_normalise(preprocessing):
    rgb = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(preprocessing.pixels(preprocessing.normalise(rgb)), rgb, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(preprocessing.normalise(preprocessing.pixels(rgb)), rgb, rtol=1e-10, atol=1e-12)


@BOTH
def test_json_carries_everything(preprocessing):
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


numbers = st.floats(-300, 300)
positive = st.floats(0.01, 300)


@given(
    size=st.integers(1, 500),
    margin=st.none() | st.integers(0, 100),
    mode=st.sampled_from(["shortest", "warp"]),
    channels=st.sampled_from(["RGB", "BGR"]),
    scale=positive,
    mean=st.tuples(numbers, numbers, numbers),
    std=st.tuples(positive, positive, positive),
)
@settings(max_examples=50, deadline=None)
def test_json_carries_everything_of_any_preprocessing(size, margin, **rest):
    preprocessing = Preprocessing(size=size, resize=None if margin is None else size + margin, **rest)
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


def test_worked_example():
    caffe = replace(CAFFE, size=1, resize=None)
    assert caffe(np.uint8([[[200, 100, 50]]])).flatten().tolist() == [50 - 104, 100 - 117, 200 - 123]
    unit = Preprocessing(size=1, resize=None, mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 2.0))
    assert unit(np.uint8([[[255, 0, 255]]])).flatten().tolist() == [1, 0, 0]


@pytest.mark.parametrize("height, width", [(300, 401), (500, 375), (256, 341), (100, 900), (225, 225), (224, 300)])
def test_default_is_torchvisions(height, width):
    image = Image.fromarray(noise(height, width))
    theirs = tv.Compose(
        [tv.Resize(256), tv.CenterCrop(224), tv.ToTensor(), tv.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    assert torch.equal(Preprocessing()(image), theirs(image))


def test_image_of_the_networks_size_is_only_normalised():
    image = noise(224, 224)
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255
    torch.testing.assert_close(Preprocessing().pixels(Preprocessing()(image)), expected, rtol=0, atol=1e-6)


@BOTH
@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (227, 227), (60, 61)])
def test_constant_stays_constant(preprocessing, shape):
    image = np.empty((*shape, 3), np.uint8)
    image[:] = 10, 120, 230
    x = preprocessing(image)
    assert x.shape == (3, preprocessing.size, preprocessing.size) and x.dtype == torch.float32
    expected = torch.tensor([10, 120, 230])[:, None, None].expand_as(x) / 255
    torch.testing.assert_close(preprocessing.pixels(x), expected, rtol=0, atol=1e-5)


def test_edge_is_cropped_at_the_centre():
    image = np.zeros((40, 101, 3), np.uint8)
    image[:, 50:] = 255
    image[:10] = 0
    plain = Preprocessing(size=20, resize=None, mean=(0, 0, 0), std=(1, 1, 1))
    expected = torch.zeros(3, 20, 20)
    expected[:, :, 10:] = 1  # columns 40 to 59 and rows 10 to 29 are kept
    assert torch.equal(plain(image), expected)


def test_warp_uses_the_whole_width_and_shortest_does_not():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, :16] = image[:, -16:] = 255  # the outer quarter of the width
    settings = {"size": 64, "resize": 64, "mean": (0, 0, 0), "std": (1, 1, 1)}
    assert Preprocessing(**settings)(image).sum() == 0
    assert Preprocessing(**settings, mode="warp")(image).mean().item() == pytest.approx(0.25, abs=0.01)


def test_rgb_reorders_and_adds_nothing():
    signal = torch.arange(3.0)[None, :, None, None]
    assert Preprocessing().rgb(signal) is signal
    assert CAFFE.rgb(signal).flatten().tolist() == [2, 1, 0]
    assert CAFFE.rgb(torch.zeros(1, 3, 2, 2)).count_nonzero() == 0


@BOTH
def test_normalise_is_differentiable(preprocessing):
    rgb = torch.rand(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(preprocessing.normalise, rgb)
    assert torch.autograd.gradcheck(preprocessing.pixels, rgb)


def test_arrays_and_images_agree():
    image = noise(260, 300)
    assert torch.equal(Preprocessing()(image), Preprocessing()(Image.fromarray(image)))


def test_turned_image_is_not_turned_twice():
    image = Image.fromarray(noise(2, 3))
    image.getexif()[0x0112] = 6
    image.info["exif"] = image.getexif().tobytes()
    once = upright_rgb(image)
    assert once.size == (2, 3) and upright_rgb(once).size == (2, 3)


def test_too_small_is_refused():
    with pytest.raises(InputError, match=r"300 x 200 pixels is smaller than 224"):
        Preprocessing(resize=None)(noise(200, 300))


@pytest.mark.parametrize("array", [noise(9, 9) / 255, noise(9, 9)[..., 0], noise(9, 9)[..., :2]])
def test_arrays_that_are_no_image_are_refused(array):
    with pytest.raises(InputError, match="is no image"):
        Preprocessing()(array)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_bytes_are_normalised_as_their_fractions(channels):
    how = Preprocessing(channels=channels, scale=255, mean=(1, 2, 3), std=(4, 5, 6))
    rgb = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8)
    before = rgb.clone()
    torch.testing.assert_close(how.normalise(rgb), how.normalise(rgb / 255), rtol=1e-5, atol=1e-5)
    assert torch.equal(rgb, before)


@pytest.mark.parametrize("x", [torch.zeros(3, 4, 4, dtype=torch.int32), torch.zeros(4, 4), torch.zeros(1, 4, 4)])
def test_tensors_that_are_no_image_are_refused(x):
    with pytest.raises(InputError, match="is no image"):
        Preprocessing().normalise(x)


@pytest.mark.parametrize(
    "setting, value, says",
    [
        ("size", 0, "size is 0"),
        ("size", 224.0, "size is 224.0"),
        ("size", True, "size is True"),
        ("size", None, "size is None"),
        ("resize", -1, "resize is -1"),
        ("resize", 200, "resize 200 is less than size 224"),
        ("mode", "shortst", "did you mean 'shortest'"),
        ("channels", "GBR", "there is: RGB, BGR"),
        ("scale", 0, "scale is 0"),
        ("scale", "255", "scale is '255'"),
        ("mean", [0.5, 0.5], "mean is [0.5, 0.5]"),
        ("mean", 0.5, "mean is 0.5"),
        ("mean", [0.5, 0.5, float("nan")], "nan"),
        ("std", [1, 1, 0], "above 0"),
    ],
)
def test_bad_values_are_refused_by_name(setting, value, says):
    changed = {**Preprocessing().settings, setting: value}
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        Preprocessing.from_json(json.dumps(changed))
    assert "\n" not in str(caught.value)


def test_json_is_strict():
    settings = Preprocessing().settings
    with pytest.raises(InputError, match="did you mean 'resize'"):
        Preprocessing.from_json(json.dumps({**settings, "resise": 256}))
    del settings["std"], settings["size"]
    with pytest.raises(InputError, match="lacks size, std"):
        Preprocessing.from_json(json.dumps(settings))
    for text in ("", "[1]", "null"):
        with pytest.raises(InputError, match="JSON"):
            Preprocessing.from_json(text)
