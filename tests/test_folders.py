"""A zip is the folder it was made of: the same files, folders and contents, whichever process reads them."""

import contextlib
import os
import pickle
import socket
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from zfnet.data import folders
from zfnet.data.batches import Batches
from zfnet.data.folders import Folder
from zfnet.data.photos import Photos
from zfnet.errors import BrokenImage, InputError

FILES = [
    "b.txt",
    "a/2",
    "a/10",
    "a b/x.JPEG",
    "a.b/deep/er/1.png",
    "z/1.png",
    "a/é.png",
    ".hidden/1",
    "a/.hidden",
    "a/B",
]


def zipped(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    return target


@pytest.fixture
def tree(tmp_path):
    for number, file in enumerate(FILES):
        path = tmp_path / "tree" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * number)
    (tmp_path / "tree/empty").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def paths(tree, tmp_path):
    """The same folder on the disk, as a zip, and in a zip."""
    return tree, zipped(tree, tmp_path / "tree.zip"), zipped(tree, tmp_path / "more.zip", "some/where/") / "some/where"


def refused(path):
    with pytest.raises(InputError) as caught:
        Folder(path).files()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_are_those_that_a_walk_finds_ordered_by_their_parts(tree):
    walked = [Path(folder, name).relative_to(tree) for folder, _, names in os.walk(tree) for name in names]
    seen = [file for file in walked if not any(part.startswith(".") for part in file.parts)]
    assert [PurePosixPath(file) for file in Folder(tree).files()] == sorted(seen, key=lambda file: file.parts)
    assert Folder(tree).files()[:3] == ["a/10", "a/2", "a/B"]


def test_a_zip_is_the_folder_it_was_made_of(paths):
    folders = [Folder(path) for path in paths]
    assert folders[0].files() == folders[1].files() == folders[2].files()
    assert folders[0].folders() == folders[1].folders() == folders[2].folders() == ["a", "a b", "a.b", "empty", "z"]
    for folder in folders:
        for number, file in enumerate(FILES):
            assert file in folder and folder.read(file) == bytes([number]) * number
        assert "a/3" not in folder and "a" not in folder
        with pytest.raises(FileNotFoundError):
            folder.read("a/3")
        assert Folder(folder.path / "a.b").files() == ["deep/er/1.png"]
        assert pickle.loads(pickle.dumps(folder)).read("a/2") == folder.read("a/2")


def test_what_macos_adds_to_a_zip_is_not_there(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("photos/1.png", "__MACOSX/", "__MACOSX/photos/._1.png", "photos/.DS_Store"):
            archive.writestr(name, b"")
    assert Folder(tmp_path / "a.zip").files() == ["photos/1.png"] and Folder(tmp_path / "a.zip").folders() == ["photos"]


def test_what_is_no_folder(paths, tmp_path):
    tree, whole, _ = paths
    assert "nothing does not exist" in refused(tmp_path / "nothing")
    assert "is a file, not a folder" in refused(tree / "b.txt")
    assert "holds no folder a/c" in refused(whole / "a/c")
    assert "holds no folder b.txt" in refused(whole / "b.txt")
    content = whole.read_bytes()
    for length in (0, 1, 30, len(content) // 2, len(content) - 30, len(content) - 1):
        (tmp_path / "part.zip").write_bytes(content[:length])
        assert "part.zip is a file, not a folder or a whole zip" in refused(tmp_path / "part.zip")


@pytest.fixture
def album(tmp_path):
    """A zip of 120 photographs, one of which is damaged."""
    folder = tmp_path / "album"
    for i in range(120):
        (folder / f"{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), i, np.uint8)).save(folder / f"{i % 3}/{i:03d}.bmp")
    path = zipped(folder, tmp_path / "album.zip")
    content = bytearray(path.read_bytes())
    start = zipfile.ZipFile(path).getinfo("1/100.bmp").header_offset
    content[start + 45 : start + 60] = bytes(15)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_photographs_in_a_zip_are_read_by_every_process(album, workers):
    dataset = Photos(album)
    assert len(dataset) == 120 and dataset.classes == ["0", "1", "2"]
    dataset[0]  # opened here before the workers start
    batches = Batches(dataset, 2, workers=workers)
    seen = {}
    for batch in batches:
        for i, image in zip(batch.index.tolist(), batch.images, strict=True):
            seen[dataset.file(i)] = (image * 255).round()
    assert len(seen) == 119 and len(batches.broken) == 1 and f"{album / '1/100.bmp'}: " in batches.broken[0]
    assert all((image == int(file[2:5])).all() for file, image in seen.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks there")
def test_processes_that_read_one_zip_do_not_disturb_each_other(tmp_path):
    contents = [bytes([i]) * 300_000 for i in range(4)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, content in enumerate(contents):
            archive.writestr(f"a/{i}", content)
    folder = Folder(tmp_path / "a.zip")

    def differ():
        return sum(folder.read(f"a/{i}") != contents[i] for _ in range(150) for i in range(4))

    children = []
    for _ in range(3):
        if not (child := os.fork()):
            wrong = 1
            with contextlib.suppress(Exception):
                wrong = differ()
            os._exit(bool(wrong))
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_labels_csv_in_a_zip(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "1.png", "x/1.png")
        archive.writestr("labels.csv", "file,class\nx/1.png,ant\n")
        archive.writestr("wrong.csv", "file,class\nx/1.png,ant\nx/2.png,ant\n")
    dataset = Photos(tmp_path / "a.zip")
    assert (dataset.file(0), dataset.labels, dataset.classes) == ("x/1.png", [0], ["ant"])
    for table, says in (("wrong.csv", "first x/2.png"), ("none.csv", "none.csv: No such file")):
        with pytest.raises(InputError, match=says):
            Photos(tmp_path / "a.zip", labels=table)


def test_a_zip_that_went_away(album):
    dataset = pickle.loads(pickle.dumps(Photos(album)))
    album.unlink()
    with pytest.raises(BrokenImage, match="No such file"):
        dataset[0]


# --- what is not a file


posix = pytest.mark.skipif(os.name == "nt", reason="there are no such things there")


def linked(path, target):
    path.symlink_to(target)


ODD = {
    "a named pipe": os.mkfifo if hasattr(os, "mkfifo") else None,
    "a link to nothing": lambda path: linked(path, "nothing"),
    "a link to itself": lambda path: linked(path, path),
    "a device": lambda path: linked(path, "/dev/zero"),
}


@posix
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_listed_as_what_it_is_and_never_opened(tree, kind):
    whole = Folder(tree).files()
    ODD[kind](tree / "a" / "odd.png")
    listing = Folder(tree).listing()
    assert listing.files == whole and listing.odd == {"a/odd.png": kind}
    assert "a/odd.png" not in Folder(tree) and Folder(tree).mentions("a/odd.png")
    with pytest.raises(OSError) as caught:
        Folder(tree).read("a/odd.png")
    assert kind in caught.value.strerror
    with pytest.raises(InputError, match=f"is {kind}, not a folder"):
        Folder(tree / "a" / "odd.png")


@posix
def test_a_socket_is_named(tree, monkeypatch):
    monkeypatch.chdir(tree)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("odd.png")
    assert Folder(tree).listing().odd == {"odd.png": "a socket"}


@posix
def test_a_file_that_becomes_a_pipe_is_not_waited_for(tree, monkeypatch):
    folder = Folder(tree)
    (tree / "a/2").unlink()
    os.mkfifo(tree / "a/2")
    monkeypatch.setattr(folders, "_kind", lambda path: None)  # as if it became one a moment later
    with pytest.raises(OSError, match="it is not a file"):
        folder.read("a/2")


@posix
def test_two_folders_that_are_linked_to_each_other_are_listed_once(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1").touch()
        linked(tmp_path / name / "link", tmp_path / other)
    listing = Folder(tmp_path).listing()
    assert listing.files == ["a/1", "b/1"]
    assert listing.odd == dict.fromkeys(["a/link/", "b/link/"], "a folder that is listed already")


@posix
def test_many_folders_that_are_linked_to_all_others_are_listed_once(tmp_path):
    names = [f"{i:02d}" for i in range(12)]  # in 12! orders
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1").touch()
        for other in names:
            linked(tmp_path / name / f"to {other}", tmp_path / other)
    listing = Folder(tmp_path).listing()
    assert listing.files == [f"{name}/1" for name in names] and len(listing.odd) == 144


@posix
def test_a_folder_outside_is_listed_under_its_first_link(tmp_path):
    (tmp_path / "out/deep").mkdir(parents=True)
    (tmp_path / "out/deep/1").touch()
    (tmp_path / "in").mkdir()
    linked(tmp_path / "in/b", tmp_path / "out")
    linked(tmp_path / "in/c", tmp_path / "out/deep")
    listing = Folder(tmp_path / "in").listing()
    assert listing.files == ["c/1"] and listing.odd == {"b/deep/": "a folder that is listed already"}


def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_listed(tree, monkeypatch):
    scandir, whole = os.scandir, Folder(tree).files()

    def refusing(path):
        if str(path).endswith("a.b/"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = Folder(tree).listing()
    assert listing.files == [file for file in whole if not file.startswith("a.b/")]
    assert listing.odd == {"a.b/": "Permission denied"}


@posix
def test_folders_in_folders_beyond_the_longest_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ["d" * 40] * 150:
        os.mkdir(name)
        os.chdir(name)
    Path("1").touch()
    os.chdir(tmp_path)
    (tmp_path / "1").touch()
    listing = Folder(tmp_path).listing()
    assert listing.files == ["1"] and list(listing.odd.values()) == ["File name too long"]


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "1", "wb") as file:
        file.truncate(2**33)
    with pytest.raises(OSError, match="8,589,934,592 bytes, more than the 134,217,728 that are read"):
        Folder(tmp_path).read("1")


# --- odd and hostile zips


def record(name=b"a", content=b"content", **changes):
    """A zip of one entry, with other numbers in its records."""
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(content) + packer.flush()
    numbers = {"version": 20, "flags": 0, "method": 8, "crc": zlib.crc32(content), "packed": len(body)}
    numbers |= {
        "length": len(content),
        "attributes": 0,
        "offset": 0,
        "entries": 1,
        "size": None,
        "start": None,
    } | changes
    about = (numbers["version"], numbers["flags"], numbers["method"], 0, 33, numbers["crc"], numbers["packed"])
    about = struct.pack("<HHHHHIIIHH", *about, numbers["length"], len(name), 0)
    local = b"PK\3\4" + about + name + body
    central = (
        b"PK\1\2" + b"\x14\3" + about + struct.pack("<HHHII", 0, 0, 0, numbers["attributes"], numbers["offset"]) + name
    )
    size = len(central) if numbers["size"] is None else numbers["size"]
    start = len(local) if numbers["start"] is None else numbers["start"]
    return local + central + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, start, 0)


def test_the_record_is_a_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(record())
    assert Folder(tmp_path / "a.zip").read("a") == b"content"


@pytest.mark.parametrize(
    "content",
    [
        record(version=990),
        record(size=2**32 - 2),
        record(b"\xff\xfe", flags=2048),
        record().replace(b"PK\1\2", os.urandom(4)),  # as where the list is encrypted
        record()[:-1],
        b"PK\5\6",
        b"",
    ],
    ids=["version", "size", "no UTF-8", "encrypted list", "cut", "marker", "empty"],
)
def test_a_zip_whose_list_is_damaged_is_refused_in_a_line(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    assert "a.zip is a file, not a folder or a whole zip" in refused(tmp_path / "a.zip")


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"crc": 1}, "Bad CRC-32"),
        ({"flags": 1}, "encrypted"),
        ({"flags": 64}, "encryption"),
        ({"method": 12}, "it is compressed by method 12; only deflate is read"),
        ({"method": 99}, "it is compressed by method 99; only deflate is read"),
        ({"length": 2**32 - 2}, "4,294,967,294 bytes, more than the 134,217,728 that are read"),
        ({"length": 2**27}, "9 bytes would unpack to 134,217,728: more than 1,000 times"),
        ({"length": 100}, "7 bytes of 100"),
        ({"length": 3}, "Bad CRC-32"),
        ({"packed": 3}, ""),
        ({"offset": 2**32 - 2}, ""),
        ({"start": 2**32 - 2}, ""),
        ({"offset": 9}, "Bad magic number"),
    ],
    ids=lambda value: " ".join(map(str, *value.items())) if isinstance(value, dict) else "",
)
def test_an_entry_that_is_damaged_is_a_broken_image(tmp_path, changes, reason):
    (tmp_path / "a.zip").write_bytes(record(b"a.png", **changes))
    with pytest.raises(BrokenImage) as caught:
        Photos(tmp_path / "a.zip")[0]
    assert str(caught.value).startswith(f"cannot load {tmp_path / 'a.zip/a.png'}: ") and reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_entry_that_unfolds_to_more_than_it_says_is_not_unfolded(tmp_path, monkeypatch):
    unfolded = []
    read = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda file, n=-1: unfolded.append(n) or read(file, n))
    (tmp_path / "a.zip").write_bytes(record(b"a.png", bytes(10**7), length=100))
    with pytest.raises(BrokenImage, match="Bad CRC-32"):
        Photos(tmp_path / "a.zip")[0]
    assert unfolded == [100]


@pytest.mark.parametrize(
    "name, attributes, reason",
    [
        (b"../x.png", 0, "its name is not a path inside the zip"),
        (b"/etc/x.png", 0, "its name is not a path inside the zip"),
        (b"a//x.png", 0, "its name is not a path inside the zip"),
        (b"a\\x.png", 0, "named with backslashes"),
        (b"x.png", 0o120777 << 16, "a link"),
        (b"x.png", 0o010666 << 16, "a named pipe"),
    ],
)
def test_an_odd_entry_is_listed_as_what_it_is(tmp_path, name, attributes, reason):
    (tmp_path / "a.zip").write_bytes(record(name, attributes=attributes))
    folder = Folder(tmp_path / "a.zip")
    assert folder.listing() == ([], [], {name.decode(): reason}) and name.decode() not in folder
    with pytest.raises(OSError, match="it is"):
        folder.read(name.decode())


def test_a_name_that_a_zip_lists_twice_has_no_content(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for content in (b"one", b"two"):
            archive.writestr("a", content)
        archive.writestr("b", b"three")
    folder = Folder(tmp_path / "a.zip")
    assert folder.listing() == (["b"], [], {"a": "listed twice"}) and folder.read("b") == b"three"


def test_a_link_named_like_the_table_is_no_missing_table(tmp_path):
    (tmp_path / "a.zip").write_bytes(record(b"labels.csv", attributes=0o120777 << 16))
    with pytest.raises(InputError, match=r"labels\.csv: it is a link"):
        Photos(tmp_path / "a.zip")
