"""A zip is the folder it was made of: the same files, folders and contents, whichever process reads them."""

import contextlib
import os
import pickle
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

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
