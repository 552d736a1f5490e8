"""Crops: which of them there are, and that what an image gets does not depend on who has it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.functional import ten_crop

from zfnet import InputError
from zfnet.data.crops import augment, crop_size, in_memory, mean_image, on_device, views
from zfnet.data.preprocessing import Preprocessing, Stored
from zfnet.errors import BrokenImage
from zfnet.training import network_input


def test_augmented_images_are_shifted_or_mirrored_copies() -> None:
    image = torch.arange(3 * 6 * 5.0).view(1, 3, 6, 5)
    seen = set()
    for seed in range(200):
        out = augment(image, torch.Generator().manual_seed(seed), max_shift=1)
        assert out.shape == image.shape
        centre = out[0, 0, 2:4, 1:4]
        for mirrored in (False, True):
            for r in (-1, 0, 1):
                for c in (-1, 0, 1):
                    part = image.flip(3) if mirrored else image
                    if torch.equal(centre, part[0, 0, 2 + r : 4 + r, 1 + c : 4 + c]):
                        seen.add((mirrored, r, c))
    assert len(seen) == 18  # each of them happens


def test_crops_are_taken_everywhere_or_at_the_places_of_evaluation() -> None:
    image = torch.arange(6 * 6.0).view(1, 1, 6, 6).expand(1, 3, 6, 6)
    for crops, places in (("random", 9), ("ten", 5)):
        generators = [torch.Generator().manual_seed(seed) for seed in range(200)]
        corners = {int(augment(image, random, (4, 4), crops=crops, flip=False)[0, 0, 0, 0]) for random in generators}
        assert len(corners) == places
        assert corners <= {6 * r + c for r in range(3) for c in range(3)}
    assert {int(x[0, 0, 0, 0]) for x in views(image, (4, 4), 10)[:5]} == {0, 2, 12, 14, 7}


@pytest.mark.parametrize("crops", ["random", "ten"])
@pytest.mark.parametrize("max_shift", [0, 2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
def test_one_gather_takes_the_crops_that_a_loop_takes(crops: str, max_shift: int, dtype: torch.dtype) -> None:
    """Image by image, from the same random numbers: pad, cut, mirror."""
    for shape, size, flip in (
        ((5, 3, 9, 7), (6, 7), True),
        ((4, 2, 6, 6), (6, 6), False),
        ((3, 1, 8, 8), (5, 4), True),
    ):
        images = (256 * torch.rand(shape)).to(dtype)
        random = torch.Generator().manual_seed(4)
        margin = shape[2] - size[0], shape[3] - size[1]
        if crops == "ten":
            places = [(0, 0), (0, margin[1]), (margin[0], 0), margin, tuple(round(m / 2) for m in margin)]
            corners = [places[n] for n in torch.randint(5, (shape[0],), generator=random)]
        else:
            ends = torch.tensor([m + 2 * max_shift + 1 for m in margin])
            corners = (torch.rand(shape[0], 2, generator=random, dtype=torch.float64) * ends).long().tolist()
        pad = max_shift if crops == "random" else 0
        mirrored = (torch.rand(shape[0], generator=random) < 0.5).tolist()
        expected = []
        for image, (r, c), mirror in zip(images, corners, mirrored, strict=True):
            padded = F.pad(image.float()[None], [pad] * 4, mode="replicate")[0].to(dtype)
            crop = padded[:, r : r + size[0], c : c + size[1]]
            expected.append(crop.flip(2) if mirror and flip else crop)
        settings = {"crops": crops, "max_shift": max_shift, "flip": flip}
        for format in (torch.contiguous_format, torch.channels_last):
            laid = images.contiguous(memory_format=format)
            ours = augment(laid, torch.Generator().manual_seed(4), size, **settings)
            assert torch.equal(ours, torch.stack(expected)) and torch.equal(laid, images)


def test_only_bytes_in_memory_go_to_a_gpu_and_only_if_they_leave_it_room(monkeypatch: pytest.MonkeyPatch) -> None:
    held = TensorDataset(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.zeros(4))  # 48 bytes
    floats, cuda = TensorDataset(torch.zeros(4, 3, 2, 2), torch.zeros(4)), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (95, 1000))
    others = Photographs()
    assert on_device(held, cuda) is held  # they would take more than half of what is free
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (96, 1000))
    moved: list[object] = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    ours = on_device(held, cuda)
    assert ours is not held and moved == [cuda] and all(map(torch.equal, ours.tensors, held.tensors))
    for data, device in ((held, torch.device("cpu")), (floats, cuda), (others, cuda), (None, cuda)):
        assert on_device(data, device) is data


@pytest.mark.parametrize("crops", ["random", "ten"])
def test_an_image_is_augmented_alike_whoever_has_it(crops: str) -> None:
    images = torch.randn(7, 3, 9, 9)
    settings = {"max_shift": 2, "crops": crops}
    alone = augment(images, torch.Generator().manual_seed(1), (6, 6), **settings)
    for rank in (0, 1):
        share = slice(rank, None, 2)
        part = augment(images[share], torch.Generator().manual_seed(1), (6, 6), **settings, batch_size=7, share=share)
        assert torch.equal(part, alone[share])


def test_ten_views_are_corners_centre_and_their_mirror_images() -> None:
    images = torch.randn(2, 3, 10, 10)
    ten = views(images, (6, 6), 10)
    expected = ten_crop(images, 6)
    assert len(ten) == len(expected) == 10
    for view in expected:
        assert sum(torch.equal(view, ours) for ours in ten) == 1
    assert torch.equal(views(images, (6, 6), 1)[0], images[..., 2:8, 2:8])
    padded = views(images, (10, 10), 10, pad=2)
    assert torch.equal(padded[4], images) and torch.equal(padded[0][..., 2:, 2:], images[..., :8, :8])


def test_crops_are_of_the_size_that_the_network_sees() -> None:
    model = nn.Conv2d(3, 4, 3)
    bytes_ = torch.zeros(1, 3, 64, 72, dtype=torch.uint8)
    assert crop_size(model, torch.zeros(1, 3, 64, 64)) == (64, 64)
    for function in (crop_size, network_input):
        with pytest.raises(InputError, match=r"Conv2d has no preprocessing, which uint8 images need: set model\."):
            function(model, bytes_)
    model.preprocessing = Preprocessing(size=48, resize=48)
    assert crop_size(model, bytes_) == (48, 48)
    model.preprocessing = Preprocessing(size=80, resize=80)
    with pytest.raises(InputError, match="cannot take 80 x 80 crops from 64 x 72 images"):
        crop_size(model, bytes_)
    with pytest.raises(InputError, match="cannot take crops of 80 pixels from images stored with 64"):
        Stored(model.preprocessing, 64)
    with pytest.raises(InputError, match="crops is 5; give 1, the centre, or 10"):
        views(bytes_, (48, 48), 5)


class Photographs(Dataset):
    """Four images of known bytes, of which some are broken."""

    def __init__(self, *broken: int):
        self.broken = broken
        self.images = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int):
        if i in self.broken:
            raise BrokenImage(f"{i}.jpg is torn")
        return self.images[i], i


def test_in_memory_is_the_dataset_without_its_broken_images() -> None:
    whole = Photographs()
    images, labels = in_memory(whole, limit=48, progress=False).tensors
    assert torch.equal(images, whole.images) and labels.tolist() == [0, 1, 2, 3]
    with pytest.warns(UserWarning, match=r"^2 image\(s\) could not be read, first: item 0: 0\.jpg is torn$"):
        images, labels = in_memory(Photographs(0, 2), limit=48, progress=False).tensors
    assert torch.equal(images, whole.images[[1, 3]]) and labels.tolist() == [1, 3]
    assert in_memory(whole, limit=47, progress=False) is whole
    tensors = TensorDataset(whole.images)
    assert in_memory(tensors, limit=1, progress=False) is tensors
    with pytest.raises(InputError, match=r"none of the 4 images could be read: item 0: 0\.jpg is torn"):
        in_memory(Photographs(0, 1, 2, 3), limit=48, progress=False)


def test_mean_image_of_known_bytes() -> None:
    mean = mean_image(Photographs(), Preprocessing(size=2, resize=2, scale=255), progress=False)
    assert torch.equal(mean, torch.arange(12.0).view(3, 2, 2) + 18)  # images begin at 0, 12, 24 and 36


def test_images_are_held_only_if_all_are_alike() -> None:
    data = [(torch.zeros(3, 8 + i // 64, 8, dtype=torch.uint8), 0) for i in range(80)]
    with pytest.raises(InputError, match="item 0 is 3 x 8 x 8 and item 64 is 3 x 9 x 8"):
        in_memory(data, progress=False, workers=0)
    with pytest.raises(InputError, match="item 0 is 3 x 8 x 8 and item 64 is 3 x 9 x 8"):
        mean_image(data, Preprocessing(), progress=False, workers=0)
    with pytest.raises(InputError, match=r"images are torch\.float32; only uint8"):
        mean_image([(torch.zeros(3, 8, 8), 0)], Preprocessing(), progress=False)
