import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ChainDataset, Dataset, Subset, TensorDataset

from zfnet.data.batches import Batches, Broken
from zfnet.data.images import Images
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import BrokenImage, InputError

ANY_WORKERS = pytest.mark.parametrize("workers", [0, 2])


class Counting(Dataset):
    """Item i is an image full of i, with label 10 i."""

    def __init__(self, length=11, label=True):
        self.length = length
        self.label = label

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        image = torch.full((3, 2, 2), float(i))
        return (image, 10 * i) if self.label else image


class With(Counting, Images):
    """Counting, but the image of one item is something else."""

    def __init__(self, position, value):
        super().__init__()
        self.position, self.value = position, value

    def __getitem__(self, i):
        return (self.value, 0) if i == self.position else super().__getitem__(i)

    def file(self, i):
        return f"photo{i}.png"


class Process(Counting):
    """Labels say how many threads the process has and, in tens, whether Ctrl-C leaves it alone."""

    def __getitem__(self, i):
        ignores = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        return super().__getitem__(i)[0], 10 * ignores + torch.get_num_threads()


class Dying(Counting):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def __getitem__(self, i):
        if i == 7:
            self.how()
        return super().__getitem__(i)


class Failing(Counting):
    def __getitem__(self, i):
        raise ZeroDivisionError


def refused(dataset, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        list(Batches(dataset, *args, **kwargs))
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    return str(caught.value)


def kinds(length=11):
    images = torch.stack([image for image, _ in Subset(Counting(length), range(length))])
    return {
        "map-style": Counting(length),
        "unlabelled": Counting(length, label=False),
        "tensor": images,
        "tensors": TensorDataset(images, 10 * torch.arange(length)),
        "subset": Subset(Counting(2 * length), range(length)),
    }


@ANY_WORKERS
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("indices", [None, [3, 9, 4, 0, 3], range(10, 1, -3), torch.tensor([2, 3, 4, 7]), np.arange(5)])
def test_every_kind_of_dataset_is_read_in_the_order_of_indices(kind, indices, workers):
    dataset = kinds()[kind]
    batches = Batches(dataset, 4, indices=indices, workers=workers)
    expected = list(range(11) if indices is None else map(int, indices))
    read = list(batches)
    assert len(read) == len(batches)
    assert [len(batch.index) for batch in read] == [len(expected[i : i + 4]) for i in range(0, len(expected), 4)]
    index, images, labels = (torch.cat(part) for part in zip(*read, strict=True))
    assert index.tolist() == expected and index.dtype == labels.dtype == torch.int64
    assert images.shape == (len(expected), 3, 2, 2) and images[:, 0, 0, 0].tolist() == expected
    assert labels.tolist() == [10 * i if kind in ("map-style", "tensors", "subset") else -1 for i in expected]
    assert batches.broken == []


def test_tensor_is_sliced_where_it_lies():
    images = torch.rand(10, 3, 2, 2)
    second = list(Batches(TensorDataset(images), 4))[1]
    assert second.images.data_ptr() == images[4].data_ptr() and second.labels.tolist() == [-1] * 4


def test_nothing_to_read():
    assert list(Batches(Counting(), indices=[])) == list(Batches(Counting(0), workers=2)) == []
    assert len(Batches(Counting(0))) == 0


@pytest.fixture
def album(tmp_path):
    """Ten photographs, of which 2, 4, 5 are broken."""
    for i in range(10):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    for i in (2, 4, 5):
        (tmp_path / f"{i}.png").write_bytes(b"")
    return Photos(tmp_path)


@ANY_WORKERS
def test_broken_images_are_left_out_and_named(album, workers):
    batches = Batches(album, 2, workers=workers)
    for _ in range(2):  # the second time, `broken` starts anew
        read = list(batches)
        assert [batch.index.tolist() for batch in read] == [[0, 1], [3], [6, 7], [8, 9]]
        for batch in read:
            assert (batch.images[:, 0, 0, 0] * 255).round().tolist() == batch.index.tolist()
        assert [message.split(": ")[0][-5:] for message in batches.broken] == ["2.png", "4.png", "5.png"]
        assert all("zero bytes" in message for message in batches.broken)


@ANY_WORKERS
def test_sizes_that_differ_are_refused(album, workers, tmp_path):
    Image.new("RGB", (9, 8)).save(tmp_path / "7.png")
    message = refused(album, 2, workers=workers)
    assert "item 6 (6.png) is 3 x 8 x 8 and item 7 (7.png) is 3 x 8 x 9" in message
    assert len(list(Batches(album, 1, workers=workers))) == 7


@ANY_WORKERS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_are_refused(value, workers):
    image = torch.zeros(3, 2, 2)
    image[1, 1, 0] = value
    assert "item 7 (photo7.png) has values that are not finite" in refused(With(7, image), 4, workers=workers)
    images = kinds()["tensor"].clone()
    images[7, 2, 1, 1] = value
    assert "item 7 has values" in refused(images, 4, workers=workers)
    assert len(list(Batches(images, 4, indices=range(7), workers=workers))) == 2


def test_large_finite_values_are_no_mistake():
    images = torch.full((2, 3, 2, 2), 3e38)
    assert len(list(Batches(images))) == 1  # although their sum is infinite


@ANY_WORKERS
def test_a_mistake_in_the_dataset_names_its_item(album, workers):
    album.transform = Preprocessing(resize=None)
    assert "0.png: an image of 8 x 8 pixels is smaller than 224" in refused(album, workers=workers)
    for value, kind in (("image", "of type str"), (torch.zeros(2, 2), "a tensor (2, 2)")):
        assert f"the image of item 3 (photo3.png) is {kind}; give" in refused(With(3, value), workers=workers)
    with pytest.raises(ZeroDivisionError) as caught:  # a fault of the program keeps its traceback
        list(Batches(Failing(), workers=workers))
    assert caught.tb and not multiprocessing.active_children()


@pytest.mark.parametrize(
    "dataset, settings, says",
    [
        (Counting(), {"indices": [0, 11]}, "index 11 is outside a dataset of 11 items"),
        (Counting(), {"indices": [-1]}, "index -1 is outside"),
        (Counting(), {"indices": [0.5]}, "give whole numbers"),
        (Counting(), {"indices": torch.ones(11, dtype=torch.bool)}, "give whole numbers"),
        (Counting(), {"batch_size": 0}, "batch_size is 0"),
        (Counting(), {"workers": -1}, "workers is -1"),
        (ChainDataset([]), {}, "map-style"),
        (torch.zeros(3, 8, 8), {}, "(3, 8, 8) of torch.float32"),
        (TensorDataset(torch.zeros(2, 3, 8, 8), torch.zeros(2)), {}, "whole labels"),
    ],
)
def test_bad_arguments_are_refused(dataset, settings, says):
    assert says in refused(dataset, **settings)


# --- processes


def test_workers_use_one_thread_and_leave_ctrl_c_to_the_main_process():
    labels = torch.cat([batch.labels for batch in Batches(Process(), 2, workers=2)])
    assert labels.tolist() == [11] * 11


def test_nothing_keeps_running():
    batches = Batches(Counting(), 2, workers=2)
    list(batches)
    assert not multiprocessing.active_children()
    for _ in batches:
        assert len(multiprocessing.active_children()) == 2
        break
    assert not multiprocessing.active_children()


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(Batches(Counting(), 2, workers=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("how", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(0)])
def test_worker_that_dies_is_one_line(how):
    message = refused(Dying(how), 2, workers=2)
    assert message.startswith("a worker process died: DataLoader worker (pid") and "workers=0" in message


def test_default_workers(monkeypatch):
    asked = []
    monkeypatch.setattr("zfnet.data.batches._start_method", lambda: "fork")
    monkeypatch.setattr("zfnet.data.batches.DataLoader", lambda *args, num_workers, **rest: asked.append(num_workers))
    monkeypatch.setattr("zfnet.data.batches._cores", lambda: 40)
    assert len(list(Batches(Counting(200)))) == 4 and not asked  # few: no processes
    assert len(list(Batches(torch.zeros(1000, 3, 2, 2)))) == 16 and not asked  # in memory: none either
    with pytest.raises(InputError, match="workers=0"):  # the stand-in is no loader
        list(Batches(Counting(1000)))
    assert asked == [8]
    monkeypatch.setattr("zfnet.data.batches._start_method", lambda: "forkserver")
    assert len(list(Batches(Counting(1000)))) == 16 and asked == [8]  # the script may have no guard


UNGUARDED = """
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
import torch
from zfnet.data.batches import Batches

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 300

    def __getitem__(self, i):
        return torch.full((3, 4, 4), float(i)), 0

print("read", sum(len(batch.index) for batch in Batches(Images())), flush=True)
print("read", sum(len(batch.index) for batch in Batches(Images(), workers=1)), flush=True)
"""


def test_a_script_without_a_main_guard_is_told_what_to_do_where_processes_are_spawned(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    paths = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[0] == "read 300" and done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("zfnet.errors.InputError: a worker process died: DataLoader worker (pid")
    assert 'put the code of your script under `if __name__ == "__main__":`, or use workers=0' in message
    assert "a worker process cannot start workers; put the code" in done.stderr and "memory" not in done.stderr


CTRL_C = """
import signal
import time
from test_batches import Counting
from zfnet.data.batches import Batches

class Slow(Counting):
    def __getitem__(self, i):
        time.sleep(0.2)
        return super().__getitem__(i)

signal.signal(signal.SIGINT, signal.default_int_handler)  # which what runs in the background ignores
for batch in Batches(Slow(10**5), 1, workers=2):  # hours
    print("read", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends a signal to a process group")
def test_ctrl_c_ends_cleanly():
    tests = os.path.dirname(__file__)
    paths = os.pathsep.join([tests, os.path.dirname(tests), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", CTRL_C],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "read\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    errors = process.communicate(timeout=300)[1]
    assert errors.count("Traceback") == 1 and errors.strip().endswith("KeyboardInterrupt")
    assert "_worker_loop" not in errors and "Process " not in errors


def test_broken_images_are_counted_once_and_too_many_are_refused():
    broken = Broken("training", 200)
    broken.add(["b", "a", "b"])
    with pytest.warns(UserWarning, match="2 training image.s. could not be read, first: a"):
        broken.warn()
    broken.add(["a"])
    broken.warn()  # nothing new
    assert broken.names == ["b", "a"]
    says = r"3 of 200 \(1.5%\) training image.s. could not be read, first: a; repair .* with allow_broken=true"
    with pytest.raises(InputError, match=says):
        broken.add(["c"])
    allowed = Broken("training", 3, True, broken.names[:2])
    with pytest.raises(InputError, match="none of the 3 training image"):
        allowed.add(["c", "a", "b"])


class _Own:
    """A dataset that does not know the protocol; its items are what a function gives."""

    def __init__(self, item) -> None:
        self.item = item

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int):
        return self.item(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_that_raises_stop_iteration_does_not_end_in_silence(workers: int) -> None:
    data = _Own(lambda i: next(iter(())) if i == 20 else (torch.zeros(3, 4, 4), i))
    with pytest.raises(InputError, match="item 20: the dataset raised StopIteration"):
        list(Batches(data, 8, workers=workers))


def test_workers_send_images_that_have_a_gradient() -> None:
    data = _Own(lambda i: (torch.full((3, 4, 4), float(i), requires_grad=True), i))
    batches = list(Batches(data, 8, workers=1))
    assert [batch.images[0, 0, 0, 0].item() for batch in batches] == [0, 8, 16]


def test_bytes_and_floats_are_no_batch() -> None:
    data = _Own(lambda i: (torch.ones(3, 4, 4, dtype=torch.uint8 if i == 5 else torch.float32), i))
    with pytest.raises(
        InputError, match=r"item 0 is torch\.float32 and item 5 is torch\.uint8; a batch needs one type"
    ):
        list(Batches(data, 8, workers=0))


def test_broken_images_are_counted_even_if_all_say_the_same() -> None:
    def item(i: int):
        if i % 2:
            raise BrokenImage("cannot be read")
        return torch.zeros(3, 4, 4), i

    batches = Batches(_Own(item), 8, workers=0)
    assert sum(len(batch.index) for batch in batches) == 12
    assert len(set(batches.broken)) == 12 and batches.broken[0] == "item 1: cannot be read"
