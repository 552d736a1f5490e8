"""The result of an experiment: a folder that is written atomically, with a record of how it was made."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from experiments.setup.options import READING, SHOWING
from zfnet.errors import InputError, first_line
from zfnet.files import alone_in, open_regular, part_of, remove_leftovers, sync_folder
from zfnet.identity import BLANK, Damaged, is_stamped, stamped

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # half a second, which tables do without

UNSAID = ("out", "reading", "options", "networks", "scans", "training", "validation", *READING)
MOST = 2**26  # bytes of a result.json that is read
COMMAND = shlex.join(sys.argv)  # as it was typed
RESULT = "result.json"
ROOT = Path(__file__).resolve().parent.parent.parent


def is_first() -> bool:
    """Whether this is the first of several processes, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextlib.contextmanager
def results(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into; at the end its files move to `out`. After an error they are removed.

    Of several processes only the first one's files are kept.
    """
    if not is_first():
        with tempfile.TemporaryDirectory() as unwanted:
            yield Path(unwanted)
        return
    out = Path(out).absolute()
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    folder = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        folder = part_of(out / "results")
        folder.mkdir()
        yield folder
        _move(folder, out)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:  # empty unless the results are in it
            with contextlib.suppress(OSError):
                parent.rmdir()


def _move(folder: Path, out: Path) -> None:
    """Move all files, result.json last: if it exists, the others belong to the same run, even after a kill."""
    files = sorted(folder.iterdir(), key=lambda file: (file.name == RESULT, file.name))
    with alone_in(out):
        if files and files[-1].name == RESULT:
            (out / RESULT).unlink(missing_ok=True)
        for file in files:
            os.replace(file, out / file.name)
        sync_folder(out)


class Result:
    """The files of an experiment: figures, tables, and result.json with the paper's numbers beside ours.

    Args:
        experiment: its name.
        out: the folder, which is written atomically at the end.
        arguments: of the experiment's function: its `locals()` at its first line. They become the settings of
            result.json, without those that have no effect on the numbers.
    """

    def __init__(self, experiment: str, out: str | os.PathLike[str], arguments: Mapping[str, Any]):
        self.experiment, self.out = experiment, Path(out)
        if "options" in arguments:
            arguments = {**arguments, **SHOWING, **arguments["options"]}
        self.settings = {name: plain(value) for name, value in arguments.items() if name not in UNSAID}
        model = arguments.get("model")
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        recipe = arguments.get("recipe")
        self.seed = arguments.get("seed", getattr(recipe, "seed", None))
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.started, self.clock = datetime.now(timezone.utc), time.perf_counter()
        self._figures: dict[str, Figure] = {}
        self._texts: dict[str, str] = {}
        self._writers: list[Callable[[Path], None]] = []

    def figure(self, figure: "Figure", name: str = "figure") -> None:
        """Keep a figure, which becomes <name>.png and <name>.pdf."""
        self._figures[name] = figure

    def text(self, text: str, name: str = "table.md", *, printed: bool = True) -> None:
        """Keep a text for the file of that name, and print it."""
        self._texts[name] = text.rstrip("\n") + "\n"
        if printed and is_first():
            print(text.rstrip("\n"))

    def file(self, write: Callable[[Path], None]) -> None:
        """Let `write` add a file to the folder."""
        self._writers.append(write)

    def finish(self, ours: Mapping[str, Any], paper: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write everything; return the content of result.json.

        Args:
            ours: our numbers.
            paper: the paper's, under the same names; None stands for those that it does not print.
        """
        result = {
            "experiment": self.experiment,
            "paper": {**dict.fromkeys(ours), **(paper or {})},
            "ours": dict(ours),
            "settings": self.settings,
            "provenance": self._provenance(),
            "digest": BLANK,
        }
        content = stamped(f"{to_json(result)}\n".encode())  # `read_result` checks it
        result["digest"] = json.loads(content)["digest"]
        with results(self.out) as folder:
            for name, figure in self._figures.items():
                from experiments.output.pages import save

                save(figure, folder / name)
            for name, text in self._texts.items():
                (folder / name).write_text(text, encoding="utf-8")
            for write in self._writers:
                write(folder)
            (folder / RESULT).write_bytes(content)
        return result

    def _provenance(self) -> dict[str, Any]:
        versions = {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
        return {
            "versions": {"zfnet": _zfnet_version(), **versions, "python": platform.python_version()},
            **commit(),
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


def commit() -> dict[str, Any]:
    """The commit of this source tree and whether files differ from it; empty outside git."""

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


def to_json(value: Any, indent: int = 0) -> str:
    """JSON that can be read and compared: one line for each entry, lists and short mappings on one line."""
    line = json.dumps(value, allow_nan=False)
    if not isinstance(value, Mapping) or len(line) + indent <= 100:
        return line
    space = " " * (indent + 2)
    rows = (f"{space}{json.dumps(str(key))}: {to_json(entry, indent + 2)}" for key, entry in value.items())
    return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a result.json. Raises InputError if it cannot be read or its digest is wrong."""
    try:
        with open_regular(path) as file:
            content = file.read(MOST)
        result = json.loads(content)
        whole = isinstance(result, dict) and is_stamped(content, result.get("digest"))
    except OSError as error:
        raise InputError(f"cannot read {os.fspath(path)}: {first_line(error)}") from None
    except InputError:
        raise
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        advice = "run its experiment again"
        raise Damaged(f"{os.fspath(path)} is damaged, was changed, or is of an older version without digest; {advice}")
    return result  # type: ignore[no-any-return]


def plain(value: Any) -> Any:
    """A setting as JSON: a network or a dataset as its class, a partial as its arguments."""
    if isinstance(value, partial):
        return {str(key): plain(setting) for key, setting in value.keywords.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence | range) and not hasattr(value, "identity"):
        return [plain(entry) for entry in value]
    return type(value).__name__
