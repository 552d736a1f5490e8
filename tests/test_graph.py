"""A recording holds what hooks would have seen, under torchvision's names, and leaves the model as it was."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import deconvnet_by_autograd
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import get_graph_node_names

from zfnet import Deconvnet, InputError, Operation, ZFNet
from zfnet.graph import Graph


def headless(model: nn.Module) -> nn.Module:
    """Without the 100 million weights of its classifier."""
    model.classifier = nn.Flatten()
    return model


NETS: dict[str, Callable[[], nn.Module]] = {
    "ZFNet": lambda: ZFNet(5, maps=(4, 6, 8, 8, 6), hidden=(9, 9), image_size=64, init="he"),
    "AlexNet": lambda: headless(models.alexnet()),
    "VGG11": lambda: headless(models.vgg11(init_weights=False)),
    "SqueezeNet1_0": models.squeezenet1_0,
    "ResNet18": models.resnet18,
    "GoogLeNet": lambda: models.googlenet(init_weights=False, aux_logits=False),
    "GoogLeNet, auxiliary": lambda: models.googlenet(init_weights=False, aux_logits=True, transform_input=True),
}


@pytest.mark.parametrize("name", [name for name in NETS if name != "ZFNet"])
def test_names_are_torchvisions(name: str) -> None:
    model = NETS[name]()
    _, names = get_graph_node_names(model, suppress_diff_warning=True)
    assert Graph(model).layers == names[1:]  # without the image


@pytest.mark.parametrize("name", NETS)
def test_activations_are_what_hooks_see(name: str) -> None:
    model = NETS[name]().eval()
    images = torch.randn(2, 3, 64, 64)
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output, layer=layer: seen.__setitem__(layer, output.clone())
        )
        for layer, module in model.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    recording = Deconvnet(model).record(images)
    modules = {layer for layer in recording.activations if layer in seen}
    assert len(modules) >= 15
    for layer in modules:
        called_twice = f"{layer}_1" in recording.activations  # ResNet's one ReLU: the hook kept the last call
        expected = recording.activations[f"{layer}_1" if called_twice else layer]
        assert torch.equal(expected, seen[layer]), layer


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "gradients": {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "weights": {name: (t.clone(), t.data_ptr(), t._version) for name, t in model.state_dict().items()},
        "attributes": {name: set(module.__dict__) for name, module in model.named_modules()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "threads": torch.is_grad_enabled(),
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = state(model)
    for name, (weight, place, version) in before.pop("weights").items():
        now = after["weights"][name]
        assert torch.equal(now[0], weight) and now[1:] == (place, version), name
    del after["weights"]
    assert after == before


def half_frozen() -> nn.Module:
    """A model in the middle of being trained: modules in different modes, some weights frozen, hooks of its own."""
    model = models.resnet18().train()
    model.layer1.eval()
    model.bn1.eval()
    model.layer2.requires_grad_(False)
    model.layer3.register_forward_hook(lambda module, inputs, output: None)
    return model


class TestTheModelIsLeft:
    def test_after_each_use(self) -> None:
        model = half_frozen()
        before = state(model)
        images = torch.randn(2, 3, 64, 64)
        kept = images.clone()
        deconvnet = Deconvnet(model)
        recording = deconvnet.record(images, ["layer2.0.add"])
        deconvnet.project(recording, "layer2.0.add", recording.activations["layer2.0.add"])
        deconvnet.project_units(images, "layer2.0.add", [[0, 1, 2, 3]])
        assert_unchanged(model, before)
        assert torch.equal(images, kept) and images.grad is None
        assert not recording.activations["layer2.0.add"].requires_grad

    def test_after_an_error_in_the_forward_pass(self) -> None:
        model = half_frozen()
        before = state(model)
        deconvnet = Deconvnet(model)
        for images in (torch.randn(1, 3, 64, 64) * torch.nan, torch.randn(1, 4, 64, 64)):
            with pytest.raises(InputError):
                deconvnet.record(images)
        with pytest.raises(InputError):
            deconvnet.record(torch.randn(1, 3, 64, 64), ["layer9"])
        model.fc = nn.Linear(7, 7)
        with pytest.raises(InputError):
            deconvnet.record(torch.randn(1, 3, 64, 64))
        model.fc = nn.Linear(512, 1000)
        for name in ("weights", "gradients", "attributes"):
            before[name] = {k: v for k, v in state(model)[name].items() if k.startswith("fc")} | {
                k: v for k, v in before[name].items() if not k.startswith("fc")
            }
        assert_unchanged(model, before)

    def test_after_an_error_on_the_way_down(self) -> None:
        model = half_frozen()
        model.layer1[0].relu = nn.GELU()
        model.layer1.eval()
        before = state(model)
        deconvnet = Deconvnet(model)
        recording = deconvnet.record(torch.randn(1, 3, 64, 64), ["layer2.0.add"])
        with pytest.raises(InputError, match=r"no deconvnet rule for GELU at layer1\.0\.relu_1"):
            deconvnet.project(recording, "layer2.0.add", recording.activations["layer2.0.add"])
        with pytest.raises(InputError, match="no deconvnet rule for GELU"):
            deconvnet.project_units(torch.randn(1, 3, 64, 64), "layer2.0.add", [[0, 1, 2, 3]])
        assert_unchanged(model, before)

    def test_after_an_error_in_tracing(self) -> None:
        model = Branching().train()
        before = state(model)
        with pytest.raises(InputError):
            Deconvnet(model)
        assert_unchanged(model, before)

    def test_within_training(self) -> None:
        """Gradients of a training step are neither needed nor touched."""
        model = models.resnet18().train()
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        deconvnet = Deconvnet(model)
        recording = deconvnet.record(torch.randn(1, 3, 64, 64), ["layer1.0.add"])
        deconvnet.project(recording, "layer1.0.add", recording.activations["layer1.0.add"])
        assert all(torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in gradients.items())


class Written(nn.Module):
    """The same net with its ReLUs written in one way or another."""

    def __init__(self, relu: Callable[[Tensor], Tensor]):
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3, padding=1)
        self.two = nn.Conv2d(6, 6, 3, padding=1)
        self.three = nn.Conv2d(6, 4, 3)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.one(x))
        identity = F.max_pool2d(x, 2)
        out = self.two(identity)
        out += identity
        return self.three(self.relu(out))


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU, in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu, in place": lambda x: F.relu(x, inplace=True),
    "F.relu, in place by position": lambda x: F.relu(x, True),
    "torch.relu": torch.relu,
    "x.relu()": lambda x: x.relu(),
    "x.relu_()": lambda x: x.relu_(),
    "torch.relu_": torch.relu_,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_relu_is_a_relu(way: str) -> None:
    plain = Written(nn.ReLU()).double()
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    reference = Deconvnet(plain)
    expected = reference.record(images)
    model = Written(WAYS[way]).double()
    model.load_state_dict(plain.state_dict())
    deconvnet = Deconvnet(model)
    recording = deconvnet.record(images)
    pairs = list(zip(recording.activations.items(), expected.activations.items(), strict=True))
    assert all(torch.equal(ours, theirs) for (_, ours), (_, theirs) in pairs)  # also those overwritten in place
    assert (recording.activations["one"] < 0).any() and (recording.activations["add"] < 0).any()
    for (name, activation), (other, _) in pairs:
        signal = torch.randn_like(activation)
        assert torch.equal(deconvnet.project(recording, name, signal), reference.project(expected, other, signal)), name
    signal = torch.randn_like(recording.activations["three"])
    ours = deconvnet.project(recording, "three", signal)
    torch.testing.assert_close(ours, deconvnet_by_autograd(plain, images, "three", signal), rtol=1e-10, atol=1e-12)


class ReadAgain(nn.Module):
    """Reads a value after a step has worked on it in place: it reads the result."""

    def __init__(self, work: Callable[[Tensor], Any], in_place: bool):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.work, self.in_place = work, in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.work(x)
        return y + 2 * x if self.in_place else y + 2 * y


@pytest.mark.parametrize(
    ("work", "plain"),
    [
        (nn.ReLU(inplace=True), nn.ReLU()),
        (lambda x: F.relu(x, inplace=True), F.relu),
        (lambda x: x.relu_(), F.relu),
        (lambda x: x.mul_(0.5), lambda x: x * 0.5),
        (lambda x: x.add_(1.5), lambda x: x + 1.5),
    ],
    ids=["nn.ReLU", "F.relu", "relu_", "mul_", "add_"],
)
def test_reading_after_work_in_place(work: Callable[[Tensor], Any], plain: Callable[[Tensor], Any]) -> None:
    model, twin = ReadAgain(work, True).double(), ReadAgain(plain, False).double()
    twin.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    results = []
    for net in (model, twin):
        deconvnet = Deconvnet(net)
        recording = deconvnet.record(images)
        last = deconvnet.graph.layers[-1]
        torch.testing.assert_close(recording.activations[last], net(images.clone()), rtol=1e-12, atol=0)
        signal = torch.randn(
            recording.outputs[deconvnet.graph.node(last)],
            generator=torch.Generator().manual_seed(1),
            dtype=torch.float64,
        )
        results.append(deconvnet.project(recording, last, signal))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_work_in_place_on_the_image() -> None:
    """The caller's images are as they were."""
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    images = torch.randn(2, 3, 8, 8)
    kept = images.clone()
    deconvnet = Deconvnet(model)
    recording = deconvnet.record(images)
    deconvnet.project(recording, "2", recording.activations["2"])
    deconvnet.project_units(images, "2", [[0, 0, 0, 0]])
    assert torch.equal(images, kept)


def test_what_a_later_step_overwrites_is_returned_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)).eval()
    images, graph = torch.randn(2, 3, 8, 8), Graph(model)
    before, last = graph.node("0"), graph.node("2")
    with torch.no_grad():
        values = graph.run(images, [before, last], graph.call)
        assert torch.equal(values[before], model[0](images)) and (values[before] < 0).any()
        assert torch.equal(values[last], model(images))


def test_residual_sums_in_place() -> None:
    model = models.resnet18().eval()
    images = torch.randn(1, 3, 64, 64)
    recording = Deconvnet(model).record(images)
    a = recording.activations
    for block in ("layer1.0", "layer1.1"):
        identity = a["maxpool"] if block == "layer1.0" else a["layer1.0.relu_1"]
        assert torch.equal(a[f"{block}.add"], a[f"{block}.bn2"] + identity)
        assert torch.equal(a[f"{block}.relu_1"], a[f"{block}.add"].clamp(min=0))
        assert (a[f"{block}.add"] < 0).any()


def test_only_what_was_asked_for() -> None:
    deconvnet = Deconvnet(models.alexnet())
    recording = deconvnet.record(torch.randn(1, 3, 96, 96), ["features.6", "features.1"])
    assert list(recording.activations) == ["features.6", "features.1"]
    assert list(recording.switches) == ["features.2", "features.5"]
    assert deconvnet.graph.node("features.7") not in recording.outputs


def test_switches_are_those_of_the_images() -> None:
    model = ZFNet(5, maps=(4, 6, 8, 8, 6), hidden=(9,))
    images = torch.randn(2, 3, 224, 224)
    recording = Deconvnet(model).record(images, ["relu1", "pool1"])
    before, after = recording.activations["relu1"], recording.activations["pool1"]
    switches = recording.switches["pool1"]
    assert switches.shape == after.shape == (2, 4, 55, 55)
    assert torch.equal(before.flatten(2).gather(2, switches.flatten(2)).view_as(after), after)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.mean() > 0 else x


class TestRefusals:
    @pytest.mark.parametrize(("given", "nearest"), [("relu55", "relu5"), ("Conv1", "conv1"), ("pool_2", "pool2")])
    def test_an_unknown_layer_and_the_nearest(self, given: str, nearest: str) -> None:
        deconvnet = Deconvnet(ZFNet(2, maps=(2, 2, 2, 2, 2), hidden=(2, 2), image_size=64))
        message = f"no layer of ZFNet {given!r} (did you mean {nearest!r}?); available: conv1, relu1, pool1"
        with pytest.raises(InputError, match=re.escape(message)):
            deconvnet.record(torch.randn(1, 3, 64, 64), [given])

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
    def test_images_that_are_not_finite(self, bad: float) -> None:
        images = torch.randn(4, 3, 16, 16)
        images[2, 1, 3, 4] = bad
        images[3, 0, 0, 0] = bad
        with pytest.raises(InputError, match="NaN or infinity in 2 of 4 images, first in image 2"):
            Deconvnet(nn.Sequential(nn.Conv2d(3, 4, 3))).record(images)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
    def test_weights_that_are_not_finite(self, bad: float) -> None:
        model = models.squeezenet1_0()
        model.features[3].squeeze.bias.data[5] = bad
        with pytest.raises(InputError, match=r"NaN or infinity in .*features\.3\.squeeze\.bias"):
            Deconvnet(model)

    @pytest.mark.parametrize(
        "images", [torch.zeros(3, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)], ids=["one image", "bytes"]
    )
    def test_what_is_not_a_batch_of_images(self, images: Tensor) -> None:
        with pytest.raises(InputError, match=r"images must be floats of shape \(N, channels, rows, columns\); got"):
            Deconvnet(nn.Sequential(nn.Conv2d(3, 4, 3))).record(images)

    def test_a_model_with_control_flow(self) -> None:
        with pytest.raises(InputError, match=r"Branching cannot be traced .* make that part a module with a rule"):
            Deconvnet(Branching())

    @pytest.mark.parametrize("side", [8, 30])
    def test_images_too_small(self, side: int) -> None:
        with pytest.raises(
            InputError, match=rf"of AlexNet fails on images of shape \(1, 3, {side}, {side}\): Given input size"
        ):
            Deconvnet(headless(models.alexnet())).record(torch.randn(1, 3, side, side))

    def test_images_of_another_size_than_the_networks(self) -> None:
        deconvnet = Deconvnet(ZFNet(2, maps=(2, 2, 2, 2, 2), hidden=(2, 2)))
        with pytest.raises(InputError, match=r"fc6 \(Linear\) of ZFNet fails on images of shape \(1, 3, 192, 192\)"):
            deconvnet.record(torch.randn(1, 3, 192, 192))
        assert deconvnet.record(torch.randn(1, 3, 192, 192), ["relu5"]).activations["relu5"].shape[-1] == 11


def test_images_take_the_models_type() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).double()
    assert Deconvnet(model).record(torch.randn(1, 3, 8, 8)).activations["0"].dtype == torch.float64


def test_a_copy_of_the_model_records_the_same() -> None:
    model = NETS["ZFNet"]()
    images = torch.randn(1, 3, 64, 64)
    first, second = (Deconvnet(net).record(images, ["fc8"]) for net in (model, copy.deepcopy(model)))
    assert torch.equal(first.activations["fc8"], second.activations["fc8"])


def test_a_step_that_fails_without_a_word_is_named_too() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError

    with pytest.raises(InputError, match=r"^0 \(Silent\) of Sequential fails on .* RuntimeError$"):
        Deconvnet(nn.Sequential(Silent()), rules={Silent: Operation(None)}).record(torch.zeros(1, 3, 4, 4))


def test_a_forward_of_ones_own_is_traced_into() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    plain = model[0].forward
    model[0].forward = lambda x: plain(x) * 3
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    deconvnet = Deconvnet(model)
    recording = deconvnet.record(images, ["0", "1"])
    assert torch.equal(recording.activations["0"], model[0](images))
    signal = torch.rand(2, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(
        deconvnet.project(recording, "1", signal), deconvnet_by_autograd(model, images, "1", signal)
    )


def test_a_block_stands_for_what_it_gives_not_for_what_a_hook_makes_of_it() -> None:
    block, means = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 4, 3)), []
    block[0].register_forward_hook(lambda module, args, output: means.append(output.mean((2, 3))))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(Deconvnet(block).record(images, ["0"]).activations["0"], block[0](images))


@pytest.mark.parametrize("way", ["torch.compile", "compile"])
def test_parts_that_are_compiled_are_looked_into(way: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)))
    images = torch.randn(2, 3, 8, 8)
    expected = model(images).detach()
    if way == "compile":
        model[1].compile()
    else:
        model[1] = torch.compile(model[1])
    assert torch.equal(Deconvnet(model).record(images, ["1"]).activations["1"], expected)


def test_a_network_of_many_steps_and_branches_is_traced():
    """Every step has two sources, and the first of them is far away."""

    class Deep(nn.Module):
        def forward(self, x):
            zero = x.new_zeros(1)
            for _ in range(700):
                zero = zero + zero
                x = x + zero
            return x

    graph = Graph(Deep(), verify=False)
    assert len(graph.nodes) > 1400


class Conditional(nn.Module):
    """Blocks, of which each looks at the size of what it is given."""

    def __init__(self, blocks: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)) if x.shape[-1] > 2 else x
        return x


def test_what_is_computed_for_a_condition_is_not_traced() -> None:
    graph = Graph(Conditional(4))
    assert len(graph.guards) == 4 and len(graph.layers) == 8


class Numbered(nn.Module):
    """Python's numbers of sizes: int(), float(), round() and math.ceil()."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        side = int((x.shape[-2] * x.shape[-1]) ** 0.5)
        x = self.conv(x).flatten(2).unflatten(2, (side, math.ceil(x.shape[-1] / 1)))
        return x * float(side) / round(x.shape[-1] / 1)


def test_numbers_of_sizes_are_those_of_the_size_that_was_given() -> None:
    model, images = Numbered(), torch.randn(2, 3, 10, 10)
    graph = Graph(model, image_size=10)
    (last,) = graph.run(images, [graph.output], graph.call).values()
    assert torch.equal(last, model(images))
    with pytest.raises(InputError, match=r"another path for images of 12 x 12 pixels.*image_size"):
        graph.shapes(12, graph.output)


class OfOneSize(nn.Module):
    def __init__(self, side: int):
        super().__init__()
        self.image_size, self.conv = side, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.image_size:
            raise ValueError(f"images are {x.shape[-1]} pixels wide")
        return self.conv(x)


def test_a_model_is_traced_for_the_size_that_it_is_made_for() -> None:
    graph = Graph(OfOneSize(40))
    assert graph.image_size == (40, 40) and graph.shapes(40, graph.output)[graph.output] == (1, 4, 38, 38)


class Counted(nn.Module):
    """Modules whose names end in numbers, one of them called twice, and a function of the name of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.act_1, self.act_2, self.act = nn.ReLU(), nn.Tanh(), nn.Sigmoid()
        self.relu = nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.relu(self.relu(self.act(self.act_2(self.act_1(F.relu(x)))))))


def test_a_modules_own_name_is_of_no_other_step() -> None:
    graph = Graph(Counted())
    steps = {layer: (graph.node(layer).op, graph.operation(graph.node(layer))) for layer in graph.layers}
    assert steps == {
        "relu_1": ("call_function", "relu"),
        "act_1": ("call_module", "ReLU"),
        "act_2": ("call_module", "Tanh"),
        "act": ("call_module", "Sigmoid"),
        "relu": ("call_module", "Softplus"),
        "relu_2": ("call_function", "relu"),
        "act_3": ("call_module", "Sigmoid"),
    }
    for name in ("act_1", "act_2", "relu"):
        assert graph.node(graph.model.get_submodule(name)) is graph.node(name)
    with pytest.raises(InputError, match="used more than once"):
        graph.node(graph.model.act)
