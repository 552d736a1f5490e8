"""Writes are atomic, whatever happens to the writer, and no path makes a reader wait."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from zfnet import InputError
from zfnet.files import locked, open_regular, part_of, remove_leftovers, write_atomically

unix = pytest.mark.skipif(os.name == "nt", reason="has no such files")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def killed(code: str, *arguments: object) -> int:
    """Run code in a process that kills itself at `die()`; its number."""
    start = "import os, signal, sys\ndef die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
    process = subprocess.Popen([sys.executable, "-c", start + code, *map(str, arguments)])
    assert process.wait() == -signal.SIGKILL
    return process.pid


@unix
def test_what_a_killed_run_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    code = """
from zfnet.files import part_of, write_atomically
from pathlib import Path
folder = Path(sys.argv[1])
part_of(folder / "results").mkdir()
part_of(folder / "other").write_bytes(b"half")
write_atomically(folder / "file", lambda file: (file.write(b"half"), file.flush(), die()))
"""
    write_atomically(tmp_path / "file", b"whole")
    killed(code, tmp_path)
    assert len(names(tmp_path)) == 4 and (tmp_path / "file").read_bytes() == b"whole"
    write_atomically(tmp_path / "third", b"")
    assert names(tmp_path) == {"file", "third"}


def test_parts_of_who_is_alive_or_elsewhere_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = part_of(tmp_path / "file")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{process.pid}."))
    elsewhere = dead.with_name(dead.name.replace(dead.name.split(".")[2], "0a0a0a0a"))
    others = [tmp_path / name for name in (".file.123.part", f"file.{process.pid}.0.part", ".part", ".a.b.c.part")]
    for path in (mine, dead, elsewhere, *others):
        path.write_bytes(b"")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {path.name for path in (mine, elsewhere, *others)}
    remove_leftovers(tmp_path / "nowhere")
    assert part_of(tmp_path / "file") != part_of(tmp_path / "file")  # threads
    assert socket.gethostname() not in mine.name


def test_what_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    for path in (tmp_path / "folder", tmp_path / "file" / "a", tmp_path / ("a" * 300)):
        with pytest.raises(InputError, match=r"^cannot write .*: (Is a|Not a|File name|File exists)") as caught:
            write_atomically(path, b"new")
        assert "\n" not in str(caught.value)
    write_atomically(tmp_path / ("\u00e9" * 120), b"")  # as long as a name may be

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        write_atomically(tmp_path / "file", full)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == {"folder", "file", "\u00e9" * 120}


@unix
def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in (*tmp_path.iterdir(), tmp_path, Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises(InputError, match=r"^cannot read "):
            open_regular(path)
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"1"


def test_one_run_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    with locked(lock, "is at work in new"):
        message = "^another run is at work in new: wait for it, or use another folder$"
        with pytest.raises(InputError, match=message), locked(lock, "is at work in new"):
            pass
        assert lock.exists()
    assert not lock.exists()
    with locked(lock, ""):
        pass
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot write to"), locked(tmp_path / "file" / ".lock", ""):
        pass


@unix
def test_the_lock_of_a_killed_run_blocks_nobody(tmp_path: Path) -> None:
    code = "from zfnet.files import locked\nfrom pathlib import Path\nwith locked(Path(sys.argv[1]), ''): die()"
    killed(code, tmp_path / ".lock")
    assert names(tmp_path) == {".lock"}
    with locked(tmp_path / ".lock", ""):
        pass
