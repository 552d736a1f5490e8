import json
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import nn
from torchvision import transforms as tv

from zfnet.data.preprocessing import MOST_PIXELS, Preprocessing, Stored, upright_rgb
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
    size=st.integers(1, 500) | st.tuples(st.integers(1, 500), st.integers(1, 500)),
    margin=st.none() | st.integers(0, 100),
    mode=st.sampled_from(["shortest", "warp"]),
    channels=st.sampled_from(["RGB", "BGR", "grey", 3]),
    scale=positive,
    mean=st.tuples(numbers, numbers, numbers),
    std=st.tuples(positive, positive, positive),
)
@settings(max_examples=50, deadline=None)
def test_json_carries_everything_of_any_preprocessing(size, margin, **rest):
    longest = size if isinstance(size, int) else max(size)
    preprocessing = Preprocessing(size=size, resize=None if margin is None else longest + margin, **rest)
    again = Preprocessing.from_json(preprocessing.to_json())
    assert again == preprocessing and again.identity() == preprocessing.identity()


def test_json_of_before_channels_and_sizes_were_free():
    text = (
        '{"size": 227, "resize": 256, "mode": "warp", "channels": "BGR", "scale": 255.0, "mean": [104.0, 117.0, 123.0],'
        ' "std": [1.0, 1.0, 1.0]}'
    )
    assert Preprocessing.from_json(text) == CAFFE


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
    with pytest.raises(InputError, match="is not an image"):
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
    with pytest.raises(InputError, match="is not an image"):
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
        ("channels", "GBR", "available: RGB, BGR"),
        ("scale", 0, "scale is 0"),
        ("scale", "255", "scale is '255'"),
        ("mean", [0.5, 0.5], "mean is [0.5, 0.5]"),
        ("size", [224], "size is [224]; give pixels, or rows and columns"),
        ("size", [224, 0], "size is [224, 0]"),
        ("resize", 200.5, "resize is 200.5"),
        ("channels", 0, "no preprocessing channels '0'"),
        ("channels", 4, "mean is [0.485, 0.456, 0.406]; give 4 numbers, one for each channel, or one"),
        ("display", [0, 1, 3], "display is [0, 1, 3]; give three channels from 0 to 2"),
        ("display", 1, "display is 1"),
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


# --- grey images, and images of other channels


def test_grey_is_pillows():
    image, grey = Image.fromarray(noise(300, 401)), Preprocessing(channels="grey", mean=0, std=1)
    theirs = tv.Compose([tv.Lambda(lambda x: x.convert("L")), tv.Resize(256), tv.CenterCrop(224), tv.ToTensor()])
    assert torch.equal(grey(image), theirs(image))
    assert torch.equal(grey(np.array(image)), theirs(image))
    assert torch.equal(grey(image.convert("L")), theirs(image))
    assert torch.equal(grey(torch.from_numpy(np.array(image.convert("L")))[None]), theirs(image))


def test_grey_of_bytes_and_of_fractions():
    rgb = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8)
    grey = Preprocessing(channels="grey")
    luma = torch.from_numpy(np.stack([np.array(Image.fromarray(x.permute(1, 2, 0).numpy()).convert("L")) for x in rgb]))
    assert torch.equal(grey.arranged(rgb), luma[:, None])
    torch.testing.assert_close(grey.normalise(rgb), grey.normalise(rgb / 255), rtol=0, atol=0.6 / 255 / 0.22)
    assert torch.equal(grey.normalise(rgb), grey.normalise(luma[:, None]))


def test_grey_mean_and_std_are_the_luma_of_the_three():
    grey = Preprocessing(channels="grey")
    assert grey.mean == pytest.approx([0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406])
    assert grey.std == pytest.approx([0.299 * 0.229 + 0.587 * 0.224 + 0.114 * 0.225])
    assert Preprocessing(channels="grey", mean=0.5, std=[0.25]).settings["mean"] == (0.5,)
    mean = Preprocessing(size=4, resize=None).mean  # the mean colour becomes zero, in grey too
    image = torch.tensor(mean)[:, None, None].expand(3, 4, 4)
    torch.testing.assert_close(grey.normalise(image), torch.zeros(1, 4, 4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", ["grey", 1, 2, 3, 5])
def test_pixels_show_three_channels(channels):
    how = Preprocessing(channels=channels, mean=0.25, std=0.5)
    image = torch.rand(2, how.channel_count, 4, 6, dtype=torch.float64)
    shown = {"grey": [0, 0, 0], 1: [0, 0, 0], 2: [0, 1, 1], 3: [0, 1, 2], 5: [0, 1, 2]}[channels]
    torch.testing.assert_close(how.pixels(how.normalise(image)), image[:, shown])
    assert torch.equal(how.rgb(image), image[:, shown])


def test_display_chooses_the_channels_that_are_shown():
    signal = torch.arange(5.0)[:, None, None]
    assert Preprocessing(channels=5, mean=0, std=1, display=[4, 2, 0]).rgb(signal).flatten().tolist() == [4, 2, 0]


def test_images_of_many_channels():
    how = Preprocessing(size=20, resize=24, channels=4, mean=[0, 0.25, 0.5, 0.75], std=0.5)
    rgb = noise(30, 40)
    array = np.concatenate([rgb, rgb[..., :1]], 2)
    first = Preprocessing(size=20, resize=24, mean=[0, 0.25, 0.5], std=0.5)(rgb)
    assert torch.equal(how(array)[:3], first)
    assert torch.equal(how(torch.from_numpy(array).permute(2, 0, 1)), how(array))
    # floats are resized as floats, within the rounding to bytes
    torch.testing.assert_close(how(torch.from_numpy(array).permute(2, 0, 1) / 255), how(array), rtol=0, atol=2 / 255)
    assert Stored(how, 24)(array).shape == (4, 24, 24)


@pytest.mark.parametrize(
    "channels, image, says",
    [
        (4, Image.new("RGB", (30, 30)), "photographs have no 4 channels; give arrays (H, W, 4)"),
        (4, noise(30, 30), "an array (30, 30, 3) of uint8 is not an image of 4 channels; give uint8 (H, W, 4), or a"),
        ("grey", torch.zeros(2, 30, 30), "give uint8 (H, W, 1), or a tensor (1, H, W)"),
        ("RGB", torch.zeros(3, 30, 30, dtype=torch.int32), "of torch.int32 is not an image"),
    ],
)
def test_images_of_other_channels_are_refused(channels, image, says):
    with pytest.raises(InputError, match=re.escape(says)):
        Preprocessing(size=20, channels=channels, mean=0, std=1)(image)


def test_a_network_without_preprocessing_reads_its_channels():
    assert Preprocessing.of(nn.Sequential(nn.Conv2d(3, 2, 1))) == Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
    assert Preprocessing.of(nn.Sequential(nn.Conv2d(7, 2, 1))).channels == 7
    own = Preprocessing(channels="grey")
    assert Preprocessing.of(own.attach(nn.Sequential(nn.Conv2d(1, 2, 1)))) is own


# --- images that are not square


@pytest.mark.parametrize("height, width", [(300, 401), (500, 375), (100, 900), (120, 180)])
def test_crops_that_are_not_square_are_torchvisions(height, width):
    image = Image.fromarray(noise(height, width))
    how = Preprocessing(size=[120, 180], resize=180, mean=0, std=1)
    theirs = tv.Compose([tv.Resize(180), tv.CenterCrop((120, 180)), tv.ToTensor()])
    expected = tv.ToTensor()(image) if (height, width) == (120, 180) else theirs(image)
    assert torch.equal(how(image), expected)
    assert how.image_size == (120, 180) and Preprocessing(size=[64, 64]).size == 64


def test_boxes_in_crops_that_are_not_square():
    how = Preprocessing(size=(2, 4), resize=4)
    assert how.box((0, 0, 8, 16), 16, 8) == (-1, -2, 3, 6)  # 8 x 4 pixels, of which rows 1, 2 and columns 2 to 5 remain
    assert how.box((1, 2, 2, 3), 4, 2) == (1, 2, 2, 3)


def test_mean_images_that_are_not_square():
    mean = torch.rand(3, 6, 10)
    how = Preprocessing(size=(4, 6), resize=6, std=1, mean_image=mean)
    image = torch.rand(3, 4, 6)
    torch.testing.assert_close(how.normalise(image), image - mean[:, 1:5, 2:8])
    torch.testing.assert_close(how.pixels(how.normalise(image)), image)


@pytest.mark.parametrize("width, height", [(3, 700), (700, 3)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_long_image_is_cropped_before_it_is_enlarged(width, height, interpolation, monkeypatch):
    smooth = np.add.outer(np.arange(height), np.arange(width)) * 200 // (width + height)
    image, how = Image.fromarray(smooth.astype(np.uint8)).convert("RGB"), Preprocessing(interpolation=interpolation)
    enlarged = how.cropped(image).int()
    monkeypatch.setattr("zfnet.data.preprocessing.MOST_PIXELS", 0)
    cropped = how.cropped(image).int()
    assert cropped.shape == (3, 224, 224)
    assert (cropped - enlarged).abs().max() <= 1


def test_a_strip_takes_no_more_memory_than_what_is_seen_of_it(monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *rest: sizes.append(size) or resize(image, size, *rest)
    )
    for width, height in ((1, 100_000), (100_000, 1)):
        assert Preprocessing()(Image.new("L", (width, height))).shape == (3, 224, 224)
        assert Preprocessing(channels="grey", mean=0, std=1)(torch.zeros(1, height, width)).shape == (1, 224, 224)
    assert set(sizes) == {(224, 224)}
    Preprocessing()(Image.new("L", (1, MOST_PIXELS // 256**2)))
    assert sizes[-1] == (256, MOST_PIXELS // 256)


def test_too_small_for_a_crop_that_is_not_square():
    with pytest.raises(InputError, match=r"180 x 240 pixels is smaller than 200 x 100; raise resize"):
        Preprocessing(size=[100, 200], resize=180)(noise(400, 300))
    with pytest.raises(InputError, match="from images stored with 150"):
        Stored(Preprocessing(size=[100, 200], resize=200), 150)


# --- EXIF, and identity


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16"])
def test_a_turn_whose_exif_cannot_be_written_back(mode):
    image = Image.fromarray(noise(2, 3)).convert("L" if mode == "I;16" else mode)
    image = Image.fromarray(np.array(image).astype(np.uint16) * 257) if mode == "I;16" else image
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    damaged = exif.tobytes().replace(b"\x01\x1a\x00\x05", b"\x01\x00\x00\x05")  # a fraction as the width
    with pytest.raises(struct.error):
        turned = Image.new("RGB", (3, 2))
        turned.info["exif"] = damaged
        ImageOps.exif_transpose(turned)
    for content in (exif.tobytes(), damaged):
        image.info["exif"] = content
        upright = upright_rgb(image)
        assert upright.size == (2, 3) and upright_rgb(upright).size == (2, 3) and image.size == (3, 2)


CHANGES = {
    "size": 200,
    "resize": 300,
    "interpolation": "bicubic",
    "mode": "warp",
    "channels": "BGR",
    "scale": 2.0,
    "mean": 0.5,
    "std": 0.5,
    "display": (0, 0, 0),
    "mean_image": torch.zeros(3, 224, 224),
}


def test_identity_changes_with_every_setting():
    assert CHANGES.keys() == {*Preprocessing().settings, "mean_image"}
    changed = [replace(Preprocessing(), **{name: value}) for name, value in CHANGES.items()]
    changed.append(replace(Preprocessing(), mean_image=torch.ones(3, 224, 224)))
    identities = {how.identity() for how in [Preprocessing(), *changed]}
    assert len(identities) == len(changed) + 1
    assert Preprocessing().identity() == Preprocessing(mean=[0.485, 0.456, 0.406]).identity()
    stored = {Stored(how, side).identity() for how in [Preprocessing(), *changed] for side in (None, 224)}
    assert len(stored | identities) == 3 * len(identities)
