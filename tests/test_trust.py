"""What a configuration may call without `trust=true`, and that nothing else is so much as imported."""

import os
import sys
from pathlib import Path

import pytest

from experiments.setup.configuration import CONF, configured
from experiments.setup.trust import check_trusted, is_trusted, named_by_us
from zfnet import InputError

MINE = "import os\nfrom os import system as call\n\n\nclass Net:\n    pass\n\n\ndef make():\n    return Net()\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules, as the command runs in it; beside it one with a module that leaves a trace."""
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for path in (folder, folder / "pack", elsewhere):
        path.mkdir()
    (folder / "trust_mine.py").write_text(MINE)
    (folder / "pack" / "inner.py").write_text(MINE)
    (folder / "os.py").write_text("def system(command):\n    raise SystemExit('imported')\n")
    (elsewhere / "trust_theirs.py").write_text(f"open({str(elsewhere / 'trace')!r}, 'w')\n\n\ndef make():\n    pass\n")
    for name in ("trust_mine", "pack", "pack.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(elsewhere)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    return folder


OURS = [
    "zfnet.ZFNet",
    "zfnet.training.Recipe",
    "zfnet.data.preprocessing.Preprocessing",
    "experiments.setup.models.build",
    "experiments.setup.efficientnet_lite.EfficientNetLite0",
    "torch.nn.Sequential",
    "torchvision.models.resnet18",
    "torchvision.datasets.FakeData",
    "timm.create_model",
    "timm.models.resnet.resnet18",
    "trust_mine.Net",
    "trust_mine.make",
    "pack.inner.Net",
]
THEIRS = [
    "os.system",
    "builtins.eval",
    "__main__.x",
    "torchvision.datasets.LSUN",
    "subprocess.run",
    "numpy.fromfile",
    "hydra.utils.instantiate",
    "trust_theirs.make",
    "torch.load",
    "torch.hub.load",
    "torch.os.system",
    "torch.utils.cpp_extension.load",
    "torch.nn.Module.__subclasses__",
    "torchvision.datasets.utils.download_url",
    "torchvision.datasets.utils.os.system",
    "timm.models.load_checkpoint",
    "zfnet.identity.os.system",
    "zfnet.files.write_atomically",
    "experiments.output.results._commit",
    "experiments.run.command_line",
    "experiments.setup.datasets.sys.exit",
    "experiments.setup.configuration.configured",
    "experiments.setup.objects.made",
    "torch.utils.data.datapipes.gen_pyi.gen_from_template",
    "torch.utils.data.datapipes.utils.decoder.basichandlers",
    "trust_mine.os.system",
    "trust_mine.call",
    "os",
    "",
    "torch.nn",
    "a b.c",
    None,
    ["os.system"],
]


@pytest.mark.parametrize("target", OURS)
def test_what_makes_things_is_trusted(target, here):
    assert is_trusted(target)


@pytest.mark.parametrize("target", THEIRS, ids=str)
def test_everything_else_asks_for_trust(target, here):
    assert not is_trusted(target)
    assert not (here.parent / "elsewhere" / "trace").exists() and "trust_theirs" not in sys.modules


def test_what_our_own_files_call_is_trusted():
    assert len(named_by_us()) > 30
    for target in named_by_us():
        assert is_trusted(target)
    named_by_us.cache_clear()


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"model": {"_target_": "os.system"}}, "model"),
        ({"model": {"a": [1, {"b": {"_target_": "os.system", "_partial_": True}}]}}, "model.a[1].b"),
        ([{"_target_": "zfnet.ZFNet", "_args_": [{"_target_": "os.system"}]}], "[0]._args_[0]"),
    ],
)
def test_the_place_of_a_target_is_named(settings, place):
    with pytest.raises(InputError, match=r"os\.system.*trust=true") as error:
        check_trusted(settings)
    assert str(error.value).startswith(f"{place}._target_ is 'os.system'")


@pytest.mark.parametrize(
    "words",
    [
        ["model._target_=trust_theirs.make"],
        ["model.architecture={_target_: trust_theirs.make}"],
        ["experiment=table4", "scratch={_target_: trust_theirs.make, _partial_: true}"],
        ["experiment=fig2", "choose={a: [{_target_: trust_theirs.make}]}"],
        ["experiment=fig2", "out=trust_theirs.make", "choose={a: {_target_: '${out}'}}"],
        ["-m", "hydra.launcher._target_=trust_theirs.make", "experiment=stripes", "size=16,24"],
        ["-m", "model._target_=trust_theirs.make", "experiment=units", "image_size=100,200"],
    ],
    ids=" ".join,
)
def test_a_command_says_what_asks_for_trust(words, here, run, monkeypatch):
    monkeypatch.chdir(here)
    status, lines = run(*words)
    assert status == 2 and len(lines) == 1 and "'trust_theirs.make'" in lines[0] and "trust=true" in lines[0], lines
    assert not (here.parent / "elsewhere" / "trace").exists()


@pytest.mark.parametrize("word", ["hydra.job_logging={a: 1}", "hydra.searchpath=[file:///]", "hydra.callbacks={a: 1}"])
def test_settings_of_hydra_that_call_or_read_are_not_taken(word, run):
    status, lines = run("experiment=stripes", word)
    assert status == 2 and len(lines) == 1 and "no setting 'hydra." in lines[0]


@pytest.mark.parametrize("group", ["data", "model", "train", "experiment", "hydra/launcher"])
def test_a_choice_is_no_path_out_of_conf(group, run, tmp_path, monkeypatch):
    (tmp_path / "other.yaml").write_text(
        f"# @package _global_\nhydra: {{job_logging: {{formatters: {{a: {{(): os.mkdir, path: {tmp_path}/x}}}}}}}}"
    )
    way = os.path.relpath(tmp_path / "other", CONF / group)
    for words in ([f"{group}={way}"], [f"{group}='{way}'"], ["-m", f"{group}={way},{way}"]):
        status, lines = run(*words)
        assert status == 2 and len(lines) == 1 and "other" in lines[0], lines
    assert not (tmp_path / "x").exists()


def test_a_group_stays_in_its_place(run):
    status, lines = run("experiment=stripes", "+data@hydra.job_logging=scenes")
    assert status == 2 and len(lines) == 1 and "without @hydra.job_logging" in lines[0]


def test_trust_on_the_command_line(tmp_path, monkeypatch, run):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "trust_net.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    words = ["experiment=units", "model._target_=trust_net.net"]
    assert run(*words)[0] == 2 and "trust_net" not in sys.modules
    assert run(*words, "trust=true") == (0, [])
    with pytest.raises(InputError, match="trust=true"):
        configured(["model=own", "++model.architecture._target_=trust_net.net", "++trust=false"])


@pytest.mark.parametrize("file", ["net.py", "mine/net.py", "mine/net"])
def test_a_file_is_no_class(file):
    with pytest.raises(InputError, match=r"is '.*net.*', a file; give module\.Class") as error:
        check_trusted({"model": {"_target_": file}})
    assert "trust=true" not in str(error.value)
