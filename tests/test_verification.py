"""A traced network that is not the model is refused before it says anything, and each time."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zfnet import DECONVNET, Deconvnet, InputError, Operation, layer_table, occlusion_maps, receptive_field, scan
from zfnet.graph import Graph
from zfnet.recording import activations

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Middle(nn.Module):
    """Something between two convolutions."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.conv1, self.conv2, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU()
        self.register_buffer("steps", torch.ones(1))
        self.body, self.calls, self.seen = body, 0, []
        self.tensor = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.body(self, self.conv1(x))))


def unseen(self: Any, y: Tensor) -> Tensor:
    return y * 2 if isinstance(y, Tensor) else y


def unseen_write(self: Any, y: Tensor) -> Tensor:
    if isinstance(y, Tensor):
        y[:, 0] = 0
    return y


def a_function_on_lists(self: Any, y: Tensor) -> Tensor:
    torch._foreach_mul_([y], 2)
    return y


def drops_at_random(self: Any, y: Tensor) -> Tensor:
    return F.dropout(y)


def a_little_noise(self: Any, y: Tensor) -> Tensor:
    return y + torch.rand_like(y) * 0.01


def pythons_random_numbers(self: Any, y: Tensor) -> Tensor:
    return y * random.random()


def counts(self: Any, y: Tensor) -> Tensor:
    self.calls += 1
    return y * self.calls


def appends(self: Any, y: Tensor) -> Tensor:
    self.seen.append(1)
    return y * len(self.seen)


def counts_in_a_buffer(self: Any, y: Tensor) -> Tensor:
    self.steps += 1
    return y


def counts_in_a_tensor(self: Any, y: Tensor) -> Tensor:
    self.tensor.add_(1)
    return y * self.tensor


def by_the_batch(self: Any, y: Tensor) -> Tensor:
    return F.batch_norm(y, self.steps.expand(4).clone(), self.steps.expand(4).clone(), training=True)


WRONG = [
    *(unseen, unseen_write, a_function_on_lists, drops_at_random, a_little_noise, pythons_random_numbers, counts),
    *(appends, counts_in_a_buffer, counts_in_a_tensor, by_the_batch),
]
USES: dict[str, Callable[[Graph], Any]] = {
    "record": lambda graph: Deconvnet(graph).record(IMAGES),
    "record a layer": lambda graph: Deconvnet(graph).record(IMAGES, ["conv2"]),
    "activations": lambda graph: activations(graph, IMAGES, ["conv2"]),
    "project_units": lambda graph: Deconvnet(graph).project_units(IMAGES, "conv2", [[0, 0, 0, 0]]),
    "activations_of": lambda graph: Deconvnet(graph).activations_of(torch.zeros(1, 3, 5, 5), "conv2", [[0] * 4], 12),
    "scan": lambda graph: scan(graph, IMAGES, ["conv2"], k=1, workers=0, progress=False),
    "receptive_field": lambda graph: receptive_field(graph, "conv2", 12),
    "layer_table": lambda graph: layer_table(graph, 12),
    "occlusion_maps": lambda graph: occlusion_maps(graph, IMAGES[0], size=4, step=4, score="identity"),
}


@pytest.mark.parametrize("body", WRONG, ids=lambda body: body.__name__)
def test_what_tracing_does_not_see_is_refused_and_the_model_left(body: Callable[[Any, Tensor], Tensor]) -> None:
    model = Middle(body)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            Deconvnet(model).project_units(IMAGES, "conv2", [[0, 0, 0, 0]])
        assert "Middle" in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.calls == 0 and torch.equal(model.tensor, torch.ones(1)) and all(m.training for m in model.modules())


@pytest.mark.parametrize("use", USES)
def test_nothing_is_said_before(use: str) -> None:
    graph = Graph(Middle(unseen))
    for _ in range(2):
        with pytest.raises(InputError, match=r"conv2 \(Conv2d\) of the traced Middle is given another value"):
            USES[use](graph)
    USES[use](Graph(Middle(unseen), verify=False))
    USES[use](Graph(Middle(lambda self, y: y * 2)))


def test_what_does_not_reach_the_output_is_seen() -> None:
    def body(self: Any, y: Tensor) -> Tensor:
        self.relu(y * 2 if isinstance(y, Tensor) else y)
        return y

    with pytest.raises(InputError, match=r"relu \(ReLU\) of the traced Middle is given another value"):
        Deconvnet(Middle(body)).record(IMAGES, ["conv1"])


def test_a_module_that_writes_to_its_input() -> None:
    class Doubling(nn.Module):
        inplace = False

        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    rules = DECONVNET | {Doubling: Operation(lambda step, signal: signal * 2)}
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Doubling(), nn.Conv2d(4, 4, 3))
    with pytest.raises(InputError, match=r"^1 \(Doubling\) of Sequential writes to its input: .* inplace=True"):
        Deconvnet(model, rules=rules).record(IMAGES)
    Doubling.inplace = True
    kept = Deconvnet(model, rules=rules).record(IMAGES).activations
    with torch.no_grad():
        assert torch.equal(kept["0"], model[0](IMAGES)) and torch.equal(kept["2"], model(IMAGES))


def test_memory_that_is_shared_in_an_unknown_way() -> None:
    def body(self: Any, y: Tensor) -> Tensor:
        half = y.unsafe_chunk(2, 1)[0]
        half.mul_(2)
        return y

    with pytest.raises(
        InputError, match=r"mul_ \(mul_\) of Middle works in place on memory that conv2 reads later as conv1"
    ):
        Deconvnet(Middle(body)).record(IMAGES)


class OfOneSize(nn.Module):
    """A network whose classifier takes images of 8 x 8 pixels alone."""

    def __init__(self, hidden: Callable[[Tensor], Tensor]):
        super().__init__()
        self.conv, self.fc, self.hidden = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5), hidden

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.hidden(self.conv(x)).relu(), 1)
        return self.fc(x.view(-1, 4 * 36))


def test_where_the_model_fails_what_it_does_before_is_compared() -> None:
    """At 9 x 9 the `view` fails, behind steps that no module reads."""
    images = torch.randn(1, 3, 9, 9)
    right = Deconvnet(OfOneSize(lambda y: y * 2)).record(images, ["max_pool2d"])
    assert right.activations["max_pool2d"].shape == (1, 4, 7, 7)
    wrong = Deconvnet(OfOneSize(lambda y: y * 2 if isinstance(y, Tensor) else y))
    for _ in range(2):
        with pytest.raises(InputError, match=r"OfOneSize itself fails on images of 9 x 9 .* never gives what"):
            wrong.record(images, ["max_pool2d"])
    assert wrong.record(images, ["conv"]).activations["conv"].shape == (1, 4, 7, 7)


def test_state_that_changes_nothing_is_left_alone() -> None:
    def body(self: Any, y: Tensor) -> Tensor:
        self.cache = y
        return y

    model = Middle(body)
    Deconvnet(model).record(IMAGES)
    assert not hasattr(model, "cache"), "no trace of the tracing is left"


def test_the_model_is_run_once_for_each_size() -> None:
    runs = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model.register_forward_hook(lambda module, args, output: runs.append(tuple(args[0].shape)))
    deconvnet = Deconvnet(model)
    runs.clear()
    for size in (8, 8, 9, 8):
        deconvnet.record(torch.randn(2, 3, size, size))
    assert runs == [(1, 3, 8, 8), (1, 3, 9, 9)]
    Deconvnet(model, verify=False).record(torch.randn(2, 3, 8, 8))
    assert len(runs) == 2


def test_a_hook_that_changes_values_is_refused_and_one_that_reads_them_is_not() -> None:
    for change in (lambda module, args, output: output * 3, lambda module, args, output: output.data.fill_(3)):
        for layer in (0, 1, 2):  # also of pooling, which a recording does by itself
            model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
            hook = model[layer].register_forward_hook(change)
            with pytest.raises(InputError, match=f"a forward hook changes what {layer} "):
                Deconvnet(model).record(IMAGES)
            hook.remove()
            seen: list[Any] = []
            model[layer].register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.numpy()))
            assert Deconvnet(model).record(IMAGES).activations["2"].shape == (2, 4, 5, 5) and seen


def test_lists_that_a_model_keeps_are_left_alone() -> None:
    def body(self: Any, y: Tensor) -> Tensor:
        self.seen.append(y)
        return y

    model = Middle(body)
    Deconvnet(model).record(IMAGES)
    assert not model.seen, "nothing of the tracing is left"

    def counting(self: Any, y: Tensor) -> Tensor:
        self.seen.append(1)
        return y * len(self.seen)

    with pytest.raises(InputError, match="gives another output when it is called again"):
        Deconvnet(Middle(counting)).record(IMAGES)
