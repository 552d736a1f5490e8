"""What every experiment leaves behind: a folder that is there whole or not at all, and how its content was made."""

import contextlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zfnet.errors import InputError
from zfnet.training import processes

COMMAND = shlex.join(sys.argv)  # as it was typed
ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def results(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into; at the end its files move to `out`, after an error nothing of it is left.

    Of several processes only the first one's files are kept.
    """
    if processes()[0]:
        with tempfile.TemporaryDirectory() as unwanted:
            yield Path(unwanted)
        return
    out = Path(out).absolute()
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    folder = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".part-", dir=out))
        yield folder
        for file in sorted(folder.iterdir()):
            os.replace(file, out / file.name)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:  # empty unless the results are in it
            with contextlib.suppress(OSError):
                parent.rmdir()


class Provenance:
    """Started with an experiment, it says at the end how the result was made."""

    def __init__(self, *models: nn.Module, seed: int | None = None):
        self.started, self.clock = datetime.now(timezone.utc), time.perf_counter()
        self.device = next((p.device for m in models for p in m.parameters()), torch.device("cpu"))
        self.seed = seed

    def __call__(self) -> dict[str, Any]:
        versions = {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
        return {
            "versions": {"zfnet": _zfnet_version(), **versions, "python": platform.python_version()},
            **_commit(),
            "command": COMMAND,
            "seed": self.seed,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else _cpu(),
            "threads": torch.get_num_threads(),
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self.clock, 1),
        }


def _zfnet_version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("zfnet")
    return "not installed"


def _commit() -> dict[str, Any]:
    """The commit of this source tree and whether files differ from it; nothing outside git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != ROOT:
            return {}
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError):
        return {}


def _cpu() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_result(
    folder: Path, experiment: str, paper: Any, ours: Any, settings: Mapping[str, Any], provenance: Provenance
) -> dict[str, Any]:
    """Write result.json and return what it holds."""
    result = {
        "experiment": experiment,
        "paper": paper,
        "ours": ours,
        "settings": dict(settings),
        "provenance": provenance(),
    }
    (folder / "result.json").write_text(to_json(result) + "\n", encoding="utf-8")
    return result


def to_json(value: Any, indent: int = 0) -> str:
    """JSON that can be read and compared: one line for each entry, lists and short mappings on one line."""
    line = json.dumps(value, allow_nan=False)
    if not isinstance(value, Mapping) or len(line) + indent <= 100:
        return line
    space = " " * (indent + 2)
    rows = (f"{space}{json.dumps(str(key))}: {to_json(entry, indent + 2)}" for key, entry in value.items())
    return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table with aligned columns; numbers to the right."""
    cells = [[format(c, ",") if isinstance(c, int) else str(c) for c in row] for row in rows]
    right = [all(isinstance(row[n], int | float) or row[n] == "" for row in rows) for n in range(len(head))]
    widths = [max(len(row[n]) for row in [head, *cells]) for n in range(len(head))]

    def line(row: list[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([line(head), rule, *map(line, cells)])
