import csv
import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zfnet.data.batches import Batches
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import BrokenImage, InputError

# four flat blocks of 16 x 16 pixels: JPEG keeps them, and every turn of them is different
BLOCKS = np.kron(
    np.uint8([[[250, 20, 20], [20, 240, 30]], [[30, 20, 230], [240, 230, 30]]]), np.ones((16, 16, 1), np.uint8)
)
GREYS = np.kron(np.uint8([[0, 80], [160, 255]]), np.ones((16, 16), np.uint8))


def photos(root, files, image=None):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        (image or Image.new("RGB", (4, 3), "red")).save(path)
    return root


def table(path, header, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def read_image(path):
    """The only photograph of a folder."""
    data = Photos(path.parent)
    assert [data.file(i) for i in range(len(data))] == [path.name]
    return data.image(0)


def loaded(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def refused(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        Photos(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- every kind of image, as upright RGB


LOSSLESS = ["png", "apng", "bmp", "webp", "tif", "tiff", "ppm", "pnm", "jp2", "j2k", "jpx", "jpf", "Png"]


@pytest.mark.parametrize("extension", [*LOSSLESS, "jpg", "jpeg", "JPEG", "jpe", "jfif"])
def test_formats(tmp_path, extension):
    lossless = {"lossless": True} if extension == "webp" else {}
    Image.fromarray(BLOCKS).save(tmp_path / f"a.{extension}", quality=95, subsampling=0, **lossless)
    dataset = Photos(tmp_path)
    assert dataset.file(0) == f"a.{extension}" and dataset.skipped == []
    tolerance = 0 if extension in LOSSLESS else 4
    image, label = dataset[0]
    assert label == -1 and image.dtype == torch.float32 and image.shape == (3, 32, 32)
    assert np.abs(image.permute(1, 2, 0).numpy() * 255 - BLOCKS).max() <= tolerance + 1e-3


def test_gif_shows_its_first_frame(tmp_path):
    first, second = Image.fromarray(BLOCKS), Image.new("RGB", (32, 32), "black")
    first.quantize(8).save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert np.abs(loaded(tmp_path / "a.gif") - BLOCKS).max() <= 2


@pytest.mark.parametrize(
    "mode, extension",
    [("L", "png"), ("L", "jpg"), ("L", "pgm"), ("LA", "png"), ("1", "png"), ("1", "tif"), ("1", "pbm")],
)
def test_greys_have_three_equal_channels(tmp_path, mode, extension):
    Image.fromarray(GREYS if mode != "1" else np.uint8(GREYS > 128) * 255).convert(mode).save(
        tmp_path / f"a.{extension}"
    )
    expected = GREYS if mode != "1" else (GREYS > 128) * 255
    assert np.abs(loaded(tmp_path / f"a.{extension}") - expected[..., None]).max() <= 3


@pytest.mark.parametrize("extension", ["jpg", "tif"])  # Pillow writes JPEG as Adobe does, inverted
def test_cmyk(tmp_path, extension):
    Image.fromarray(BLOCKS).convert("CMYK").save(tmp_path / f"a.{extension}", quality=95)
    assert np.abs(loaded(tmp_path / f"a.{extension}") - BLOCKS).max() <= 6


def test_palette(tmp_path):
    Image.fromarray(BLOCKS).quantize(4).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    assert np.abs(loaded(tmp_path / "a.png") - BLOCKS).max() <= 1


def transparent():
    image = Image.fromarray(BLOCKS).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 16, 16))
    return image


def palette_with_transparent_bytes():
    image = Image.fromarray(np.kron(np.uint8([[0, 1], [2, 3]]), np.ones((16, 16), np.uint8)), "P")
    image.putpalette(BLOCKS[[0, 0, 16, 16], [0, 16, 0, 16]].flatten().tolist())
    image.info["transparency"] = bytes([0, 255, 255, 255])
    return image


def rgb_with_a_transparent_colour():
    image = Image.fromarray(BLOCKS)
    image.info["transparency"] = (250, 20, 20)
    return image


@pytest.mark.parametrize(
    "make", [transparent, palette_with_transparent_bytes, rgb_with_a_transparent_colour], ids=lambda make: make.__name__
)
def test_what_is_transparent_becomes_white(tmp_path, make):
    image = make()
    image.save(tmp_path / "a.png", transparency=image.info.get("transparency"))
    expected = BLOCKS.copy()
    expected[:16, :16] = 255
    assert np.abs(loaded(tmp_path / "a.png") - expected).max() <= 1


def test_half_transparent_black_is_mid_grey(tmp_path):
    Image.new("LA", (2, 2), (0, 128)).save(tmp_path / "a.png")
    assert (loaded(tmp_path / "a.png") == 127).all()


@pytest.mark.parametrize("extension", ["png", "tif", "ppm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, extension):
    Image.fromarray(GREYS.astype(np.uint16) * 257).save(tmp_path / f"a.{extension}")
    assert (loaded(tmp_path / f"a.{extension}") == GREYS[..., None]).all()


def test_sixteen_bits_are_rounded(tmp_path):
    Image.fromarray(np.uint16([[0, 128, 129, 51460, 51530, 65535]])).save(tmp_path / "a.png")
    assert loaded(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 200, 201, 255]


def test_sixteen_bits_in_thirty_two_are_scaled(tmp_path):
    Image.fromarray(GREYS.astype(np.int32) * 257).save(tmp_path / "a.tif")
    assert Image.open(tmp_path / "a.tif").mode == "I"
    assert (loaded(tmp_path / "a.tif") == GREYS[..., None]).all()


@pytest.mark.parametrize("values", [np.int32([[0, 70000]]), np.int32([[-1, 9]]), np.float32([[0, 1]])])
def test_thirty_two_bits_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(BrokenImage, match=r"a\.tif: 32-bit pixels have no agreed white"):
        read_image(tmp_path / "a.tif")


# how the upright picture must be stored for a viewer that obeys the tag to show it upright
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_turns_upright(tmp_path, orientation, extension):
    upright = BLOCKS[:, :24]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.save(tmp_path / f"a.{extension}", exif=exif, quality=95)
    assert np.median(np.abs(loaded(tmp_path / f"a.{extension}") - upright)) <= 6
    assert Photos(tmp_path, transform=Preprocessing(size=16, resize=None))[0][0].shape == (3, 16, 16)


@pytest.mark.parametrize("exif", [b"no tags at all", b"II*\0\xff\xff\xff\xff junk", b"II"])
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_unreadable_exif_is_ignored(tmp_path, exif, extension):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(BLOCKS).save(path, quality=95, subsampling=0, lossless=True, exif=b"Exif\0\0" + exif)
    assert np.abs(loaded(path) - BLOCKS).max() <= 4


# --- images that cannot be loaded


def encoded(extension):
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(data, extension)
    return data.getvalue()


def blank(width, height, kind=0):
    """A PNG that says it has so many pixels, and holds none of them."""

    def chunk(name, body):
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, kind, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def bomb():
    return blank(60000, 60000, 2)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "the file is empty"),
        (b"not an image", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image of a known format"),
        (encoded("JPEG")[:2000], "truncated"),
        (encoded("PNG")[:2000], "truncated"),
        (encoded("BMP")[:2000], "truncated"),
        (encoded("GIF")[:1000], ""),
        (encoded("TIFF")[:2000], ""),
        (encoded("WEBP")[:1000], ""),
        (bomb(), "decompression bomb"),
        (blank(1, 3_000_000), "1 x 3000000 pixels: one side is more than 1,000 times the other"),
        (blank(100_000, 99), "100000 x 99 pixels: one side"),
        (blank(11_000, 11_000), "11000 x 11000 pixels, more than the 76,69"),
        (blank(7_000, 7_000, 6), "that are read of a PNG of mode RGBA"),
    ],
    ids=[
        *("empty", "text", "postscript", "jpeg", "png", "bmp", "gif", "tiff", "webp"),
        *("bomb", "needle", "thread", "large", "large and transparent"),
    ],
)
def test_broken_image_is_named_with_its_reason(tmp_path, data, reason):
    (tmp_path / "a.jpg").write_bytes(data)
    dataset = Photos(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BrokenImage) as caught:
            dataset[0]
    message = str(caught.value)
    assert message.startswith(f"cannot load {tmp_path / 'a.jpg'}: ") and reason in message
    assert "\n" not in message and not message.endswith(": ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_file_that_went_away_is_named(tmp_path):
    dataset = Photos(photos(tmp_path, ["a.png"]))
    (tmp_path / "a.png").unlink()
    with pytest.raises(BrokenImage, match=r"a\.png: No such file"):
        dataset[0]


def test_large_photograph_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # Pillow warns above this and refuses above its double
    Image.fromarray(BLOCKS).save(tmp_path / "a.png")
    assert (loaded(tmp_path / "a.png") == BLOCKS).all()


def test_an_image_of_a_thousand_times_its_width_is_read(tmp_path):
    Image.new("L", (1, 1000)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").size == (1, 1000)


def test_a_mistake_of_our_own_is_no_damaged_image(tmp_path, monkeypatch):
    photos(tmp_path, ["a.png"])
    monkeypatch.delattr("zfnet.data.photos._MOST_ASPECT")
    with pytest.raises(NameError):
        read_image(tmp_path / "a.png")


def test_damage_in_a_zip_is_named(tmp_path):
    photos(tmp_path / "files", ["a.png", "b.png"])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in ("a.png", "b.png"):
            archive.write(tmp_path / "files" / file, file)
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"IDAT", b"IDAX", 1))
    with pytest.raises(BrokenImage, match=r"a\.zip/a\.png: Bad CRC-32"):
        Photos(tmp_path / "a.zip")[0]
    assert Photos(tmp_path / "a.zip")[1][0].shape == (3, 3, 4)


# --- small files with large images


def tiff(*tags, data=b""):
    """A TIFF of these tags (number, type, count, value), with its data at 400."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return (struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)).ljust(400, b"\0") + data


def tiled(side, *more):
    """A TIFF of 16 x 16 pixels, in one tile of that side that is not there."""
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 400, 325: 9}
    return tiff(*((number, 4, 1, value) for number, value in tags.items() if number not in {m[0] for m in more}), *more)


def scans(count):
    """A progressive JPEG of 8000 x 8000 pixels with so many scans more than it needs."""
    file = io.BytesIO()
    Image.fromarray(BLOCKS).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start, last = data.index(b"\xff\xc2"), data.rindex(b"\xff\xda")
    sides = struct.pack(">HH", 8000, 8000)
    return data[: start + 5] + sides + data[start + 9 : last] + data[last:-2] * count + b"\xff\xd9"


@pytest.mark.parametrize(
    "data, reason",
    [
        (tiled(2**15), "tiles of 32768 x 32768 pixels, more than the 41,"),
        (tiled(16, (324, 4, 2**17, 400)) + bytes(2**19), "its tags have 131,081 values, more than the 131,072"),
        (scans(80), "89 scans of 8000 x 8000 pixels, which would take too long"),
        (b"P6 3000 3000 254\n" + bytes(99), "3000 x 3000 pixels, more than the 8,388,608 that are read of a PPM"),
        (b"P5 99999999999 9 255\n", "Token too long"),
        (b"P5 40 40 99999\n", ""),
    ],
    ids=["tile", "many strips", "scans", "slow", "absurd", "white"],
)
def test_what_would_fill_the_memory_or_take_for_ever_is_named(tmp_path, data, reason):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BrokenImage) as caught:
        Photos(tmp_path)[0]
    assert reason in str(caught.value)


def test_a_decoder_that_takes_too_much_memory_is_named(tmp_path, monkeypatch):
    photos(tmp_path, ["a.png"])
    monkeypatch.setattr("zfnet.data.photos.upright_rgb", lambda image: bytearray(2**50))
    with pytest.raises(BrokenImage, match=r"a\.png: it takes more than 1,024 MiB to decode"):
        Photos(tmp_path)[0]


def test_a_photograph_that_would_be_too_large_as_a_tensor(tmp_path, monkeypatch):
    photos(tmp_path, ["a.png"])
    monkeypatch.setattr("zfnet.data.photos._MORE_BYTES", 2**27)  # that is 8 pixels
    with pytest.raises(BrokenImage, match="4 x 3 pixels, more than the 8 that are read without a transform"):
        Photos(tmp_path)[0]
    assert Photos(tmp_path, transform=Preprocessing(size=2, resize=2))[0][0].shape == (3, 2, 2)


# --- what is not a file, and odd names


def left_out(root):
    with pytest.warns(UserWarning, match="not read") as said:
        dataset = Photos(root)
    return dataset.skipped, str(said[0].message)


@pytest.mark.skipif(os.name == "nt", reason="there are no such things there")
def test_what_is_no_file_is_named_counted_and_left_out(tmp_path):
    photos(tmp_path, ["x/1.png"])
    os.mkfifo(tmp_path / "x/2.png")
    (tmp_path / "x/3.png").symlink_to("nothing")
    (tmp_path / "x/4.png").mkdir()
    (tmp_path / "x/5.png").symlink_to("5.png")
    os.mkfifo(tmp_path / "x/notes.txt")  # looks like no image
    (tmp_path / "x/sub.jpg").mkdir()  # a folder like others: it holds a photograph
    photos(tmp_path, ["x/sub.jpg/1.png"])
    skipped, message = left_out(tmp_path)
    assert skipped == ["x/2.png", "x/3.png", "x/4.png", "x/5.png"]
    assert "4 image file(s) or folder(s) are not read, first x/2.png (a named pipe)" in message


@pytest.mark.skipif(os.name == "nt", reason="there are no such things there")
def test_a_file_that_became_a_pipe_is_named_and_not_waited_for(tmp_path):
    dataset = Photos(photos(tmp_path, ["a.png"]))
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BrokenImage, match=r"a\.png: it is a named pipe, not a file"):
        dataset[0]


def test_a_sparse_file_of_gigabytes_is_named(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**32)
    with pytest.raises(BrokenImage, match="it has 4,294,967,296 bytes, more than the 134,217,728 that are read"):
        Photos(tmp_path)[0]


def test_a_folder_that_goes_away(tmp_path):
    dataset = Photos(photos(tmp_path / "root", ["a/1.png"]))
    (tmp_path / "root").rename(tmp_path / "other")
    with pytest.raises(BrokenImage, match="No such file"):
        dataset[0]
    assert "is missing" in dataset.stamp(0) and dataset.identity()


@pytest.mark.skipif(os.name == "nt", reason="there are no such names there")
@pytest.mark.parametrize("name", [b"\xff\xfe", b"\x1b[31mred", b"two\nlines", b"tab\t", "\u202ereversed".encode()])
def test_odd_names_are_read_and_printed_escaped(tmp_path, name):
    folder = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(folder)
    content = (photos(tmp_path / "outside", ["a.png"]) / "a.png").read_bytes()
    for file, data in ((b"1.png", content), (b"2" + name + b".png", b"")):
        Path(os.fsdecode(folder + b"/" + file)).write_bytes(data)
    dataset = Photos(os.fsdecode(folder))
    assert dataset[0][0].shape == (3, 3, 4)
    with pytest.raises(BrokenImage) as caught:
        dataset[1]
    for message in (str(caught.value), dataset.name(1), *Batches(dataset, workers=0)._reads([[1]]).__next__().broken):
        assert message.isprintable() and message.encode()
    assert dataset.identity() == Photos(os.fsdecode(folder)).identity()


# --- labels


def test_class_folders(tmp_path):
    photos(tmp_path, ["b/2.png", "b/deep/er/1.png", "a b/1.JPG", "a/10.png", "a/9.png", "a/.hidden.png", ".git/1.png"])
    (tmp_path / "a/notes.txt").write_text("no photograph")
    (tmp_path / "empty").mkdir()
    dataset = Photos(tmp_path)
    assert [dataset.file(i) for i in range(len(dataset))] == [
        "a/10.png",
        "a/9.png",
        "a b/1.JPG",
        "b/2.png",
        "b/deep/er/1.png",
    ]
    assert dataset.classes == ["a", "a b", "b"] and dataset.labels == [0, 0, 1, 2, 2]
    assert [label for _, label in dataset] == dataset.labels


def test_image_files_that_are_not_read_are_counted(tmp_path):
    photos(tmp_path, ["a/1.png", "b/1.png"])
    for file in ("a/2.HEIC", "b/2.avif", "b/notes.txt"):
        (tmp_path / file).write_bytes(b"what another program reads")
    with pytest.warns(UserWarning, match=r"2 image file.* are not read, first a/2.HEIC \(another format: convert it"):
        dataset = Photos(tmp_path)
    assert dataset.skipped == ["a/2.HEIC", "b/2.avif"] and len(dataset) == 2
    (tmp_path / "heic").mkdir()
    (tmp_path / "heic" / "1.heic").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 image file.* not read"):
        assert "no photographs in" in refused(tmp_path / "heic")


def test_classes_choose_and_order(tmp_path):
    photos(tmp_path, ["cat/1.png", "dog/1.png", "eel/1.png"])
    dataset = Photos(tmp_path, classes=["eel", "cat"])
    assert [(dataset.file(i), dataset.labels[i]) for i in range(2)] == [("cat/1.png", 1), ("eel/1.png", 0)]
    assert dataset.classes == ["eel", "cat"] and len(dataset) == 2
    assert "did you mean 'dog'" in refused(tmp_path, classes=["dogg"])
    assert "twice" in refused(tmp_path, classes=["cat", "cat"])


def test_flat_folder(tmp_path):
    dataset = Photos(photos(tmp_path, ["b.png", "B.png", "a.png"]))
    assert [dataset.file(i) for i in range(3)] == ["B.png", "a.png", "b.png"]
    assert dataset.labels == [-1] * 3 and dataset.classes == []
    assert "give labels=" in refused(tmp_path, classes=["cat"])


def test_labels_csv_of_the_folder(tmp_path):
    photos(tmp_path, ["b.png", "a.png", "not_listed.png"])
    table(tmp_path / "labels.csv", ["file", "class_index", "class_name"], ["b.png", 3, "crane"], ["a.png", 1, "crane"])
    dataset = Photos(tmp_path)
    assert [dataset.file(i) for i in range(len(dataset))] == ["a.png", "b.png"]
    assert dataset.labels == [1, 3] and dataset.classes == ["0", "crane", "2", "crane"]
    assert Photos(tmp_path, classes=list("pqrst")).classes == list("pqrst")
    assert "class_index 3, of 2 classes" in refused(tmp_path, classes=["p", "q"])


HEADERS = [("file", "class"), ("filename", "label"), ("Path", " Label "), ("IMAGE", "class_name")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", HEADERS, ids="-".join)
def test_tables_as_other_programs_write_them(tmp_path, header, delimiter, encoding):
    photos(tmp_path, ["a/1.png", "a/2.png", "b/3.png"])
    rows = [header, ("a\\1.png", "ant"), ("b/3.png", '"bée; or, wasp"'), (), ("a/2.png", "ant", "")]
    quoted = [[value if value[:1] == '"' else f'"{value}"' for value in row] for row in rows]
    text = "\r\n".join(delimiter.join(row) for row in quoted)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    dataset = Photos(tmp_path)
    named = {dataset.file(i): dataset.classes[label] for i, label in enumerate(dataset.labels)}
    assert named == {"a/1.png": "ant", "a/2.png": "ant", "b/3.png": "bée; or, wasp"}


def test_labels_are_numbers_or_names_and_not_both(tmp_path):
    photos(tmp_path, ["a.png", "z.png"])
    table(tmp_path / "labels.csv", ["image", "label"], ["a.png", 2], ["z.png", 0])
    assert Photos(tmp_path).labels == [2, 0] and Photos(tmp_path).classes == ["0", "1", "2"]
    table(tmp_path / "labels.csv", ["image", "label"], ["a.png", "2"], ["z.png", "ant"])
    assert "has the labels '2' in line 2 and 'ant' in line 3; give numbers or names, not both" in refused(tmp_path)
    for odd in ("-1", "1.0"):  # no class is called so
        table(tmp_path / "labels.csv", ["image", "label"], ["a.png", "2"], ["z.png", odd])
        assert f"line 3: label is '{odd}'; give a whole number from 0" in refused(tmp_path)
    (tmp_path / "labels.csv").write_text("image, label\na.png, ant\nz.png, wasp\n")
    assert Photos(tmp_path).classes == ["ant", "wasp"]


@pytest.mark.parametrize(
    "content, says",
    [
        ("file,class\na.png,caf\xe9\n".encode("latin-1"), "not text in UTF-8 in line 2: "),
        ("file,class\na.png,x\n".encode("utf-16-le"), "it holds zero bytes, so it is not text; save it as UTF-8"),
        (b"\xff\xfef\0i\0", "has the columns fi; it needs file, filename, path or image, and class_index, class_name"),
        (b"file,class\na.png,\0\n", "it holds zero bytes"),
        (b"file,class\na.png," + b"x" * 200_000, "line 2: field larger than field limit"),
        (b'file,class\n"a.png,x\nz.png,y\n', "unexpected end of data"),
        (b"file,class\na.png,x,y\n", "line 2 has 3 values for 2 columns"),
        (b"file,class,File\na.png,x,y\n", "has the column file twice"),
        (b"path,image,class\na.png,a.png,x\n", "has the columns path and image; call the one with the paths file"),
        (b"file,class_index\na.png,99999999999999\n", "give a whole number from 0 to 999,999"),
        (b"file,class\n..\\a.png,x\n", "give a path inside the folder"),
        (b"file,class\n\x1b[1m,x\n", "first \\x1b[1m"),
        (b"", "has the columns none"),
    ],
)
def test_no_table_is_guessed(tmp_path, content, says):
    photos(tmp_path, ["a.png", "z.png"])
    (tmp_path / "labels.csv").write_bytes(content)
    message = refused(tmp_path)
    assert says in message and message.isprintable() and len(message) < 1000


@pytest.mark.skipif(os.name == "nt", reason="there are no such things there")
@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a link to nothing"])
def test_a_table_that_is_no_file_is_not_passed_over(tmp_path, kind):
    photos(tmp_path, ["x/a.png"])
    path = tmp_path / "labels.csv"
    {"a named pipe": os.mkfifo, "a folder": os.mkdir, "a link to nothing": lambda path: path.symlink_to("no")}[kind](
        path
    )
    assert f"labels.csv: it is {kind}" in refused(tmp_path)


@pytest.mark.parametrize("column", ["class", "class_name"])
def test_labels_by_name(tmp_path, column):
    photos(tmp_path, ["x/1.png", "x/2.png", "y/3.png"])
    table(tmp_path / "split.csv", ["file", column], ["y/3.png", "ant"], ["x/2.png", "bee"], ["x/1.png", "ant"])
    dataset = Photos(tmp_path, labels="split.csv")
    assert dataset.labels == [0, 1, 0] and dataset.classes == ["ant", "bee"]
    dataset = Photos(tmp_path, labels=tmp_path / "split.csv", classes=["bee"])
    assert [dataset.file(0), dataset.labels, dataset.classes] == ["x/2.png", [0], ["bee"]]


@pytest.mark.parametrize(
    "header, rows, says",
    [
        (["file", "class"], [["b.png", "x"], ["c.png", "x"], ["a.png", "x"]], "2 file(s) that are not in"),
        (["file", "class"], [["c.png", "x"]], "first c.png"),
        (["file", "wnid"], [["a.png", "x"]], "has the columns file, wnid"),
        (["class"], [["x"]], "it needs file"),
        (["file", "class"], [], "no photographs in"),
        (["file", "class"], [["a.png", "x"], ["a.png", "y"]], "lists a.png twice"),
        (["file", "class"], [["a.png", "x"], [".//a.png", "y"]], "lists a.png twice"),
        (["file", "class"], [["a.png", ""]], "line 2: a.png has no class"),
        (["file", "class"], [["", "x"]], "line 2: file is ''"),
        (["file", "class"], [["../a.png", "x"]], "inside the folder"),
        (["file", "class_index"], [["a.png", "-1"]], "class_index is '-1'"),
        (["file", "class_index"], [["a.png"]], "class_index is None"),
        (["file", "class_index", "class"], [["a.png", 0, "x"], ["z.png", 0, "y"]], "class 0 is 'x' and 'y'"),
    ],
)
def test_bad_tables_are_refused(tmp_path, header, rows, says):
    photos(tmp_path, ["a.png", "z.png"])
    table(tmp_path / "labels.csv", header, *rows)
    assert says in refused(tmp_path)


def test_table_that_is_not_there_or_no_text(tmp_path):
    photos(tmp_path, ["a.png"])
    assert "nothing.csv: No such file" in refused(tmp_path, labels="nothing.csv")
    assert "cannot read" in refused(tmp_path, labels="a.png")


def test_folders_that_hold_no_dataset(tmp_path):
    assert "nothing does not exist" in refused(tmp_path / "nothing")
    assert "no photographs in" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    assert "no photographs in" in refused(tmp_path)
    assert "is a file, not a folder" in refused(tmp_path / "notes.txt")
    photos(tmp_path, ["a/1.png", "stray.png"])
    assert "stray.png" in refused(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_are_followed_but_not_round_and_round(tmp_path):
    photos(tmp_path / "elsewhere", ["1.png"])
    photos(tmp_path / "root", ["a/1.png"])
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/a/loop").symlink_to(tmp_path / "root")
    dataset = Photos(tmp_path / "root")
    assert [dataset.file(i) for i in range(len(dataset))] == ["a/1.png", "b/1.png"]


def test_transform(tmp_path):
    dataset = Photos(photos(tmp_path, ["a.png"]), transform=lambda image: (image.mode, image.size))
    assert dataset[0] == (("RGB", (4, 3)), -1)
    with pytest.raises(InputError, match=r"a\.png: an image of 4 x 3 pixels is smaller than 224"):
        Photos(tmp_path, transform=Preprocessing(resize=None))[0]


# --- the photographs themselves, where there are any

REAL = Path(os.environ.get("ZFNET_REAL_DATA", "nowhere"))


@pytest.mark.skipif(not (REAL / "imagenet_samples").is_dir(), reason="ZFNET_REAL_DATA names no imagenet_samples")
def test_imagenet_samples():
    dataset = Photos(REAL / "imagenet_samples", transform=Preprocessing())
    assert len(dataset) == 801 and len(set(dataset.labels)) == 801 and dataset.classes[998] == "ear"
    assert dataset.file(0) == "n01440764_tench.jpg" and dataset.labels[0] == 0 and dataset.classes[0] == "tench"
    image, label = dataset[800]
    assert image.shape == (3, 224, 224) and label == dataset.labels[800]


@pytest.mark.skipif(not (REAL / "caltech101").is_dir(), reason="ZFNET_REAL_DATA names no caltech101")
def test_caltech():
    folders, split = Photos(REAL / "caltech101"), Photos(REAL / "caltech101", labels="split.csv")
    assert len(folders) == len(split) == 1200 and len(folders.classes) == 20
    assert [folders.file(i) for i in range(1200)] == [split.file(i) for i in range(1200)]
    names = [[photos.classes[label] for label in photos.labels] for photos in (folders, split)]
    assert names[0] == names[1]


def test_a_stamp_is_another_once_the_file_was_changed(tmp_path):
    photos(tmp_path, ["a.png", "b.png"])
    before = [Photos(tmp_path).stamp(n) for n in range(2)]
    photos(tmp_path, ["b.png"], Image.new("RGB", (4, 3), "blue"))
    after = [Photos(tmp_path).stamp(n) for n in range(2)]
    assert before[0] == after[0] and before[1] != after[1] and len({*before}) == 2


def test_a_table_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("zfnet.data.annotations._MOST_VALUES", 40)
    for text in ("file,label\n" + "a.jpg,0\n" * 11, "file,label" + "," * 15 + "\na.jpg,0\n" * 3):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(InputError, match=r"labels.csv has too many rows: \d+ of \d+ columns"):
            Photos(tmp_path)
