"""The folder of an atlas while it is written: files with digests, and the state of an interrupted build."""

import contextlib
import json
import math
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from zfnet.errors import InputError, first_line
from zfnet.files import part_of, remove_leftovers, sync_folder, write_atomically
from zfnet.identity import Identity, difference

FORMAT = 1  # of the folder
FILES, WORK, STATE = "files.json", ".work", "state.json"
OURS = {"config.yaml", "settings.yaml", "result.json"}  # what an experiment writes beside its atlas
OF_SYSTEMS = {".DS_Store", "Thumbs.db", "desktop.ini"}  # which file managers leave
_WAITING = 6  # files that wait to be encoded, for each thread


def rounded(value: float) -> float | int | None:
    """A number with five significant digits; None where it is not defined."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.5g}")
    return int(short) if short == int(short) else short


def exact(value: float) -> float:
    """The shortest number that is this float32."""
    return float(str(np.float32(value)))


def to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def script(name: str, value: Any) -> bytes:
    """A data file: a script that hands its value to the page; the entries of a list stand on lines of their own."""
    lines = "[\n" + ",\n".join(map(to_json, value)) + "\n]" if isinstance(value, list) else to_json(value)
    return f"atlas.put({json.dumps(name)},{lines});\n".encode()


def read_script(content: bytes) -> tuple[str, Any]:
    """The name and the value of a data file; ValueError if it is none."""
    odd = ValueError("it is not a line atlas.put(name, value);")
    if not content.startswith(b"atlas.put(") or not content.endswith(b");\n"):
        raise odd
    text = content.decode()
    name, end = json.JSONDecoder().raw_decode(text, len("atlas.put("))
    if not isinstance(name, str) or text[end : end + 1] != ",":
        raise odd
    return name, json.loads(text[end + 1 : -3])


def digest_of(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


class Partial:
    """An atlas that is being built in `<out>.partial`, part by part; finished parts are not made again.

    Args:
        out: where the atlas will be.
        identity: of its pictures and numbers.
        fresh: start again.
    Raises InputError if the folder at `out` is not an atlas, or `<out>.partial` is not ours.
    """

    def __init__(self, out: Path, identity: Identity, fresh: bool):
        self.out, self.folder = out, out.with_name(f"{out.name}.partial")
        self.work = self.folder / WORK
        check_out(out)
        state = self.work / STATE
        try:
            known = json.loads(state.read_bytes()) if state.exists() else None
        except (OSError, ValueError):
            known = {}
        if known is None and self.folder.exists():
            if {path.name for path in self.folder.iterdir()} - {WORK}:
                raise InputError(f"{self.folder} exists and is not a build of an atlas; move it")
            known = dict(identity)  # a build was killed at its very beginning
        if known is not None and (fresh or known != dict(identity)):
            if not fresh:
                print(
                    f"{self.folder} is of another atlas ({difference(known, identity)}); it is built again",
                    file=sys.stderr,
                )
            old = part_of(self.folder)  # a kill leaves all of it under its name, or nothing
            os.replace(self.folder, old)
            shutil.rmtree(old, ignore_errors=True)
        self.work.mkdir(parents=True, exist_ok=True)
        write_atomically(state, to_json(dict(identity)).encode())
        threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self._pool, self._most = ThreadPoolExecutor(threads), threads * _WAITING
        self._jobs: deque[Future[None]] = deque()
        self.digests: dict[str, str] = {}  # of the files of the part that is being made

    def write(self, path: str, make: Callable[[], bytes]) -> None:
        """Let another thread make and write a file; an error is raised by a later call, or by `part`."""
        while len(self._jobs) >= self._most:
            self._jobs.popleft().result()
        self._jobs.append(self._pool.submit(self._write, self.digests, path, make))

    def _write(self, digests: dict[str, str], path: str, make: Callable[[], bytes]) -> None:
        content = make()
        file = self.folder / path
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise InputError(f"cannot write {file}: {first_line(error)}") from None
        digests[path] = digest_of(content)

    def begin(self) -> None:
        """Begin a part."""
        self.digests = {}

    def finish(self, part: str, content: Mapping[str, Any]) -> None:
        """Record a part as finished once its files are written, with notes for later parts."""
        kept = {"files": self.digests, "content": dict(content)}

        def keep(before: Sequence[Future[None]]) -> None:
            for job in before:  # which other threads have begun
                job.result()
            write_atomically(self.work / f"{part}.json", to_json(kept).encode())

        self._jobs.append(self._pool.submit(keep, list(self._jobs)))

    def digests_of(self, parts: Sequence[str]) -> dict[str, str]:
        """The digests of the files of finished parts."""
        digests: dict[str, str] = {}
        for part in parts:
            digests |= json.loads((self.work / f"{part}.json").read_bytes())["files"]
        return digests

    def join(self) -> None:
        """Wait for all that is to be written."""
        while self._jobs:
            self._jobs.popleft().result()

    def known(self, part: str, basis: str) -> dict[str, Any] | None:
        """The record of a finished part, if all of its files are complete and it has the same `basis`."""
        try:
            kept = json.loads((self.work / f"{part}.json").read_bytes())
            files, content = kept["files"], kept["content"]
            if content["basis"] != basis:
                return None
            if any(digest_of((self.folder / path).read_bytes()) != digest for path, digest in files.items()):
                return None
        except (OSError, ValueError, LookupError, TypeError):
            return None
        self.digests = files
        return dict(content)

    def close(self) -> None:
        """Stop the threads, once all that was handed to them is written."""
        self._pool.shutdown()

    def publish(self, digests: Mapping[str, str]) -> None:
        """Write files.json and put the folder in the place of what has been at `out`."""
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name = file.relative_to(self.folder).as_posix()
            if not name.startswith(f"{WORK}/") and name not in digests:
                file.unlink()  # left by a build that was interrupted
        lines = ",\n".join(f"{json.dumps(path)}: {json.dumps(digest)}" for path, digest in sorted(digests.items()))
        write_atomically(self.folder / FILES, f"{{\n{lines}\n}}\n".encode())
        check_out(self.out)
        replaced, old = (self.out / FILES).exists(), part_of(self.out)
        try:
            if self.out.exists():
                os.replace(self.out, old)
            os.replace(self.folder, self.out)
            sync_folder(self.out.parent)
        except OSError as error:
            raise InputError(f"cannot write {self.out}: {first_line(error)}") from None
        if replaced:
            print(f"the atlas that was in {self.out} is replaced", file=sys.stderr)
        shutil.rmtree(self.out / WORK, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_out(out: Path) -> None:
    """Raises InputError if `out` exists and is neither an atlas nor an empty folder."""
    with contextlib.suppress(OSError):
        remove_leftovers(out.parent)
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise InputError(f"{out} is not a folder; give another place for the atlas")
    known = {*OURS, *_listed(out)}
    files = (path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if not path.is_dir())
    others = (name for name in files if name not in known and name.rpartition("/")[2] not in OF_SYSTEMS)
    if (other := next(others, None)) is not None:
        advice = "give another folder, or move it: an atlas replaces everything in its folder"
        raise InputError(f"{out} holds something that is not part of an atlas ({other}); {advice}")


def _listed(out: Path) -> list[str]:
    """The files of the atlas in a folder; nothing if its list is none of ours."""
    try:
        files = json.loads((out / FILES).read_bytes())
        whole = all(re.fullmatch(r"[0-9a-f]{32}", digest) for digest in files.values())
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return []
    return [FILES, *files] if whole and "data/index.js" in files else []
