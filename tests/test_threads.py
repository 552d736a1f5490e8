"""Threads share a Deconvnet: they get what one thread gets, and none sees the model's mode change."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import sleep
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zfnet import Deconvnet, InputError, receptive_field, scan
from zfnet.graph import Graph
from zfnet.recording import activations

IMAGES = torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(0))
UNITS = [[0, 1, 2, 3], [2, 4, 0, 0]]


class Network(nn.Module):
    """Of layers that behave otherwise in training, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.drop, self.pool, self.last = nn.Dropout2d(0.5), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.relu(self.norm(self.conv(x))))
        return self.last(self.relu(self.last(self.pool(x))))


def jobs(deconvnet: Deconvnet) -> list[Callable[[], Tensor]]:
    def projected() -> Tensor:
        recording = deconvnet.record(IMAGES, ["last_1"])
        return deconvnet.project(recording, "last_1", recording.activations["last_1"])

    def changed() -> Tensor:
        crops = deconvnet.project_units(IMAGES, "last_1", UNITS).crops
        return deconvnet.activations_of(crops * 2, "last_1", UNITS, 20)

    return [
        lambda: deconvnet.project_units(IMAGES, "last_1", UNITS).projections,
        projected,
        changed,
        lambda: torch.tensor(receptive_field(deconvnet.graph, "relu_1", 20).size),
        lambda: scan(deconvnet.graph, IMAGES, ["drop", "last_1"], 2, workers=0, progress=False)["last_1"].value,
        lambda: activations(deconvnet.graph, IMAGES, ["norm"])["norm"],
        lambda: Deconvnet(deconvnet.model).record(IMAGES[:, :, :18], ["last_1"]).activations["last_1"],
    ]


@contextmanager
def mode_is_kept(model: nn.Module) -> Iterator[None]:
    """Another thread looks at the modules' mode all the time."""
    before, changes, stop = [m.training for m in model.modules()], [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            changes.extend([now for m in [model] if (now := [m.training for m in model.modules()]) != before])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    assert not changes and [m.training for m in model.modules()] == before


@pytest.mark.parametrize("training", [True, False])
def test_eight_threads_get_what_one_gets(training: bool) -> None:
    model = Network().train(training)
    model.norm.running_var.uniform_(0.5, 2)
    expected = [job() for job in jobs(Deconvnet(model))]
    shared = jobs(Deconvnet(model))
    with mode_is_kept(model), ThreadPoolExecutor(8) as pool:
        results = [(n, pool.submit(job)) for _ in range(3) for n, job in enumerate(shared)]
        for n, result in results:
            torch.testing.assert_close(result.result(), expected[n])


def test_a_model_is_trained_while_it_is_looked_at() -> None:
    """Another thread trains it: neither disturbs the other, though fx patches every module while it traces."""
    model, stop, losses = Network().train(), threading.Event(), []
    model.drop.p = 0.0

    def train() -> None:
        while not stop.is_set() or not losses:
            losses.append(float(model(IMAGES).square().mean()))

    trainer = threading.Thread(target=train)
    trainer.start()
    with mode_is_kept(model):
        for _ in range(5):
            Deconvnet(model).graph.node("last_1")
    stop.set()
    trainer.join()
    assert max(losses) - min(losses) < 1e-4 * max(losses), "by the statistics of its batch, each time"


def test_an_error_leaves_the_mode() -> None:
    model = Network().train()
    deconvnet = Deconvnet(model)
    with mode_is_kept(model), ThreadPoolExecutor(8) as pool:
        results = [
            pool.submit(deconvnet.record, images)
            for _ in range(8)
            for images in (IMAGES, IMAGES[:, :2], IMAGES * torch.nan)
        ]
        failed = [isinstance(result.exception(), InputError) for result in results]
    assert failed == [False, True, True] * 8


def test_weights_that_a_hook_sets_are_those_of_a_model_in_training() -> None:
    """Old weight normalisation sets `weight` before each call."""
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3))).train()
    deconvnet = Deconvnet(model)
    deconvnet.record(IMAGES)
    model[0].weight_g.data.mul_(3)
    recording = deconvnet.record(IMAGES)
    signal = torch.ones_like(recording.activations["0"])
    projection = deconvnet.project(recording, "0", signal)
    model.eval()(IMAGES)
    torch.testing.assert_close(projection, nn.functional.conv_transpose2d(signal, model[0].weight))


def test_many_are_traced_at_once() -> None:
    model, interval = Network(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            layers = list(pool.map(lambda _: Graph(model).layers, range(24)))
    finally:
        sys.setswitchinterval(interval)
    assert layers == [["conv", "norm", "relu", "drop", "pool", "last", "relu_1", "last_1"]] * 24


def test_one_graph_is_measured_once_by_many_threads() -> None:
    graph, runs = Graph(nn.Sequential(nn.Conv2d(3, 4, 3))), []

    def slow(module: nn.Module, args: Any, output: Tensor) -> None:
        sleep(0.05)
        runs.append(1)

    graph.model.register_forward_hook(slow)
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: graph.shapes((9, 9), graph.output)[graph.output], range(16)))
    assert len(set(sizes)) == 1 and len(runs) == 1
