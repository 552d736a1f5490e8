import numpy as np
import pytest
from PIL import Image

from zfnet.data.parts import parts_of
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.errors import InputError

HEAD = "file,part,x,y,side\n"


@pytest.fixture
def photos(tmp_path):
    """Two black photographs, 120 x 200, with a white square of 40 pixels around (80, 100); one is stored sideways."""
    picture = np.zeros((200, 120, 3), np.uint8)
    picture[80:120, 60:100] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(picture))).save(tmp_path / "b.png", exif=exif)
    return Photos(tmp_path, transform=Preprocessing(size=56, resize=60))


def table(photos, text):
    path = photos.root / "parts.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("mode", ["shortest", "warp"])
def test_a_box_is_where_the_network_sees_the_part(photos, mode):
    photos.transform = preprocessing = Preprocessing(size=56, resize=60, mode=mode)
    rows = table(photos, HEAD + "".join(f"{file}.png,square,80,100,40\n" for file in "ab"))
    boxes = parts_of(photos, ["square"], table=rows)
    assert list(boxes) == [0, 1]
    for item, parts in boxes.items():
        white = preprocessing.pixels(photos[item][0])[0] > 0.5
        top, left, bottom, right = parts["square"]
        assert white[top:bottom, left:right].all() and white.sum() == (bottom - top) * (right - left)


def test_names_are_words_in_any_order_and_items_without_a_part_are_left_out(photos):
    rows = table(photos, HEAD + "b.png,Left_Eye,70,100,8\nb.png,nose,40,90,10\na.png,nose,50,90,10\n")
    assert list(parts_of(photos, ["nose"], table=rows)) == [1, 0]
    boxes = parts_of(photos, ["nose", "eye left"], table=rows)
    assert list(boxes) == [1] and list(boxes[1]) == ["nose", "eye left"]


def test_scenes_know_their_parts():
    data = Scenes("val", 64, size=48, transform=Preprocessing(size=48))
    boxes = parts_of(data, ["left eye", "nose"], kind="dog")
    dogs = [i for i in range(64) if data.classes[data.labels[i]] == "dog"]
    assert list(boxes) == [i for i in dogs if {"eye_left", "nose"} <= data.scene(i).parts.keys()] and len(boxes) > 2
    for i, parts in boxes.items():
        assert parts == {"left eye": data.scene(i).parts["eye_left"], "nose": data.scene(i).parts["nose"]}
    assert len(parts_of(data, ["left eye", "nose"])) > len(boxes)


def test_scenes_seen_at_another_size():
    boxes = parts_of(Scenes("val", 2, size=96, transform=Preprocessing(size=48, resize=48)), ["head"])
    exact = parts_of(Scenes("val", 2, size=96), ["head"])
    assert all(np.abs(np.array(boxes[i]["head"]) - np.array(exact[i]["head"]) / 2).max() <= 0.5 for i in boxes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "lists no parts"),
        ("file,part,x,y\na.png,nose,1,1\n", "has no column side; it needs file, part, x, y, side"),
        (HEAD + "c.png,nose,80,90,10\n", "line 2: c.png is not among the 2 photographs"),
        (HEAD + "a.png,nose,80,ninety,10\n", "line 2: x, y, side are 80, ninety, 10; give three numbers"),
        (HEAD + "a.png,nose,80,90\n", "line 2: x, y, side are 80, 90, None"),
        (HEAD + "a.png,nose,80,90,0\n", "give three numbers"),
        (HEAD + "a.png,nose,80,90,9\na.png,nose,80,90,9\n", "line 3: a.png has nose twice"),
        (HEAD + "a.png,,80,90,9\n", "line 2: a.png has a part without a name"),
        (HEAD + "a.png,nose,118,90,10\n", "nose reaches outside a.png, which is 120 x 200 pixels"),
        (HEAD + "a.png,nose,80,20,10\n", "nose of a.png .* is not in the 56 x 56 pixels that the network sees"),
        (HEAD + "a.png,noose,80,100,10\n", "no part 'nose' .did you mean 'noose'"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(photos, text, message):
    with pytest.raises(InputError, match=message) as caught:
        parts_of(photos, ["nose"], table=table(photos, text))
    assert "\n" not in str(caught.value)


def test_what_has_no_parts_is_refused(photos):
    with pytest.raises(InputError, match="Photos has no boxes of parts: give a CSV file"):
        parts_of(photos, ["nose"])
    with pytest.raises(InputError, match=r"cannot read .*none.csv"):
        parts_of(photos, ["nose"], table=photos.root / "none.csv")
    with pytest.raises(InputError, match="no class 'dgo'"):
        parts_of(Scenes("val", 4, size=16), ["nose"], kind="dgo")
    with pytest.raises(InputError, match="Scenes has no files"):
        parts_of(Scenes("val", 4, size=16), ["nose"], table=table(photos, HEAD))


def test_the_annotated_dogs(real_data):
    data = Photos(real_data / "imagenet_samples", transform=Preprocessing(size=227, mode="warp"))
    boxes = parts_of(data, ["left eye", "right eye", "nose"], table=real_data / "dog_parts" / "parts.csv")
    assert len(boxes) == 16
    for parts in boxes.values():
        assert parts["left eye"][1] < parts["right eye"][1]
        assert parts["nose"][0] > min(parts["left eye"][0], parts["right eye"][0])


OBJECT = (
    "<object><name>square</name>"
    "<bndbox><xmin>61</xmin><ymin>81</ymin><xmax>100</xmax><ymax>120</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path):
    """One photograph, 120 x 200, with a white square from (60, 80) to (100, 120), in VOC's layout."""
    picture = np.zeros((200, 120, 3), np.uint8)
    picture[80:120, 60:100] = 255
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder).mkdir()
    Image.fromarray(picture).save(tmp_path / "JPEGImages/a.png")
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{OBJECT}</annotation>")
    return tmp_path


@pytest.mark.parametrize("root", ["", "JPEGImages"])
def test_objects_are_where_voc_says(voc, root):
    photos = Photos(voc / root, transform=Preprocessing(size=56, resize=60))
    ((top, left, bottom, right),) = photos.truth(0).objects
    white = photos.transform.pixels(photos[0][0])[0] > 0.5
    assert white[top:bottom, left:right].all() and white.sum() == (bottom - top) * (right - left)
    assert Photos(voc / root).truth(0) == (None, [(80, 60, 120, 100)], None)
    assert Photos(voc / root, transform=lambda image: image.resize((9, 9))).truth(0) is None  # who knows where it is


def test_other_photographs_know_nothing(photos):
    assert photos.truth(0) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("<annotation>", "no element found|unclosed"),
        (f"<annotation>{OBJECT.replace('81', 'x')}</annotation>", "'x'"),
    ],
)
def test_annotations_that_cannot_be_read_are_named(voc, text, says):
    path = voc / "Annotations/a.xml"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=says) as error:
        Photos(voc).truth(0)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
