"""The dataset protocol: its defaults, what is adapted and what is refused, and when an identity changes."""

import os
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.transforms import v2

from zfnet.data import BrokenImage, Images, Photos, Scenes, as_images
from zfnet.data.batches import Batches
from zfnet.data.images import image_size, read_item, transformed
from zfnet.data.pascal import Pascal
from zfnet.errors import InputError

PIXELS = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4) / 96


class Items(Dataset):
    """Whatever items it is given."""

    def __init__(self, *items, classes=None):
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        if self.items[i] is BrokenImage:
            raise BrokenImage(f"cannot load {i}")
        return self.items[i]


class Table(Items):
    """Items and features as Hugging Face's datasets have them."""

    @property
    def features(self):
        names = type("ClassLabel", (), {"names": ["ant", "bee"]})()
        return {"image": None, "label": names}


class Stream(IterableDataset):
    def __iter__(self):
        yield PIXELS[0]


def picture(mode="RGB", shade=51):
    return Image.new(mode, (5, 4), (shade,) * 3 if mode == "RGB" else shade)


@pytest.fixture
def folder(tmp_path):
    for name, shade in (("ant", 0), ("bee", 51)):
        (tmp_path / name).mkdir()
        picture(shade=shade).save(tmp_path / name / "1.png")
    return tmp_path


def refusal(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the protocol and its adapters -----------------------------------------------------------------------------------


def test_defaults():
    class Two(Images):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return PIXELS[index], index

    data = Two()
    assert as_images(data) is data and data.title == "Two"
    assert (list(data.classes), data.labels, data.official_split) == ([], None, None)
    assert (data.file(1), data.truth(1), data.name(1)) == (None, None, "item 1")
    data.file = lambda index: f"{index}.png"
    assert data.name(1) == "item 1 (1.png)"
    assert len(next(iter(Batches(data))).labels) == 2


def test_what_a_subclass_must_give():
    for call in (lambda: len(Images()), lambda: Images()[0]):
        with pytest.raises(NotImplementedError):
            call()


@pytest.mark.parametrize(
    "dataset, labels",
    [
        (PIXELS, [-1, -1]),
        (TensorDataset(PIXELS), [-1, -1]),
        (TensorDataset(PIXELS, torch.tensor([4, 7])), [4, 7]),
        (list(PIXELS), [-1, -1]),
        (Items(*PIXELS), [-1, -1]),
        (Items(*((image,) for image in PIXELS)), [-1, -1]),
        (Items(*((image, label) for label, image in enumerate(PIXELS))), [0, 1]),
        (Items(*([image, torch.tensor(3)] for image in PIXELS)), [3, 3]),
        (Items(*({"image": image, "label": 5} for image in PIXELS)), [5, 5]),
        (Items(*({"img": image, "labels": np.int64(6)} for image in PIXELS)), [6, 6]),
        (Items(*({"image": image} for image in PIXELS)), [-1, -1]),
        (Subset(Items(PIXELS[1], PIXELS[0]), [1, 0]), [-1, -1]),
        (Subset(TensorDataset(PIXELS.flip(0), torch.tensor([8, 9])), [1, 0]), [9, 8]),
    ],
)
def test_every_kind_of_item_is_adapted(dataset, labels):
    data = as_images(dataset)
    assert isinstance(data, Images) and len(data) == 2
    assert torch.equal(torch.stack([image for image, _ in data]), PIXELS) and [label for _, label in data] == labels
    assert as_images(data) is data
    (batch,) = Batches(dataset)
    assert torch.equal(batch.images, PIXELS) and batch.labels.tolist() == labels


@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3), ("P", 3)])
def test_images_of_pillow_become_floats(mode, channels):
    image, label = as_images([(picture(mode).convert(mode), 1)])[0]
    assert image.dtype == torch.float32 and image.shape == (channels, 4, 5) and label == 1
    assert mode == "P" or (image == 0.2).all()


def test_image_folder(folder):
    data = as_images(torchvision.datasets.ImageFolder(folder))
    assert data.classes == ("ant", "bee") and data.labels == [0, 1] and data.title == "ImageFolder"
    assert data.file(1) == str(folder / "bee" / "1.png")
    assert data[1][0].shape == (3, 4, 5) and (data[1][0] == 0.2).all() and data[1][1] == 1
    part = as_images(Subset(torchvision.datasets.ImageFolder(folder), [1]))
    assert (part.classes, part.labels, part.file(0)) == (data.classes, [1], data.file(1))


def test_other_datasets_of_torchvision():
    data = as_images(torchvision.datasets.FakeData(3, (3, 8, 8), transform=transforms.ToTensor()))
    assert data[2][0].shape == (3, 8, 8) and data.labels is None and data.title == "FakeData"


def test_hugging_face():
    data = as_images(Table({"image": picture(), "label": 1}))
    assert data.classes == ("ant", "bee") and data[0][0].shape == (3, 4, 5) and data[0][1] == 1


def test_a_subset_keeps_what_is_known(tmp_path):
    scenes = Scenes("val", 5, size=16)
    scenes.official_split = ["train", "test", "train", "test", "train"]
    part = as_images(Subset(scenes, [3, 1]))
    assert (part.labels, part.official_split, part.file(0)) == ([3, 1], ["test", "test"], "scenes/val/000003")
    assert torch.equal(part.truth(1).mask, scenes.truth(1).mask) and part.classes == scenes.classes


@pytest.mark.parametrize(
    "dataset, says",
    [
        (DataLoader(Items(*PIXELS)), "a DataLoader has no items by index; pass its dataset, loader.dataset"),
        (iter([1]), "a list_iterator has no items by index; pass a map-style dataset"),
        ((image for image in PIXELS), "a generator has no items by index"),
        (Stream(), "a Stream has no items by index"),
        ({"train": 1, "test": 2}, "a dict is not a dataset; pass one of its entries: train, test"),
        ("photos", "'photos' is not a dataset; for a folder of photographs pass Photos('photos')"),
        (None, "a NoneType has no items by index"),
        (torch.zeros(3, 8, 8), "tensors (3, 8, 8) of torch.float32 are not images (N, C, H, W)"),
        (TensorDataset(PIXELS, torch.zeros(2)), "with or without whole labels (N,)"),
        (TensorDataset(PIXELS, torch.zeros(2, dtype=torch.int64), PIXELS), "are not images"),
    ],
)
def test_what_has_no_items_is_refused(dataset, says):
    assert says in refusal(lambda: as_images(dataset))
    assert says in refusal(lambda: Batches(dataset))


@pytest.mark.parametrize(
    "item, says",
    [
        ((PIXELS[0], 1, 2), "item 1 has 3 entries; give an image, or (image, label)"),
        ((), "item 1 has 0 entries"),
        ((PIXELS[0], 0.5), "the label of item 1 is 0.5; give a whole number, or -1 for none"),
        ((PIXELS[0], None), "the label of item 1 is None"),
        ((PIXELS[0], torch.tensor([1, 0])), "the label of item 1 is tensor([1, 0])"),
        ({"pixels": 1, "label": 2}, "item 1 has the keys pixels, label; it needs image or img"),
        ("cat", "the image of item 1 is of type str; give a tensor (C, H, W)"),
        (np.zeros((4, 4, 3)), "the image of item 1 is of type ndarray"),
        (PIXELS, "the image of item 1 is a tensor (2, 3, 4, 4)"),
    ],
)
def test_an_item_of_another_kind_is_named(item, says):
    data = as_images(Items(PIXELS[0], item))
    assert says in refusal(lambda: data[1])
    assert says in refusal(lambda: list(Batches(data)))


def test_whatever_a_transform_raises_names_the_image(folder):
    def broken(image):
        return nothing  # noqa: F821

    message = refusal(lambda: Photos(folder, transform=broken)[1])
    assert message.startswith(f"{folder / 'bee' / '1.png'}: the transform function raised NameError: name 'nothing'")
    assert "scenes/train/000001: the transform function raised NameError" in refusal(
        lambda: Scenes(size=16, transform=broken)[1]
    )


# ---- identity --------------------------------------------------------------------------------------------------------


@dataclass
class Silent:
    """A transform whose representation says nothing."""

    factor: float

    def __repr__(self):
        return "Silent()"

    def __call__(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) * self.factor


class Stated(Silent):
    """A transform that states what it depends on; its results are not read."""

    def identity(self):
        return str(self.factor)

    def __call__(self, image):
        raise AssertionError


def changed(value, index=(0, 0, 0, 0)):
    value = value.clone()
    value[index] += 1
    return value


LABELS = torch.tensor([0, 1])
V2 = (v2.ToImage(), v2.ToDtype(torch.float32))
SCENES = {"split": "val", "count": 3, "size": 16, "seed": 1, "classes": "all", "objects": 2}


def image_folder(root, *steps, **settings):
    transform = v2.Compose(steps) if steps else transforms.ToTensor()
    return torchvision.datasets.ImageFolder(root, transform, **settings)


# each makes a dataset of the folder `ant/1.png`, `bee/1.png`; no two are the same
DATASETS = {
    "tensor": lambda root: PIXELS,
    "one pixel": lambda root: changed(PIXELS),
    "double": lambda root: PIXELS.double(),
    "shape": lambda root: PIXELS.reshape(2, 3, 2, 8),
    "labels": lambda root: TensorDataset(PIXELS, LABELS),
    "one label": lambda root: TensorDataset(PIXELS, changed(LABELS, 0)),
    "items": lambda root: Items(*PIXELS),
    "one pixel of an item": lambda root: Items(*changed(PIXELS)),
    "one label of an item": lambda root: Items((PIXELS[0], 3), PIXELS[1]),
    "classes of items": lambda root: Items(*PIXELS, classes=["ant", "bee"]),
    "other classes of items": lambda root: Items(*PIXELS, classes=["ant", "cat"]),
    "a broken item": lambda root: Items(PIXELS[0], BrokenImage),
    "order": lambda root: Subset(Items(*PIXELS), [1, 0]),
    "subset of items": lambda root: Subset(Items(*PIXELS), [1]),
    "subset": lambda root: Subset(Scenes(**SCENES), [1]),
    "another subset": lambda root: Subset(Scenes(**SCENES), [2]),
    "subset of others": lambda root: Subset(Scenes(**SCENES | {"seed": 2}), [1]),
    "image folder": lambda root: image_folder(root, *V2),
    "resized": lambda root: image_folder(root, v2.Resize(9), *V2),
    "resized more": lambda root: image_folder(root, v2.Resize(10), *V2),
    "scaled": lambda root: image_folder(root, V2[0], v2.ToDtype(torch.float32, scale=True)),
    "normalised": lambda root: image_folder(root, *V2, v2.Normalize([0, 0, 0], [1, 1, 2])),
    "target transform": lambda root: image_folder(root, *V2, target_transform=lambda label: label + 1),
    "lambda": lambda root: image_folder(root, *V2, v2.Lambda(lambda image: image + 1)),
    "another lambda": lambda root: image_folder(root, *V2, v2.Lambda(lambda image: image + 2)),
    "fake": lambda root: torchvision.datasets.FakeData(2, (3, 4, 4)),
    "larger fake": lambda root: torchvision.datasets.FakeData(2, (3, 5, 5)),
    "another fake": lambda root: torchvision.datasets.FakeData(2, (3, 4, 4), random_offset=1),
    "scenes": lambda root: Scenes(**SCENES),
    "split": lambda root: Scenes(**SCENES | {"split": "train"}),
    "count": lambda root: Scenes(**SCENES | {"count": 4}),
    "size": lambda root: Scenes(**SCENES | {"size": (16, 17)}),
    "seed": lambda root: Scenes(**SCENES | {"seed": 2}),
    "classes": lambda root: Scenes(**SCENES | {"classes": "base"}),
    "objects": lambda root: Scenes(**SCENES | {"objects": 3}),
    "silent": lambda root: Scenes(**SCENES, transform=Silent(1)),
    "silent 2": lambda root: Scenes(**SCENES, transform=Silent(2)),
    "stated": lambda root: Scenes(**SCENES, transform=Stated(1)),
    "stated 2": lambda root: Scenes(**SCENES, transform=Stated(2)),
    "photos": Photos,
    "one class": lambda root: Photos(root, classes=["bee"]),
    "classes in another order": lambda root: Photos(root, classes=["bee", "ant"]),
    "silent photos": lambda root: Photos(root, transform=Silent(1)),
    "silent photos 2": lambda root: Photos(root, transform=Silent(2)),
    "stated photos": lambda root: Photos(root, transform=Stated(1)),
    "stated photos 2": lambda root: Photos(root, transform=Stated(2)),
}


def test_no_two_datasets_have_the_same_identity(folder):
    identities = {name: as_images(make(folder)).identity() for name, make in DATASETS.items()}
    names = {identity: name for name, identity in identities.items()}
    assert names.keys() == set(identities.values()) and len(names) == len(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_the_same_dataset_has_the_same_identity(folder, name):
    data = as_images(DATASETS[name](folder))
    identity = data.identity()
    assert identity == data.identity() == as_images(DATASETS[name](folder)).identity()
    if "lambda" not in name and name != "target transform":
        assert pickle.loads(pickle.dumps(data)).identity() == identity


def test_only_the_items_of_a_subset_are_read():
    class Odd(Items):
        def identity(self):
            return "odd"

    whole = Items(PIXELS[0], "no image")
    assert as_images(Subset(whole, [0])).identity() == as_images(Subset(whole, [0])).identity()
    assert "item 1" in refusal(as_images(whole).identity)
    assert as_images(Odd("no image")).identity() != as_images(Odd("no image", classes=["ant"])).identity()


@pytest.mark.parametrize("make", [Photos, lambda root: Subset(Photos(root), [1])])
@pytest.mark.parametrize("what", ["content", "time", "gone"])
def test_a_changed_file_changes_the_identity(folder, make, what):
    data, file = as_images(make(folder)), folder / "bee" / "1.png"
    before, about = data.identity(), os.stat(file)
    if what == "content":  # at the same time
        picture(shade=200).resize((50, 50)).save(file)
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    elif what == "time":
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns + 1000))
    else:
        file.unlink()
    assert data.identity() != before


class InMemory(torchvision.datasets.CIFAR10):
    """CIFAR-10 without its files."""

    def __init__(self, value=0, label=0, transform=None):
        self.data, self.targets, self.target_transform = np.full((2, 4, 4, 3), value, np.uint8), [label, 1], None
        self.transform, self.classes = transform, ["ant", "bee"]


InMemory.__module__ = "torchvision.datasets.cifar"


def test_the_identity_of_a_dataset_in_memory_is_that_of_its_content_and_its_transform():
    variants = [{}, {"value": 1}, {"label": 1}, *({"transform": Stated(factor)} for factor in (1, 2))]
    assert len({as_images(InMemory(**settings)).identity() for settings in variants}) == len(variants)
    assert as_images(InMemory(transform=Stated(1))).identity() == as_images(InMemory(transform=Stated(1))).identity()


@pytest.mark.parametrize("kind, arguments", [(Photos, ()), (Scenes, ("val", 2))])
def test_a_subclass_with_items_of_its_own_has_an_identity_of_its_own(folder, kind, arguments):
    class Darker(kind):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image / 2, label

    arguments = arguments or (folder,)
    assert Darker(*arguments).identity() != kind(*arguments).identity()


def test_labels_and_the_split_are_part_of_a_photograph_s_identity(folder):
    data = Photos(folder)
    identities = {data.identity()}
    data.labels = [1, 0]
    identities.add(data.identity())
    data.official_split = ["train", "test"]
    identities.add(data.identity())
    data.classes = ["ant", "wasp"]
    identities.add(data.identity())
    assert len(identities) == 4


def test_annotations_are_part_of_the_identity(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    picture().save(tmp_path / "JPEGImages" / "a.jpg")
    identities = set()
    for name in ("cat", "dog"):
        text = f"<annotation><filename>a.jpg</filename><object><name>{name}</name></object></annotation>"
        (tmp_path / "Annotations" / "a.xml").write_text(text)
        identities.add(Pascal(tmp_path).identity())
    assert len(identities) == 2


def test_read_item_takes_what_a_subclass_of_images_gives(folder):
    data = Photos(folder, transform=lambda image: image.resize((2, 2)))
    image, label = read_item(data, 1)
    assert image.shape == (3, 2, 2) and label == 1
    strings = Photos(folder, transform=str)
    assert "the image of item 0 (ant/1.png) is of type str" in refusal(lambda: read_item(strings, 0))


class Half(Images):
    """Every second image is broken, the first one too."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index % 2 == 0:
            raise BrokenImage(f"cannot load {index}")
        return torch.zeros(3, 5, 7), 0


def test_the_size_of_images_is_that_of_the_first_that_can_be_read():
    assert image_size(Half()) == (5, 7)
    assert image_size(torch.zeros(2, 1, 4, 6)) == (4, 6)
    with pytest.raises(BrokenImage, match="cannot load 2"):
        image_size(Subset(Half(), [0, 2]))
    with pytest.raises(InputError, match="no images"):
        image_size(torch.zeros(0, 1, 4, 6))


def test_an_image_that_is_too_large_for_a_transform_is_broken():
    def greedy(image):
        raise MemoryError

    def endless(image):
        return endless(image)

    with pytest.raises(BrokenImage, match=r"a\.png: too large for the transform function"):
        transformed(greedy, None, "a.png")
    with pytest.raises(InputError, match=r"a\.png: the transform function raised RecursionError"):
        transformed(endless, 1, "a.png")


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ((torch.zeros(3, 4, 4, device="meta"), 0), "item 0 is a sparse, quantised or meta tensor"),
        ((torch.zeros(3, 4, 4).to_sparse(), 0), "item 0 is a sparse, quantised or meta tensor"),
        ((torch.zeros(3, 4, 4), 2**70), "the label of item 0 is 1180591620717411303424"),
        ((Image.new("La", (4, 4)), 0), "cannot load the image of item 0: "),
        ((Image.new("F", (4, 4)), 0), "cannot load the image of item 0: 32-bit pixels"),
    ],
    ids=["meta", "sparse", "huge label", "mode La", "mode F"],
)
def test_what_is_no_item_is_named(item, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_item(as_images([item]), 0)
