"""The walk back equals its slow twins, each linear rule is a transpose, and what has no rule is refused by name."""

import copy
import operator
import re
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import ZFNetDeconvnet, deconvnet_by_autograd, dense_deconvnet
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import StochasticDepth

from zfnet import DECONVNET, GRADIENT, GUIDED, Deconvnet, InputError, Operation, Patches, Recording, ZFNet, rule
from zfnet.operations import CONTRAST_NORMS, GROUP_NORMS, RECTIFIERS, piece, through
from zfnet.windows import POINTWISE


def randomised(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Biases and the statistics of batch normalisation drawn at random, so that none of them cancels by luck."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.normal_(module.bias, std=0.1) if module.bias is not None else None
    return model.to(dtype).eval()


def thin_head(model: nn.Module) -> nn.Module:
    """Without the 100 million weights of AlexNet's and VGG's own classifier."""
    maps = model.features[-3].out_channels
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(4 * maps, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, 10))
    return model


def vgg_bn() -> nn.Module:
    model = models.vgg11_bn(init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(2048, 10))
    return model


NETS: dict[str, tuple[Callable[[], nn.Module], int, tuple[str, ...]]] = {
    "AlexNet": (
        lambda: thin_head(models.alexnet()),
        96,
        ("features.1", "features.3", "features.8", "features.12", "classifier.1", "classifier.3"),
    ),
    "VGG11": (
        lambda: thin_head(models.vgg11(init_weights=False)),
        64,
        ("features.1", "features.9", "features.20", "classifier.3"),
    ),
    "VGG11_bn": (vgg_bn, 64, ("features.1", "features.2", "features.28", "classifier.0")),
    "SqueezeNet1_0": (models.squeezenet1_0, 96, ("features.1", "features.5.cat", "features.12.cat", "flatten")),
    "SqueezeNet1_1": (models.squeezenet1_1, 96, ("features.2", "features.12.cat", "classifier.2")),
    "ResNet18": (
        models.resnet18,
        64,
        ("relu", "layer1.0.add", "layer2.0.relu_1", "layer3.1.bn1", "layer4.1.relu_1", "fc"),
    ),
    "GoogLeNet": (
        lambda: models.googlenet(init_weights=False, aux_logits=False),
        64,
        ("inception3a.cat", "inception4c.branch2.1.relu", "fc"),
    ),
    "GoogLeNet, own preprocessing": (
        lambda: models.googlenet(init_weights=False, aux_logits=True, transform_input=True),
        64,
        ("cat", "maxpool2", "inception4a.cat"),
    ),
}


@cache
def net(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    make, side, _ = NETS[name]
    return randomised(make()), torch.randn(2, 3, side, side, dtype=torch.float64)


@cache
def zfnet(norm: str | None = "after pool", border: str = "both") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    model = ZFNet(10, hidden=(64, 48), norm=norm, border=border)
    return randomised(model), 50 * torch.randn(1, 3, 224, 224, dtype=torch.float64)


@cache
def by_hand() -> tuple[ZFNetDeconvnet, dict[str, Tensor]]:
    hand = ZFNetDeconvnet(zfnet()[0])
    return hand, hand.forward(zfnet()[1])


@cache
def recorded(model: nn.Module, images: Tensor, layers: tuple[str, ...]) -> tuple[Deconvnet, Recording]:
    deconvnet = Deconvnet(model)
    return deconvnet, deconvnet.record(images, layers)


@cache
def tiny() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(3)
    layers = (
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 5, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(5, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    return randomised(nn.Sequential(*layers)), torch.randn(1, 3, 12, 12, dtype=torch.float64)


def one_unit(activation: Tensor) -> Tensor:
    """The strongest activation of every image, everything else zero."""
    flat = activation.flatten(1)
    signal = torch.zeros_like(flat)
    signal.scatter_(1, flat.argmax(1, keepdim=True), flat.amax(1, keepdim=True))
    return signal.view_as(activation)


def several(activation: Tensor) -> Tensor:
    """Positive and negative values everywhere."""
    return torch.randn(activation.shape, generator=torch.Generator().manual_seed(5), dtype=activation.dtype)


def projected(
    model: nn.Module, images: Tensor, layer: str, signal: Callable[[Tensor], Tensor], **options: Any
) -> Tensor:
    collisions = options.pop("collisions", "add")
    deconvnet = Deconvnet(model, rules=rule_set(**options), collisions=collisions)
    recording = deconvnet.record(images, [layer])
    return deconvnet.project(recording, layer, signal(recording.activations[layer]))


def rule_set(rectify: str | bool = "deconvnet", norm: str = "") -> dict[Any, Operation]:
    """A rule set by what it does to ReLUs and to normalisation."""
    linear = DECONVNET | dict.fromkeys(RECTIFIERS, Operation(through, POINTWISE))
    rules = {"deconvnet": DECONVNET, True: DECONVNET, "gradient": GRADIENT, "guided": GUIDED, False: linear}[rectify]
    source = {"identity": DECONVNET, "gradient": GRADIENT}.get(norm, rules)
    return rules | {operation: source[operation] for operation in (*CONTRAST_NORMS, *GROUP_NORMS)}


def assert_close(ours: Tensor, theirs: Tensor, precision: float) -> None:
    """Within `precision` of the largest value of each image."""
    assert ours.shape == theirs.shape
    largest = theirs.abs().flatten(1).amax(1)
    assert (largest > 0).all()
    assert ((ours - theirs).abs().flatten(1).amax(1) / largest).max() <= precision


# one unit of each network's deepest layer, and a signal everywhere of each layer
CASES = [(name, layer, several) for name, (_, _, layers) in NETS.items() for layer in layers]
CASES += [(name, layers[-1], one_unit) for name, (_, _, layers) in NETS.items()]


PAPERS_LAYERS = ("relu1", "relu2", "relu3", "relu4", "relu5", "pool5", "relu6", "relu7", "fc8")


class TestTwins:
    @pytest.mark.parametrize("layer", PAPERS_LAYERS)
    def test_the_papers_network_by_hand_and_by_autograd(self, layer: str) -> None:
        model, images = zfnet()
        deconvnet, recording = recorded(model, images, PAPERS_LAYERS)
        hand, activations = by_hand()
        for signal in (one_unit, several):
            sent = signal(recording.activations[layer])
            ours = deconvnet.project(recording, layer, sent)
            assert_close(ours, hand.project(layer, signal(activations[layer])), 1e-10)
        assert_close(ours, deconvnet_by_autograd(model, images, layer, sent), 1e-10)

    @pytest.mark.parametrize(("norm", "border"), [("before pool", "both"), ("after pool", "right and below")])
    def test_other_readings_of_the_paper(self, norm: str, border: str) -> None:
        model, images = zfnet(norm, border)
        for layer in ("pool1", "relu5"):
            ours = projected(model, images, layer, several)
            assert_close(ours, deconvnet_by_autograd(model, images, layer, several), 1e-10)

    @pytest.mark.parametrize(("name", "layer", "signal"), CASES, ids=lambda v: v if isinstance(v, str) else v.__name__)
    def test_torchvisions_networks(self, name: str, layer: str, signal: Callable[[Tensor], Tensor]) -> None:
        model, images = net(name)
        deconvnet, recording = recorded(model, images, NETS[name][2])
        sent = signal(recording.activations[layer])
        ours = deconvnet.project(recording, layer, sent)
        assert_close(ours, deconvnet_by_autograd(model, images, layer, sent), 1e-10)

    @pytest.mark.parametrize("rectify", [True, False])
    @pytest.mark.parametrize("layer", ["2", "3", "6", "10"])
    def test_dense_jacobians(self, layer: str, rectify: bool) -> None:
        model, images = tiny()
        ours = projected(model, images, layer, several, rectify=rectify)
        below = model[: int(layer) + 1]
        assert_close(ours, dense_deconvnet(below, images, several(below(images)), rectify), 1e-10)

    @pytest.mark.parametrize("feature", [7, 40, 101])
    def test_captums_neuron_deconvolution(self, feature: int) -> None:
        """It seeds with one where we seed with the activation: the same but for this factor.  No contrast norm."""
        captum = pytest.importorskip("captum.attr")
        model, images = zfnet(None)
        model, images = copy.deepcopy(model).float(), images.float()
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        deconvnet = Deconvnet(model)
        recording = deconvnet.record(images, ["relu5"])
        plane = recording.activations["relu5"][0, feature]
        unit = (feature, *divmod(int(plane.argmax()), 13))
        assert plane.max() > 0
        signal = torch.zeros_like(recording.activations["relu5"])
        signal[0][unit] = plane.max()
        with pytest.warns(UserWarning, match="backward hooks"):
            seeded_with_one = captum.NeuronDeconvolution(model, model.relu5).attribute(images.requires_grad_(), unit)
        theirs = seeded_with_one.detach() * plane.max()
        assert_close(deconvnet.project(recording, "relu5", signal), theirs, 1e-5)


class TestOptions:
    @pytest.mark.parametrize("rectify", [True, False])
    @pytest.mark.parametrize("placed", ["after pool", "before pool"])
    def test_the_gradient_of_contrast_normalisation(self, placed: str, rectify: bool) -> None:
        model, images = zfnet(placed)
        ours = projected(model, images, "relu5", several, norm="gradient", rectify=rectify)
        theirs = deconvnet_by_autograd(model, images, "relu5", several, norm="gradient", rectify=rectify)
        assert_close(ours, theirs, 1e-10)
        assert not torch.allclose(ours, projected(model, images, "relu5", several, rectify=rectify), rtol=0.1)

    @pytest.mark.parametrize("norm", ["identity", "gradient"])
    def test_group_normalisation(self, norm: str) -> None:
        """Its statistics are held as a batch normalisation's are, or differentiated too."""
        model = randomised(nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 3)))
        images = torch.randn(2, 3, 9, 8, dtype=torch.float64)
        ours = projected(model, images, "3", several, norm=norm)
        assert_close(ours, deconvnet_by_autograd(model, images, "3", several, norm=norm), 1e-10)

    def test_unrectified_is_linear(self) -> None:
        deconvnet = Deconvnet(net("ResNet18")[0], rules=rule_set(False))
        recording = deconvnet.record(net("ResNet18")[1], ["layer2.1.relu_1"])
        first, second = (torch.randn_like(recording.activations["layer2.1.relu_1"]) for _ in range(2))
        parts = [deconvnet.project(recording, "layer2.1.relu_1", s) for s in (first, second, 2 * first - 3 * second)]
        assert_close(parts[2], 2 * parts[0] - 3 * parts[1], 1e-10)

    def test_unrectified_by_autograd(self) -> None:
        model, images = net("GoogLeNet")
        ours = projected(model, images, "inception4a.cat", several, rectify=False)
        assert_close(ours, deconvnet_by_autograd(model, images, "inception4a.cat", several, rectify=False), 1e-10)

    @pytest.mark.parametrize("rectify", ["gradient", "guided"])
    @pytest.mark.parametrize("name", ["GoogLeNet", "ResNet18"])
    def test_gradient_and_guided_by_autograd(self, name: str, rectify: str) -> None:
        model, images = net(name)
        layer = NETS[name][2][-1]
        ours = projected(model, images, layer, several, rectify=rectify)
        assert_close(ours, deconvnet_by_autograd(model, images, layer, several, rectify=rectify), 1e-10)
        assert not torch.allclose(ours, projected(model, images, layer, several), rtol=0.1)

    @pytest.mark.parametrize("rectify", ["gradient", "guided"])
    def test_they_agree_with_captum(self, rectify: str) -> None:
        captum = pytest.importorskip("captum.attr")
        model, images = tiny()
        outputs = model(images)
        target = int(outputs.flatten(1).sum(0).argmax())
        signal = torch.zeros_like(outputs).flatten(1)
        signal[:, target] = 1
        ours = projected(model, images, str(len(model) - 1), lambda _: signal.view_as(outputs), rectify=rectify)
        whole = nn.Sequential(*model, nn.Flatten())
        method = captum.Saliency(whole) if rectify == "gradient" else captum.GuidedBackprop(whole)
        more = {"abs": False} if rectify == "gradient" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Captum's hooks
            theirs = method.attribute(images.clone().requires_grad_(), target, **more)
        assert_close(ours, theirs.detach(), 1e-10)

    def test_relu6_lets_nothing_through_beyond_its_ends(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 1).double(), nn.ReLU6(inplace=True))
        images = 8 * torch.randn(2, 3, 5, 5, dtype=torch.float64)
        ours = projected(model, images, "1", several, rectify="gradient")
        assert_close(ours, deconvnet_by_autograd(model, images, "1", several, rectify="gradient"), 1e-10)
        assert not torch.allclose(ours, projected(model, images, "1", several, rectify=False), rtol=0.1)

    def test_a_name_stands_for_a_rule_set(self) -> None:
        model, images = net("ResNet18")
        deconvnets = Deconvnet(model, rules="guided"), Deconvnet(model, rules=GUIDED)
        signal = torch.rand_like(deconvnets[0].record(images, ["layer2"]).activations["layer2"])
        ours = [d.project(d.record(images, ["layer2"]), "layer2", signal) for d in deconvnets]
        assert torch.equal(*ours)

    def test_an_unknown_rule_set(self) -> None:
        with pytest.raises(InputError, match=r"no rule set 'guide'.*guided"):
            Deconvnet(tiny()[0], rules="guide")

    @pytest.mark.parametrize(("collisions", "sum_of_pixels"), [("add", 6), ("overwrite", 3), ("max", 4)])
    def test_collisions(self, collisions: str, sum_of_pixels: float) -> None:
        """One pixel wins all four windows, which send back 1, 4, -2 and 3."""
        model = nn.Sequential(nn.MaxPool2d(3, 2))
        images = torch.zeros(1, 3, 5, 5)
        images[:, :, 2, 2] = 9
        sent = torch.tensor([[1.0, 4], [-2, 3]]).expand(1, 3, 2, 2)
        pixels = projected(model, images, "0", lambda activation: sent, collisions=collisions)
        assert torch.equal(pixels, images / 9 * sum_of_pixels)

    @pytest.mark.parametrize(
        ("option", "message"), [({"collisions": "Add"}, "no collision rule 'Add' (did you mean 'add'?)")], ids=str
    )
    def test_options_that_do_not_exist(self, option: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)):
            Deconvnet(tiny()[0], **option)


class TestLaws:
    @pytest.mark.parametrize("name", NETS)
    def test_nothing_comes_from_nothing(self, name: str) -> None:
        """No bias, shift or statistic of the forward pass enters: a zero signal projects to exactly zero."""
        model, images = net(name)
        pixels = projected(model, images, NETS[name][2][-1], torch.zeros_like)
        assert pixels.shape == images.shape and not pixels.any()

    @pytest.mark.parametrize("factor", [0.25, 2.0, 1024.0])
    def test_positive_homogeneity(self, factor: float) -> None:
        """Powers of two scale floats exactly, and so the projection bit by bit."""
        model, images = net("SqueezeNet1_1")
        deconvnet = Deconvnet(model)
        recording = deconvnet.record(images, ["features.12.cat"])
        signal = several(recording.activations["features.12.cat"])
        once, scaled = (deconvnet.project(recording, "features.12.cat", s) for s in (signal, factor * signal))
        assert torch.equal(scaled, factor * once)

    def test_images_of_a_batch_do_not_mix(self) -> None:
        model, images = net("VGG11_bn")
        together = projected(model, images, "features.28", one_unit)
        alone = torch.cat([projected(model, image[None], "features.28", one_unit) for image in images])
        assert_close(together, alone, 1e-10)
        deconvnet = Deconvnet(model)
        recording = deconvnet.record(images, ["features.28"])
        signal = one_unit(recording.activations["features.28"])
        signal[1] = 0
        assert not deconvnet.project(recording, "features.28", signal)[1].any()

    def test_a_lower_layer_of_a_deeper_recording(self) -> None:
        model, images = net("ResNet18")
        deconvnet = Deconvnet(model)
        recording = deconvnet.record(images)
        signal = one_unit(recording.activations["layer1.0.add"])
        ours = deconvnet.project(recording, "layer1.0.add", signal)
        assert_close(ours, projected(model, images, "layer1.0.add", one_unit), 1e-10)

    def test_the_way_down_ends_in_the_projection(self) -> None:
        model, images = tiny()
        deconvnet = Deconvnet(model)
        recording = deconvnet.record(images, ["5"])
        signal = several(recording.activations["5"])
        steps = list(deconvnet.steps(recording, "5", signal))
        assert [(layer, operation) for layer, operation, _ in steps] == [
            ("5", "ReLU"),
            ("4", "Conv2d"),
            ("3", "BatchNorm2d"),
            ("2", "MaxPool2d"),
            ("1", "ReLU"),
            ("0", "Conv2d"),
        ]
        assert torch.equal(steps[0][2], signal.clamp(min=0))
        assert torch.equal(steps[-1][2], deconvnet.project(recording, "5", signal))

    def test_the_way_down_is_in_eval_mode_and_leaves_the_model_as_it_was(self) -> None:
        model, images = tiny()
        deconvnet = Deconvnet(model)
        recording = deconvnet.record(images, ["5"])
        signal = several(recording.activations["5"])
        expected = deconvnet.project(recording, "5", signal)
        model.train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert torch.equal(list(deconvnet.steps(recording, "5", signal))[-1][2], expected)
        assert all(module.training for module in model.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_worked_example(self) -> None:
        """One filter [1 -2] at stride 1: what a unit sends back is its filter, times the signal, where it stood."""
        model = nn.Sequential(nn.Conv2d(3, 1, (1, 2)), nn.ReLU())
        model[0].weight.data = torch.tensor([[[[1.0, -2]], [[0, 0]], [[0, 3]]]])
        model[0].bias.data = torch.tensor([5.0])
        images = torch.ones(1, 3, 1, 4)
        pixels = projected(model, images, "1", lambda activation: torch.tensor([[[[0.0, 7, -1]]]]))
        assert pixels[0, :, 0].tolist() == [[0, 7, -14, 0], [0, 0, 0, 0], [0, 0, 21, 0]]


def whole_canvas(patches: Patches, images: Tensor) -> Tensor:
    """The one patch laid into an empty image (1, 3, H, W)."""
    top, left, bottom, right = patches.boxes[0].tolist()
    canvas = torch.zeros_like(images[:1])
    canvas[0, :, top:bottom, left:right] = patches.projections[0]
    return canvas


class Op(nn.Module):
    """One operation behind a convolution, or two."""

    def __init__(self, op: Callable[..., Tensor], inputs: int = 1):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(3, 4, 3, padding=1) if inputs == 2 else None
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        if self.second is None:
            return self.op(self.first(x))
        return self.op(self.first(x), self.second(x))


# each row of RULES: an operation, on one input or two, with the arguments that make its rule work hardest
UNARY: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "nn.MaxPool2d": (nn.MaxPool2d, nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "F.max_pool2d": (F.max_pool2d, lambda x: F.max_pool2d(x, 3, stride=2, ceil_mode=True)),
    "nn.ReLU": (nn.ReLU, nn.ReLU(inplace=True)),
    "nn.ReLU6": (nn.Hardtanh, nn.ReLU6(inplace=True)),
    "F.relu6": (F.relu6, lambda x: F.relu6(x)),
    "nn.Hardtanh": (nn.Hardtanh, nn.Hardtanh(0, 6)),
    "F.hardtanh": (F.hardtanh, lambda x: F.hardtanh(x, 0.0, 6.0)),
    "nn.AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool2d((4, 3))),
    "F.adaptive_max_pool2d": (F.adaptive_max_pool2d, lambda x: F.adaptive_max_pool2d(x, 5)),
    "F.relu": (F.relu, lambda x: F.relu(x, inplace=True)),
    "torch.relu": (torch.relu, lambda x: torch.relu(x)),
    "Tensor.relu": (Tensor.relu, lambda x: x.relu()),
    "torch.relu_": (torch.relu_, lambda x: torch.relu_(x)),
    "Tensor.relu_": (Tensor.relu_, lambda x: x.relu_()),
    "nn.LocalResponseNorm": (nn.LocalResponseNorm, nn.LocalResponseNorm(3)),
    "F.local_response_norm": (F.local_response_norm, lambda x: F.local_response_norm(x, 3)),
    "nn.GroupNorm": (nn.GroupNorm, nn.GroupNorm(2, 4)),
    "F.group_norm": (F.group_norm, lambda x: F.group_norm(x, 4)),
}
LINEAR: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "nn.Conv2d": (nn.Conv2d, nn.Conv2d(4, 6, (3, 2), (2, 3), (2, 1), (1, 2), groups=2)),
    "F.conv2d": (F.conv2d, lambda x: F.conv2d(x, x.new_ones(2, 4, 3, 2), stride=(2, 1), padding=1)),
    "nn.Linear": (nn.Linear, nn.Linear(11, 5)),
    "F.linear": (F.linear, lambda x: F.linear(x, x.new_ones(3, 11))),
    "nn.Dropout": (nn.Dropout, nn.Dropout()),
    "nn.Dropout1d": (nn.Dropout1d, nn.Sequential(nn.Flatten(2), nn.Dropout1d())),
    "nn.AlphaDropout": (nn.AlphaDropout, nn.AlphaDropout()),
    "stochastic_depth": ("torchvision.ops.stochastic_depth.stochastic_depth", StochasticDepth(0.5, "row")),
    "Tensor.clone": (Tensor.clone, lambda x: x.clone()),
    "nn.Dropout2d": (nn.Dropout2d, nn.Dropout2d()),
    "nn.Identity": (nn.Identity, nn.Identity()),
    "F.dropout": (F.dropout, lambda x: F.dropout(x, training=False)),
    "F.dropout2d": (F.dropout2d, lambda x: F.dropout2d(x, training=False)),
    "Tensor.contiguous": (Tensor.contiguous, lambda x: x.contiguous()),
    "nn.BatchNorm2d": (nn.BatchNorm2d, nn.BatchNorm2d(4)),
    "nn.BatchNorm1d": (nn.BatchNorm1d, nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(4))),
    "F.batch_norm": (F.batch_norm, lambda x: F.batch_norm(x, x.new_ones(4), 2 * x.new_ones(4))),
    "nn.AvgPool2d": (nn.AvgPool2d, nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "F.avg_pool2d": (F.avg_pool2d, lambda x: F.avg_pool2d(x, (3, 2), stride=2)),
    "nn.AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d((4, 3))),
    "F.adaptive_avg_pool2d": (F.adaptive_avg_pool2d, lambda x: F.adaptive_avg_pool2d(x, 1)),
    "nn.ZeroPad2d": (nn.ConstantPad2d, nn.ZeroPad2d((1, 2, 0, 3))),
    "nn.ReflectionPad2d": (nn.ReflectionPad2d, nn.ReflectionPad2d((1, 2, 0, 3))),
    "nn.ReplicationPad2d": (nn.ReplicationPad2d, nn.ReplicationPad2d((1, 2, 0, 3))),
    "F.pad": (F.pad, lambda x: F.pad(x, (2, -1, 0, 3))),
    "nn.Unflatten": (nn.Unflatten, nn.Unflatten(1, (2, 2))),
    "nn.ChannelShuffle": (nn.ChannelShuffle, nn.ChannelShuffle(2)),
    "Tensor.chunk": (piece, lambda x: x.chunk(2, dim=1)[1]),
    "torch.reshape": (torch.reshape, lambda x: torch.reshape(x, (x.shape[0], -1))),
    "Tensor.unflatten": (Tensor.unflatten, lambda x: x.unflatten(1, (2, 2))),
    "torch.permute": (torch.permute, lambda x: torch.permute(x, (0, 2, 3, 1))),
    "Tensor.permute": (Tensor.permute, lambda x: x.permute(0, 3, 1, 2)),
    "torch.transpose": (torch.transpose, lambda x: torch.transpose(x, 1, 3)),
    "Tensor.transpose": (Tensor.transpose, lambda x: x.transpose(2, 3)),
    "Tensor.expand": (Tensor.expand, lambda x: x.expand(x.shape)),
    "Tensor.repeat": (Tensor.repeat, lambda x: x.repeat(1, 2, 1, 1)),
    "torch.flatten": (torch.flatten, lambda x: torch.flatten(x, 1)),
    "nn.Flatten": (nn.Flatten, nn.Flatten()),
    "Tensor.flatten": (Tensor.flatten, lambda x: x.flatten(2)),
    "Tensor.view": (Tensor.view, lambda x: x.view(x.size(0), -1)),
    "Tensor.reshape": (Tensor.reshape, lambda x: x.reshape(x.shape[0], 2, -1)),
    "Tensor.mean": (Tensor.mean, lambda x: x.mean((2, 3))),
    "torch.mean": (torch.mean, lambda x: torch.mean(x, dim=1, keepdim=True)),
    "torch.squeeze": (torch.squeeze, lambda x: torch.squeeze(x)),
    "Tensor.squeeze": (Tensor.squeeze, lambda x: x.squeeze(0)),
    "operator.neg": (operator.neg, lambda x: -x),
    "torch.neg": (torch.neg, lambda x: torch.neg(x)),
    "Tensor.neg": (Tensor.neg, lambda x: x.neg()),
    "torch.div": (torch.div, lambda x: torch.div(x, 3)),
    "Tensor.div": (Tensor.div, lambda x: x.div(3)),
    "Tensor.div_": (Tensor.div_, lambda x: x.div_(3)),
    "operator.mul": (operator.mul, lambda x: 0.5 * x),
    "operator.truediv": (operator.truediv, lambda x: x / 3),
    "torch.mul": (torch.mul, lambda x: torch.mul(x, -2.5)),
    "Tensor.mul": (Tensor.mul, lambda x: x.mul(0.3)),
    "Tensor.mul_": (Tensor.mul_, lambda x: x.mul_(0.3)),
    "operator.getitem": (operator.getitem, lambda x: x[:, 1]),
    "torch.unsqueeze": (torch.unsqueeze, lambda x: torch.unsqueeze(x, 1)),
    "Tensor.unsqueeze": (Tensor.unsqueeze, lambda x: x.unsqueeze(1)),
}
BINARY: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "operator.add": (operator.add, lambda x, y: x + y),
    "operator.sub": (operator.sub, lambda x, y: x - y),
    "torch.add": (torch.add, lambda x, y: torch.add(x, y, alpha=2)),
    "Tensor.add": (Tensor.add, lambda x, y: x.add(y)),
    "Tensor.add_": (Tensor.add_, lambda x, y: x.add_(y)),
    "torch.sub": (torch.sub, lambda x, y: torch.sub(x, y, alpha=2)),
    "Tensor.sub": (Tensor.sub, lambda x, y: x.sub(y)),
    "Tensor.sub_": (Tensor.sub_, lambda x, y: x.sub_(y)),
    "torch.cat": (torch.cat, lambda x, y: torch.cat([x, y, x], 1)),
    "torch.stack": (torch.stack, lambda x, y: torch.stack([x, y], 2)),
}
OPERATIONS = UNARY | LINEAR | BINARY


def model_of(name: str) -> tuple[nn.Module, Tensor, str]:
    model = randomised(Op(copy.deepcopy(OPERATIONS[name][1]), 2 if name in BINARY else 1))
    images = torch.randn(1 if "squeeze" in name else 2, 3, 9, 11, dtype=torch.float64)
    return model, images, Deconvnet(model).graph.layers[-1]


class TestRules:
    def test_every_rule_is_tested_here(self) -> None:
        tested = {operation for operation, _ in OPERATIONS.values()}
        assert tested <= set(DECONVNET)

    @pytest.mark.parametrize("name", LINEAR | BINARY)
    def test_adjoint(self, name: str) -> None:
        """<A x, y> = <x, A^T y>, where A x is what the model does to x but for its constant."""
        model, images, layer = model_of(name)
        with torch.no_grad():
            forward = model(images.clone()) - model(torch.zeros_like(images))
        y = torch.randn_like(forward)
        pixels = projected(model, images, layer, lambda activation: y)
        torch.testing.assert_close((forward * y).sum(), (images * pixels).sum(), rtol=1e-10, atol=1e-10)
        assert pixels.any()

    @pytest.mark.parametrize(
        "conv",
        [
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(3, 4, 7, 2, 1),
            nn.Conv2d(3, 4, 11, 4, 2),
            nn.Conv2d(3, 4, (1, 5), (3, 1), (0, 4)),
            nn.Conv2d(3, 6, 3, 2, 1, groups=3),
            nn.Conv2d(3, 4, 3, 2, 2, dilation=2),
            nn.Conv2d(3, 4, 2, 3, dilation=(3, 1)),
            nn.Conv2d(3, 4, 1, 3),
            nn.Conv2d(3, 4, 5, padding="same"),
            nn.Conv2d(3, 4, 3, 1, 1, padding_mode="reflect"),
            nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular"),
        ],
        ids=lambda conv: str(conv)[7:-1],
    )
    @pytest.mark.parametrize("size", [(14, 15), (16, 13)], ids=str)
    def test_adjoint_of_convolutions(self, conv: nn.Conv2d, size: tuple[int, int]) -> None:
        model = nn.Sequential(randomised(copy.deepcopy(conv)))
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            forward = model(images) - model(torch.zeros_like(images))
        y = torch.randn_like(forward)
        pixels = projected(model, images, "0", lambda activation: y)
        torch.testing.assert_close((forward * y).sum(), (images * pixels).sum(), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_by_autograd(self, name: str) -> None:
        model, images, layer = model_of(name)
        ours = projected(model, images, layer, several)
        assert_close(ours, deconvnet_by_autograd(model, images, layer, several), 1e-10)

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_without_its_rule_an_operation_is_refused(self, name: str) -> None:
        operation, _ = OPERATIONS[name]
        model, images, layer = model_of(name)
        deconvnet = Deconvnet(model)
        recording = deconvnet.record(images, [layer])
        signal = several(recording.activations[layer])
        deconvnet.project(recording, layer, signal)
        del deconvnet.rules[operation]
        called = name.rpartition(".")[2]
        expected = f"no deconvnet rule for {called} at "
        with pytest.raises(InputError, match=re.escape(expected)) as error:
            deconvnet.project(recording, layer, signal)
        assert str(error.value) in [f"{expected}{place}; register one with @rule" for place in (layer, "first")]

    @pytest.mark.parametrize(
        "product",
        [lambda x, y: x * y, lambda x, y: x / y, lambda x, y: torch.mul(x, y), lambda x, y: x.mul_(y)],
        ids=["mul", "truediv", "torch.mul", "mul_"],
    )
    def test_products_of_feature_maps_are_refused(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        model = Op(product, 2)
        with pytest.raises(InputError, match=r"no deconvnet rule for \w+ at \w+ of two feature maps; register one"):
            projected(model, torch.rand(1, 3, 5, 5), Deconvnet(model).graph.layers[-1], several)

    @pytest.mark.parametrize(
        "product", [lambda x: x * x, lambda x: 1 / x, lambda x: torch.mul(x, x)], ids=["square", "inverse", "mul"]
    )
    def test_powers_of_a_feature_map_are_refused(self, product: Callable[[Tensor], Tensor]) -> None:
        model = Op(product)
        with pytest.raises(InputError, match=r"no deconvnet rule for \w+ at \w+"):
            projected(model, 1 + torch.rand(1, 3, 5, 5), Deconvnet(model).graph.layers[-1], several)


def silu_net() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential()
    model.features = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Sequential(nn.Conv2d(4, 5, 3), nn.SiLU()), nn.Conv2d(5, 2, 1)
    )
    return randomised(model), torch.randn(2, 3, 12, 12, dtype=torch.float64)


class Scaled(nn.Module):
    """Arithmetic with parameters, buffers and default arguments."""

    def __init__(self, *places: int):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.factor = nn.Parameter(torch.rand(4, *(places or (1, 1))))
        self.register_buffer("shift", torch.rand(4, *(places or (1, 1))))

    def forward(self, x: Tensor, half: float = 0.5) -> Tensor:
        return (F.relu(self.conv(x)) * self.factor + self.shift) * half


@pytest.mark.parametrize("places", [(), (6, 7)], ids=["for each map", "for each place"])
def test_parameters_as_operands(places: tuple[int, ...]) -> None:
    model = Scaled(*places).double()
    images = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    layer = Deconvnet(model).graph.layers[-1]
    ours = projected(model, images, layer, several)
    expected = deconvnet_by_autograd(model, images, "relu", several(model(images)) * 0.5 * model.factor.detach())
    assert_close(ours, expected, 1e-10)
    patches = Deconvnet(model).project_units(images, layer, [[1, 2, 3, 4]])
    signal = torch.zeros(2, 4, 6, 7, dtype=torch.float64)
    signal[1, 2, 3, 4] = model(images)[1, 2, 3, 4].detach()
    assert_close(whole_canvas(patches, images), projected(model, images, layer, lambda activation: signal)[1:], 1e-10)


class Normalised(nn.Module):
    def __init__(self, *statistics: Tensor | None):
        super().__init__()
        self.conv, self.statistics = nn.Conv2d(3, 4, 1), statistics

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.conv(x), *self.statistics, training=True)


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), Normalised(None, None)],
    ids=["module", "function"],
)
def test_batch_normalisation_by_the_batch_is_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"no deconvnet rule for \w+ at \w+ without running statistics; register one"):
        projected(model, torch.rand(2, 3, 5, 5), Deconvnet(model).graph.layers[-1], several)


def test_a_rectifier_with_another_floor_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh())
    with pytest.raises(InputError, match="no deconvnet rule for Hardtanh at 1 that lets values below 0 through"):
        projected(model, torch.rand(1, 3, 5, 5), "1", several)


class TestRegistering:
    def test_what_has_no_rule_is_refused_by_name(self) -> None:
        model, images = silu_net()
        message = 'no deconvnet rule for SiLU at features.3.1; give rules="extended", or register one with @rule'
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            projected(model, images, "features.4", several)

    def test_below_it_there_is_nothing_to_refuse(self) -> None:
        model, images = silu_net()
        ours = projected(model, images, "features.3.0", several)
        assert_close(ours, deconvnet_by_autograd(model, images, "features.3.0", several), 1e-10)

    def test_a_rule_for_a_module(self, tables: None) -> None:
        @rule(nn.SiLU)
        def rectified(step: Any, signal: Tensor) -> Tensor:
            return signal.clamp(min=0)

        model, images = silu_net()
        ours = projected(model, images, "features.4", several)
        upper = F.conv_transpose2d(several(model(images)), model.features[4].weight).clamp(min=0)
        assert_close(ours, deconvnet_by_autograd(model, images, "features.3.0", upper), 1e-10)

    def test_a_rule_that_reads_the_forward_pass(self, tables: None) -> None:
        """SiLU's own derivative, from the step's input."""

        @rule(nn.SiLU, reads_input=True)
        def derivative(step: Any, signal: Tensor) -> Any:
            return torch.func.vjp(step.call, *step.inputs)[1](signal)

        model, images = silu_net()
        ours = projected(model, images, "features.4", several)
        assert_close(ours, deconvnet_by_autograd(model, images, "features.4", several), 1e-10)

    def test_a_rule_for_a_module_of_ones_own(self, tables: None) -> None:
        """It becomes one step, control flow and all."""

        class Halve(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x / 2 if x.sum() > -1e9 else x

        model = nn.Sequential(nn.Conv2d(3, 4, 3), Halve(), nn.ReLU()).double()
        with pytest.raises(InputError, match="cannot be traced"):
            Deconvnet(model)

        @rule(Halve, window=POINTWISE)
        def halve(step: Any, signal: Tensor) -> Tensor:
            return signal / 2

        images = torch.randn(1, 3, 8, 8, dtype=torch.float64)
        plain = nn.Sequential(model[0], nn.ReLU())
        assert_close(projected(model, images, "2", several), projected(plain, images, "1", several) / 2, 1e-10)


class TestRefusals:
    def test_a_signal_of_another_shape(self) -> None:
        deconvnet = Deconvnet(tiny()[0])
        recording = deconvnet.record(tiny()[1], ["5"])
        with pytest.raises(InputError, match=r"a signal at 5 has the shape of .*\(1, 5, 2, 2\); got .*\(1, 5, 2, 3\)"):
            deconvnet.project(recording, "5", torch.zeros(1, 5, 2, 3))

    def test_a_layer_above_the_recording(self) -> None:
        deconvnet = Deconvnet(tiny()[0])
        recording = deconvnet.record(tiny()[1], ["2"])
        with pytest.raises(InputError, match="5 was not recorded: record it, or a layer above it"):
            deconvnet.project(recording, "5", torch.zeros(1, 5, 2, 2))

    def test_a_layer_that_does_not_exist(self) -> None:
        deconvnet = Deconvnet(zfnet()[0])
        recording = deconvnet.record(zfnet()[1][:1, :, :64, :64], ["relu1"])
        with pytest.raises(InputError, match=r"no layer of ZFNet 'rellu1' \(did you mean 'relu1'\?\)"):
            deconvnet.project(recording, "rellu1", torch.zeros(1))


def test_weights_that_became_nan_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    network, images = Deconvnet(model), torch.rand(1, 3, 8, 8)
    network.record(images)
    with torch.no_grad():
        model[0].weight[0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity in 0"):
        network.record(images)
