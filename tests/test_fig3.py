"""Figure 3 as it is drawn: each block is what the module of that name gives, with its numbers, for every model."""

import json

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import nn

from experiments.figures import fig3
from experiments.setup.configuration import configured
from zfnet import InputError, ZFNet
from zfnet.model import VARIANTS, variant

CHAINS = ("zfnet", "zfnet_small", "alexnet", "vgg11")


def outputs(model, size):
    """What every module gives for one image, (maps, rows, columns) or (units,)."""
    found = {}

    def keep(name):
        return lambda module, given, output: found.update({name: tuple(output.shape[1:])})

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    model(torch.empty(1, 3, size, size, device="meta"))
    for handle in handles:
        handle.remove()
    return found


DRAWN = [*CHAINS, "googlenet", "resnet18", "squeezenet1_0", "zfnet_pytorchcv", "zfnet512"]


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("name", DRAWN)
def test_every_layer_of_every_model_is_drawn_with_its_size_and_number(name):
    words = [f"model={name}"] + ["model.architecture.image_size=64"] * (name == "zfnet_small")
    config = configured(words).model
    size = config.preprocessing.get("size", 224)
    with torch.device("meta"):
        model = instantiate(config.architecture)(num_classes=10).eval()
    drawn = fig3.layers(model, size)
    found = outputs(model, size)
    assert drawn[0].output == (3, size, size)
    for layer in drawn[1:]:
        shape = found[layer.name]
        assert layer.output == (shape[:1] if shape[1:] == (1, 1) else shape)
    if name in CHAINS:
        weighted = [n for n, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert [layer.name for layer in drawn if layer.kind in ("filters", "units")] == weighted

    written = texts(fig3.draw(drawn, name, 13))
    for layer in drawn:
        assert written.count(layer.name) == 1
        assert any(text.split()[0] == str(layer.output[0]) for text in written if text)
        if len(layer.output) == 3:
            assert f"{layer.output[1]} × {layer.output[2]}" in written  # noqa: RUF001
        assert set(layer.words) <= set(written)
    assert drawn[-1].count == "10 classes"


def test_zfnet_is_drawn_as_in_the_paper(tmp_path):
    with torch.device("meta"):
        model = ZFNet()
    result = fig3.main(model, tmp_path, image_size=224)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "figure.pdf", "result.json"}
    ours, paper = (json.loads(json.dumps(result[key])) for key in ("ours", "paper"))
    assert ours["layers"] == paper["layers"] == fig3.PAPER
    assert set(ours) == set(paper)
    assert ours["parameters"] == 62_357_608
    words = {layer.name: layer.words for layer in fig3.layers(model, 224)}
    assert words["conv1"] == ["filters 7 × 7", "stride 2", "ReLU"]  # noqa: RUF001
    assert words["pool1"] == ["max pool 3 × 3", "stride 2", "contrast norm"]  # noqa: RUF001
    assert words["pool5"] == ["max pool 3 × 3", "stride 2", "flatten to 9216"]  # noqa: RUF001
    assert words["fc7"] == ["fully connected", "ReLU", "dropout"]
    assert words["fc8"] == ["fully connected", "softmax"]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_drawn_without_what_they_lack(name):
    small = {"maps": (6, 8, 12, 12, 8), "hidden": (12, 12), "num_classes": 5}
    model = ZFNet(**variant(name, **small), border="right and below")
    drawn = fig3.layers(model, 224)
    layers = [x.name for x in drawn if x.kind in ("filters", "units")]
    assert layers == [n for n, module in model.named_children() if isinstance(module, nn.Conv2d | nn.Linear)]
    krizhevsky = name.startswith("krizhevsky")
    assert drawn[0].words == [f"pad to {'227 × 227' if krizhevsky else '225 × 225'}"]  # noqa: RUF001
    normalised = [layer.name for layer in drawn if "contrast norm" in layer.words]
    assert normalised == (["conv1", "conv2"] if krizhevsky else ["pool1", "pool2"])


class Branched(nn.Module):
    """Functions instead of modules, a shortcut, and a size that is asked of a tensor."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.head = nn.Linear(4 * 64, 7)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        x = x + F.relu(self.body(x))
        return self.head(x.view(x.size(0), -1))


def test_branches_are_drawn_by_what_comes_out_of_them():
    drawn = fig3.layers(Branched(), 16)
    assert [(layer.kind, layer.output) for layer in drawn] == [
        ("image", (3, 16, 16)),
        ("filters", (4, 16, 16)),
        ("pooled", (4, 8, 8)),
        ("branches", (4, 8, 8)),
        ("units", (7,)),
    ]
    assert drawn[1].words == ["filters 3 × 3", "stride 1", "ReLU"]  # noqa: RUF001
    assert drawn[2].words == ["max pool 2 × 2", "stride 2"]  # noqa: RUF001
    assert drawn[3].words == ["1 convolution", "1 × 3", "sum of branches", "flatten to 256"]  # noqa: RUF001


def test_a_deep_network_goes_on_in_the_next_row():
    with torch.device("meta"):
        drawn = fig3.layers(ZFNet(), 224)
    wide, narrow = (fig3.draw(drawn, "", width) for width in (13, 5))
    assert narrow.get_figwidth() < 6 < wide.get_figwidth() <= 13
    assert narrow.get_figheight() > 2 * wide.get_figheight()
    assert {layer.name for layer in drawn} <= set(texts(narrow))


def test_too_narrow_a_picture_is_refused(tmp_path):
    with pytest.raises(InputError, match="width is 1; give at least 4"):
        fig3.main(ZFNet(4, maps=(2, 2, 2, 2, 2), hidden=()), tmp_path / "out", image_size=224, width=1)
    assert not list(tmp_path.iterdir())
