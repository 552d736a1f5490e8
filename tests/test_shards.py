"""Scans that real processes share, some of them killed: the bits of one process."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

FILES = ["scan.json", "statistics.safetensors", "top.safetensors"]
SCAN = """
    # a process that scans shards, or shares a whole scan; it kills itself at an image, once
    import os, signal, sys
    import torch
    import torch.distributed as dist
    from torch import nn
    import zfnet.scanning
    from zfnet.data.images import Images
    from zfnet.errors import BrokenImage
    from zfnet.identity import digest
    from zfnet.scan_files import kept_scan, merge_shards

    folder, at, *words = sys.argv[1:]
    zfnet.scanning.SAVE_EVERY = 0.0
    torch.set_num_threads(1)

    class Data(Images):
        def __init__(self):
            self.images = torch.randn(61, 3, 9, 9, generator=torch.Generator().manual_seed(0))

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            with open(f"{folder}.read", "a") as read:
                read.write(f"{i}\\n")
            if i == int(at) and not os.path.exists(f"{folder}.killed"):
                open(f"{folder}.killed", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            if i in (7, 30, 60):
                raise BrokenImage("torn")
            return self.images[i], i % 4 - 1

        def identity(self):
            return digest(self.images)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(125, 7)).eval()
    layers, how = ["0", "1", "2", "4"], {"batch_size": 4, "workers": 0, "progress": False}
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        found = kept_scan(model, Data(), folder, layers, 5, **how)
        columns = [column for layer in layers for column in (*found[layer], *found.statistics[layer])]
        with open(f"{folder}.{dist.get_rank()}", "w") as file:
            print(digest([*columns, found.class_images, found.images, found.broken]), file=file)
        dist.destroy_process_group()
    for word in words:
        number, count = map(int, word.split("/"))
        kept_scan(model, Data(), folder, layers, 5, shard=(number, count), **how)
    if words:
        merge_shards(model, Data(), folder)
    elif "RANK" not in os.environ:
        kept_scan(model, Data(), folder, layers, 5, **how)
"""


def run(home: Path, folder: str, at: int, *words: str, processes: int = 0) -> int:
    """The exit status of the process, or of the processes that `torchrun` starts."""
    (home / "scan.py").write_text(textwrap.dedent(SCAN))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    command = [sys.executable, *torchrun, "scan.py", folder, str(at), *words]
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, timeout=300).returncode


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scan of one process is, in `one`."""
    home = tmp_path_factory.mktemp("shards")
    assert run(home, "one", -1) == 0
    return home


def check(home: Path, folder: str) -> None:
    assert sorted(path.name for path in (home / folder).iterdir() if path.name != "shards") == FILES
    for name in FILES:
        assert (home / folder / name).read_bytes() == (home / "one" / name).read_bytes(), name


def read(home: Path, folder: str) -> list[int]:
    return [int(line) for line in (home / f"{folder}.read").read_text().split()]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_of_torchrun_come_to_the_bits_of_one(home: Path, processes: int) -> None:
    assert run(home, f"of{processes}", -1, processes=processes) == 0
    check(home, f"of{processes}")
    assert sorted(read(home, f"of{processes}")) == list(range(61))  # each image was read once
    assert len({(home / f"of{processes}.{rank}").read_text() for rank in range(processes)}) == 1  # all have the result


def test_one_of_several_processes_is_killed_and_all_go_on(home: Path) -> None:
    assert run(home, "killed", 45, processes=3) != 0
    assert (home / "killed.killed").exists() and not (home / "killed" / "scan.json").exists()
    (home / "killed.read").unlink()
    assert run(home, "killed", 45, processes=3) == 0
    check(home, "killed")
    again = read(home, "killed")
    assert set(range(44, 61)) <= set(again) and not {40, 41, 42, 43} & set(again)  # by whole batches


def test_seven_shards_in_any_order_of_which_one_is_killed(home: Path) -> None:
    others = [f"{n}/7" for n in (5, 0, 6, 2, 1, 4)]
    assert run(home, "seven", 33, "3/7") == -signal.SIGKILL
    assert read(home, "seven") == list(range(24, 34))
    assert run(home, "seven", 33, *others, "3/7") == 0
    check(home, "seven")
    assert sorted(read(home, "seven")) == sorted([*range(61), 32, 33])  # the batch that was not finished
