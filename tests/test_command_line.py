"""The command line, with all that can be mistyped, and the configuration behind it."""

import copy
import functools
import json
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from hydra.utils import get_object, instantiate
from PIL import Image
from torchvision.models import resnet18

from experiments.questions import stripes
from experiments.setup.choices import names
from experiments.setup.commands import spelled
from experiments.setup.configuration import CONF, configured, suite
from experiments.setup.models import build
from experiments.setup.objects import Objects
from experiments.setup.overview import overview
from zfnet import Deconvnet, InputError, weights
from zfnet.data.preprocessing import Preprocessing

ROOT = Path(__file__).resolve().parent.parent

TINY = [
    "model=zfnet_small",
    "model.weights=null",
    "model.architecture.image_size=64",
    "model.architecture.maps=[4,4,4,4,4]",
    "model.architecture.hidden=[8]",
    "data.count={train: 24, val: 12}",
]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_every_experiment_has_its_module_and_every_module_its_configuration():
    plumbing = {"setup", "output", "run", "transfer", "variants", "runs", "__init__"}
    files = [path for path in (ROOT / "experiments").rglob("*.py") if not plumbing & {path.stem, path.parent.name}]
    modules = {path.stem for path in files if path.parent.name != "ablation" or path.stem == "ablation"}
    suites = {name for name in names("experiment") if "suite" in configured([f"experiment={name}"]).experiment}
    assert modules == set(names("experiment")) - suites


@pytest.mark.parametrize("experiment", names("experiment"))
def test_every_experiment_composes(experiment):
    config = configured([f"experiment={experiment}"])
    for name, words in suite(config, [f"experiment={experiment}"]):
        one = configured(words).experiment
        module = one["_target_"].split(".")
        assert module[0] == "experiments" and module[-2:] == [name, "main"]
        assert callable(get_object(one["_target_"]))
        test = {"variant": "variants", "train": "train_experiment"}.get(name, name)
        assert (ROOT / "tests" / f"test_{test}.py").exists()


FILES = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "own")


@pytest.mark.parametrize("name", [*FILES, "resnet18", "mobilenet_v2"])
def test_every_model_is_built_and_has_its_layers(name):
    words = spelled(["experiment=table1", f"model={name}"])  # which asks for both kinds of layers
    objects = Objects(configured(words), words, run=None)
    config = objects.config.model
    classes = {"num_classes": 5} if config.architecture.get("num_classes", 5) is None else {}
    network = instantiate(config.architecture)(**classes)
    graph = Deconvnet(network.eval()).graph
    assert [graph.node(layer) is not None for layer in (*config.layers, config.layer7)] == [True] * 6


def test_torchvisions_classifiers_are_models_with_the_preprocessing_of_their_weights():
    assert {"resnet152", "vit_b_16", "zfnet", "own"} < set(names("model"))
    how = configured(spelled(["model=inception_v3"])).model
    assert (how.preprocessing.size, how.preprocessing.resize) == (299, 342) and how.architecture.transform_input
    assert configured(spelled(["model=efficientnet_b0"])).model.preprocessing.interpolation == "bicubic"


SMALL = [
    "model.preprocessing.size=64",
    "model.preprocessing.resize=72",
    "data.count={train: 24, val: 5}",
    "progress=false",
]


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_figures_2_and_7_of_any_classifier_by_its_name(name, run, tmp_path):
    status, lines = run("experiment=fig2", f"model={name}", *SMALL, "k=1", "grids=[[1,1],[1,1],[1,1],[1,1],[1,1]]")
    assert status == 0, lines
    status, lines = run("experiment=fig7", f"model={name}", *SMALL, "images=1", "measured=0", "step=24", "others=1")
    assert status == 0, lines
    assert run.printed.endswith(f"{name}-scenes, with random weights; model.weights=FILE loads others\n")
    for figure in ("fig2", "fig7"):
        assert (tmp_path / "outputs" / figure / f"{name}-scenes" / "figure.png").exists()


def test_a_network_of_ones_own(run, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, width=4):\n"
        "        super().__init__(*[m for n in range(5)\n"
        "            for m in (nn.Conv2d(width if n else 3, width, 3), nn.ReLU())])\n"
    )
    words = ["experiment=fig2", "model._target_=mine.Net", "model.architecture.width=6", *SMALL, "k=1"]
    status, lines = run(*words, "grids=[[1,1],[1,1],[1,1],[1,1],[1,1]]")
    assert status == 0, lines
    result = json.loads((tmp_path / "outputs" / "fig2" / "Net-scenes" / "result.json").read_text())
    assert result["settings"]["layers"] == ["1", "3", "5", "7", "9"]
    assert len(result["ours"]["layers"]["9"]) == 6
    for wrong, says in [
        (["model._target_=mine.Nett"], "cannot use mine.Nett: the module mine has no Nett; give a name"),
        (["model._target_=nowhere.Net"], "cannot use nowhere.Net: No module named 'nowhere'"),
        (["model._target_=mine.Net", "model.architecture.widht=6"], "(did you mean 'model.architecture.width'?)"),
        (["model._target_=mine.Net", "model.weights=DEFAULT"], "torchvision publishes no weights DEFAULT of Net"),
    ]:
        status, lines = run("experiment=fig2", *wrong)
        assert status == 2 and len(lines) == 1 and says in lines[0], lines


def test_a_network_of_fewer_layers_than_the_papers(run, tmp_path):
    (tmp_path / "few.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())\n"
    )
    own = "model._target_=few.Net"
    assert run("experiment=units", own)[0] == 0
    assert run("experiment=fig2", own, *SMALL, "k=1", "grids=[[1,1],[1,1]]") == (0, [])
    result = json.loads((tmp_path / "outputs" / "fig2" / "Net-scenes" / "result.json").read_text())
    assert result["settings"]["layers"] == ["1", "3"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model=resnet18", "model.weights=DEFAULTS"], "no weights of resnet18 'DEFAULTS' (did you mean 'DEFAULT'?)"),
        (["model=resnet18", "model.weights=DEFAULT"], "cannot download ResNet18_Weights.IMAGENET1K_V1"),
        (["model=resnet18", "model.weights=nothing.pth"], "nothing.pth"),
        (["model=resnet500"], "no model 'resnet500' (did you mean 'resnet50'?)"),
        (
            ["model=vit_b_32"],
            "no deconvnet rule for multihead_attention at encoder.layers.encoder_layer_2.self_attention",
        ),
        (
            ["model=efficientnet_b0", *SMALL],
            "no deconvnet rule for SiLU at features.2.0.block.0.2; give rules=extended, or reg",
        ),
    ],
    ids=["name", "offline", "no file", "no such model", "transformer", "no rule"],
)
def test_what_is_wrong_with_a_model_is_one_line(words, says, run, monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    status, lines = run("experiment=fig2", "k=1", *words)
    assert status == 2 and len(lines) == 1 and says in lines[0], lines
    assert not (tmp_path / "outputs").exists() or "figure.png" not in files(tmp_path / "outputs")


def test_published_weights_bring_their_preprocessing(monkeypatch):
    loaded = {}
    monkeypatch.setattr(
        "torch.hub.load_state_dict_from_url", lambda *args, **kwargs: loaded.setdefault("state", network.state_dict())
    )
    network = resnet18()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", torch.hub.load_state_dict_from_url)
    model = build(functools.partial(resnet18, num_classes=1000), weights="DEFAULT")
    assert torch.equal(model.conv1.weight, network.conv1.weight)
    assert model.preprocessing == Preprocessing()


def test_an_argument_is_found_by_its_name():
    assert spelled(["experiment=fig2", "k=4", "seed=3"]) == ["experiment=fig2", "++experiment.k=4", "++seed=3"]
    assert spelled(["experiment=units", "experiment.image_size=32"]) == [
        "experiment=units",
        "++experiment.image_size=32",
    ]
    assert spelled(["data=photos", "data.root=/a/b"]) == ["data=photos", "++data.root=/a/b"]


def test_a_suite_hands_an_argument_to_those_that_have_it():
    words = spelled(["experiment=all", "k=4", "seed=1"])
    given = dict(suite(configured(words), words))
    assert given["fig2"] == ["experiment=fig2", "++experiment.k=4", "++seed=1"]
    assert given["stripes"] == ["experiment=stripes", "++seed=1"]


def test_the_command_line_wins_over_an_experiment():
    assert configured(["experiment=units"]).hydra.runtime.choices.model == "zfnet"
    assert configured(spelled(["experiment=units", "model=alexnet"])).hydra.runtime.choices.model == "alexnet"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["daat=photos"], "no setting 'daat' (did you mean 'data'?)"),
        (["model.weigths=x"], "no setting 'model.weigths' (did you mean 'model.weights'?)"),
        (["experiment=fig22"], "no experiment 'fig22' (did you mean 'fig2'?)"),
        (["model=squeezenet"], "no model 'squeezenet' (did you mean 'squeezenet1_1'?)"),
        (["data=photo"], "no data set 'photo' (did you mean 'photos'?)"),
        (["experiment=fig2", "grid=3"], "no setting 'grid' (did you mean 'grids'?)"),
        (["experiment=units", "k=3"], "no setting 'k'"),
        (["model.architecture.hiden=[1]"], "(did you mean 'model.architecture.hidden'?)"),
        (["model.preprocessing.sise=1"], "(did you mean 'model.preprocessing.size'?)"),
        (["data.count.vall=1"], "(did you mean 'data.count.val'?)"),
        (["train.epoch=1"], "(did you mean 'train.epochs'?)"),
        (["data.root=my/photos"], "it is a setting of data=caltech101, "),
        (["data.root=my/photos"], "data=photos, "),
        (["model=mine.Net"], "for a class of your own, give model._target_=mine.Net"),
        (["experiment.kk=1"], "no setting 'experiment.kk'"),
        (["fig2"], "cannot read 'fig2': a setting is written key=value"),
        (["k=["], "cannot read 'k=['"),
    ],
)
def test_what_is_mistyped_is_named(words, message):
    with pytest.raises(InputError) as error:
        spelled(words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["daat=photos"],
        ["experiment=fig2", "data=photos"],
        ["experiment=fig2", *TINY, "layers=[relu8]"],
        ["experiment=fig2", *TINY, "k=many"],
        ["experiment=units", "seed=one"],
        ["experiment=units", "model.weights=nothing.safetensors"],
        ["experiment=fig2", "k=3,4", *TINY],
        ["experiment=units", "device=tpu9"],
    ],
    ids=" ".join,
)
def test_a_mistake_ends_in_one_line_and_status_2(words, run, tmp_path):
    status, lines = run(*words)
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("run.py: ")
    assert not list(tmp_path.iterdir())


ODD = [
    ("data=photos data.root=null", "data.root is null; give text or a path"),
    ("out={a:1}", "out: Cannot convert 'dict' to string"),
    ("device=meta", "no device 'meta'"),
    ("device=cuda:99", "no device 'cuda:99'"),
    ("k=${nope}", "k: Interpolation key 'nope' not found"),
    ("k=${experiment.k}", "interpolation"),
    ("k=${oc.env:NO_SUCH_VARIABLE}", "k: KeyError"),
    ("k=0", "k is 0; give a whole number from 1"),
    ("k=1.5", "k: Value '1.5'"),
    ("k=null", "k: "),
    ("k=99999999999999999999", "k is 99999999999999999999"),
    ("k=[1]", "k: "),
    ("k={a: 1}", "k: "),
    ("seed=-1", "seed is -1"),
    ("seed=99999999999999999999", "seed is 99999999999999999999"),
    ("train.seed=-1", "train.seed is -1"),
    ("train.learning_rate=abc", "train.learning_rate is 'abc'; give a number"),
    ("train.learning_rate=null", "train.learning_rate is null; give a number"),
    ("train.learning_rate=0", "learning_rate is 0"),
    ("train.flip=perhaps", "train.flip is 'perhaps'; give true or false"),
    ("train.stored_size=-1", "stored_size is -1"),
    ("train.optimizer=adem", "no optimizer 'adem' (did you mean 'adam'?)"),
    ("train=5", "no train '5'"),
    ("model.architecture.num_classes=-1", "model.architecture.num_classes is -1"),
    ("model.architecture.maps=5", "model.architecture.maps is 5"),
    ("model.preprocessing.size=0", "preprocessing size is 0"),
    ("model.preprocessing={_target_: zfnet.data.preprocessing.Preprocessing, size: -1}", "preprocessing size is -1"),
    ("model.layers=[]", "model.layers is []"),
    ("model.architecture=5", "model.architecture"),
    ("data.count=5", "data.count is 5"),
    ("data.count.val=0", "data.count is {'train': 6000, 'val': 0}"),
    ("data=null", "no data set"),
    ("rules=foo", "no rules 'foo'"),
    ("choose=foo", "no choose 'foo'"),
    ("choose=[0,foo]", "choose is [0, 'foo']"),
    ("layers=[]", "layers is []"),
    ("layers=relu5", "layers: "),
    ("layers=[nope]", "no layer of ZFNet 'nope'"),
    ("grids=[[1]]", "grids is [[1]]"),
    ("width=1", "width is 1.0"),
    ("contrast=nan", "contrast is nan"),
    ("batch_size=0", "batch_size is 0"),
    ("workers=-1", "workers is -1"),
    ("out=/dev/null", "/dev/null is not a folder"),
    ("out=/dev/null/below", "/dev/null is not a folder"),
    (f"out={'x' * 300}", "File name too long"),
    ("experiment=", "no experiment ''"),
    ("~experiment", "a setting cannot be deleted"),
    ("~seed", "a setting cannot be deleted"),
    ("=", "no setting ''"),
    ("k=1 2", "k: Value '1 2'"),
    ("é=1", "'é"),
    ("hydra/launcher=null", ""),
    ("hydra.run.dir=/dev/null/x experiment=stripes", "cannot write /dev/null/x: Not a directory"),
    ("--info", "no option '--info'"),
    ("--nope", "no option '--nope'"),
    ("--cfg=foo", "argument -c/--cfg"),
    ("--resolve", "go with --cfg"),
    ("-m --cfg=job", "not allowed with"),
    ("--config-dir=/nope", "--config-dir is not supported"),
    ("--config-name=nope", "--config-name is not supported"),
    ("-m k=0,1", "k is 0"),
    ("-m experiment=fig2,fig3 width=wide", "width: "),
]


@pytest.mark.parametrize(("line", "says"), ODD, ids=[line[:60] for line, _ in ODD])
def test_an_odd_line_is_one_line_before_anything_is_trained(line, says, run, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.train.train", None)
    words = line.replace(": ", ":").replace(", ", ",").split(" ") if line != "k=1 2" else [line]
    status, lines = run(*["experiment=fig2"] * ("experiment=" not in line), *words)
    assert status == 2 and len(lines) == 1 and lines[0].startswith("run.py: ") and says in lines[0], lines
    assert not files(tmp_path) - {"multirun.yaml"}


def test_all_of_a_suite_is_checked_before_the_first_runs(run, tmp_path):
    status, lines = run("experiment=figures", "style=loud")
    assert status == 2 and len(lines) == 1 and "no style 'loud'" in lines[0] and not files(tmp_path)


@pytest.mark.parametrize("words", [["--version"], ["--cfg", "job"], ["-h"], ["k=3", "--cfg=job"]])
def test_what_only_informs(words, run, tmp_path):
    status, lines = run("experiment=fig2", *words)
    assert (status, lines, files(tmp_path)) == (0, [], set()) and run.printed


def test_the_script_runs_from_any_folder(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "run.py")]
    settings = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([*command, "experiment=stripes"], **settings)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == {"figure.png", "figure.pdf", "table.md", "result.json", "config.yaml"}
    failed = subprocess.run([*command, "experiment=stripe"], **settings)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("run.py: no experiment 'stripe' (did you mean 'stripes'?)")
    assert failed.stderr.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(run, monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(stripes, "stripes", interrupted)
    status, lines = run("experiment=stripes")
    assert status == 130
    assert lines == ["run.py: interrupted; the same command resumes from what was saved"]


def test_a_mistake_of_ours_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr(stripes, "stripes", lambda size, period: 1 // 0)
    status, lines = run("experiment=stripes")
    assert status == 1
    assert any("ZeroDivisionError" in line for line in lines)


def test_a_network_is_trained_once(run, tmp_path):
    words = [*TINY[2:], "model.weights=trained", "train.epochs=1"]
    status, lines = run("experiment=fig2", *words, "k=2", "width=500", "grids=[[1,1],[1,1],[1,1],[1,1],[1,1]]")
    assert status == 0
    assert any("training it first" in line for line in lines)
    trained, drawn = (tmp_path / "outputs" / name / "zfnet_small-scenes" for name in ("train", "fig2"))
    results = {"model.safetensors", "figure.png", "result.json", "config.yaml"}
    assert files(trained) == {*results, "metrics.csv", "epoch-0001.safetensors"}
    pictures = {"figure.png", "figure.pdf", "boxes.png", "boxes.pdf"}
    assert files(drawn) == {*pictures, "table.md", "result.json", "config.yaml"}
    assert "weights: outputs/train/zfnet_small-scenes/model.safetensors" in (drawn / "config.yaml").read_text()

    status, lines = run("experiment=steps", "layer=relu1", *words)
    assert status == 0
    assert not any("training it first" in line for line in lines)


def test_the_bare_command_draws_what_can_be_drawn(run, tmp_path):
    words = [*TINY[2:], "model.weights=trained", "train.epochs=1"]
    status, lines = run(*words, "measured=2", "others=1", "step=20", "count=13")
    assert status == 2
    said = [line for line in lines if line.startswith("run.py: ")]
    assert said[0].startswith("run.py: fig5: ") and said[1:] == ["run.py: 1 of 3 experiments failed"]
    drawn = {path.parent.parent.name for path in tmp_path.glob("outputs/fig*/*/figure.png")}
    assert drawn == {"fig2", "fig7"}


def test_a_network_has_as_many_classes_as_its_data_and_keeps_them(run, tmp_path, monkeypatch):
    for split in ("train", "val"):
        for name in ("circle", "square", "star"):
            (tmp_path / "shapes" / split / name).mkdir(parents=True)
            for n in range(3):
                Image.new("RGB", (150, 150), (80 * n, 99, 9)).save(tmp_path / "shapes" / split / name / f"{n}.png")
    shapes = ["data=photos", "data.root=shapes"]
    small = [word for word in TINY if word.startswith("model.arch")]
    assert run("experiment=train", *shapes, *small, "train.epochs=1", "train.batch_size=4")[0] == 0
    trained = tmp_path / "outputs" / "train" / "zfnet_small-photos" / "model.safetensors"
    assert weights.read_metadata(trained)["classes"] == ["circle", "square", "star"]
    small.remove("model.architecture.image_size=64")  # the file knows
    words = [f"model.weights={trained}", *small, *shapes, "k=2", "layers=[relu1]", "grids=[[1,1]]", "width=400"]
    assert run("experiment=fig2", *words)[0] == 0


def test_several_processes_are_for_training(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, lines = run("experiment=stripes")
    assert (status, lines) == (
        2,
        ["run.py: torchrun is for experiment=train, variant and scan; run stripes with python"],
    )


def test_a_variant_is_trained_where_the_tables_find_it(run, tmp_path):
    words = [*TINY, "model.architecture.hidden=[8,8]", "train.epochs=1", "train.batch_size=12"]
    assert run("-m", "experiment=variant", "variant=fig3,'fig3 fc 2048'", *words)[0] == 0
    trained = [path.name.rpartition(",")[0] for path in (tmp_path / "outputs/networks/zfnet_small-scenes").iterdir()]
    assert sorted(trained) == ["fig3 fc 2048, seed 0", "fig3, seed 0"]


def test_a_sweep_gives_every_point_a_short_folder_with_its_settings(run, tmp_path):
    assert run("-m", "experiment=stripes", "size=16,24") == (0, [])
    folders = list((tmp_path / "outputs" / "stripes" / "zfnet_small-scenes").iterdir())
    settings = {(folder / "settings.yaml").read_text() for folder in folders}
    assert settings == {"experiment: stripes\nsize: 16\n", "experiment: stripes\nsize: 24\n"}
    assert all(len(folder.name) == 8 and (folder / "result.json").exists() for folder in folders)
    assert run("-m", "experiment=stripes", "size=16,24") == (0, [])
    assert sorted(folders) == sorted((tmp_path / "outputs" / "stripes" / "zfnet_small-scenes").iterdir())


def test_points_of_a_sweep_over_groups_do_not_overwrite_each_other(run, tmp_path):
    assert run("-m", "experiment=fig3", "model=zfnet,zfnet_small", "model.weights=null", "out=here")[0] == 0
    folders = list((tmp_path / "here").iterdir())
    assert len(folders) == 2 and all((folder / "figure.pdf").exists() for folder in folders)
    settings = [(folder / "settings.yaml").read_text() for folder in folders]
    assert sorted("model: zfnet_small" in text for text in settings) == [False, True]
    assert all("model.weights: null" in text for text in settings)


def test_a_launcher_of_hydras_is_known():
    assert "hydra/launcher=slurm" in spelled(["hydra/launcher=slurm", "experiment=variant"], swept=True)


def test_a_sweep_over_long_paths(run, tmp_path):
    root = tmp_path / ("x" * 200)
    root.mkdir()
    assert run("-m", "experiment=stripes", "size=16,24", "data=photos", f"data.root={root}") == (0, [])
    folders = list((tmp_path / "outputs" / "stripes" / "zfnet_small-photos").iterdir())
    assert len(folders) == 2 and all(str(root) in (folder / "settings.yaml").read_text() for folder in folders)


@pytest.mark.parametrize("path", ["~/photos", "/a,b/c", "/a(b)/c d", "C:\\a", "/it's/here", "here,too", "~"])
def test_a_path_needs_no_quotes(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here,too").mkdir()
    config = configured(spelled(["data=photos", f"data.root={path}"]))
    assert config.data.root == path


def test_several_values_without_a_sweep_get_a_hint():
    for word in ("k=3,4", "data.root=a,b"):
        with pytest.raises(InputError, match="gives several values: add -m to run each, or quote it"):
            spelled(["experiment=fig2", "data=photos", word])
    assert "++experiment.k=3,4" in spelled(["experiment=fig2", "k=3,4"], swept=True)


def test_the_types_are_those_of_the_signature():
    words = ["k=3", "distinct=no", "width=5", "choose=[1,2]", "grids=[[1,1]]", "layers=[relu1]", "contrast=1"]
    settings = configured(spelled(["experiment=fig2", *words])).experiment
    assert (settings.k, settings.distinct, settings.width, settings.contrast) == (3, False, 5.0, 1.0)
    assert (settings.seed, settings.rules, settings.progress) == (0, "deconvnet", True)  # defaults, and YAML's
    for word, says in [
        ("k=many", "k: Value 'many' of type 'str' could not be converted to Integer"),
        ("distinct=perhaps", "distinct: Value 'perhaps' is not a valid bool"),
        ("width=wide", "width: Value 'wide' of type 'str' could not be converted to Float"),
        ("layers=5", "layers: "),
        ("progress=5.5", "progress: "),
    ]:
        with pytest.raises(InputError) as error:
            configured(spelled(["experiment=fig2", word]))
        assert str(error.value).startswith(says) and "\n" not in str(error.value)


def test_a_layer_that_stands_for_the_papers():
    config = configured(["experiment=table7"])
    assert list(config.experiment.layers) == [f"relu{n}" for n in (1, 2, 3, 4, 5)] + ["relu7"]
    config.model.layers = ["a", "b"]
    assert list(config.experiment.layers)[:5] == ["a", "b", "b", "b", "b"]


# ---- help ------------------------------------------------------------------------------------------------------------


def test_help_lists_every_experiment_with_a_line(run):
    assert run("--help") == (0, [])
    for name in names("experiment"):
        (line,) = (line for line in run.printed.splitlines() if line.startswith(f"  {name} "))
        assert len(line.split()) > 3
    assert "held_out" in run.printed and "resnet50" in run.printed and "paper" in run.printed


@pytest.mark.parametrize(
    "experiment", [name for name in names("experiment") if name not in ("all", "figures", "tables")]
)
def test_help_of_an_experiment_says_what_each_setting_means(experiment):
    lines = overview([f"experiment={experiment}"]).splitlines()
    settings = [n for n, line in enumerate(lines) if line.startswith("  ") and line[2] != " "]
    keys = [key for key in configured([f"experiment={experiment}"]).experiment if key != "_target_"]
    groups = {"architecture": "model", "recipe": "train"}  # by which these are given
    shown = [lines[n].split("=")[0].strip() for n in settings]
    assert shown[-2:] == ["out", "device"]  # of every experiment
    assert all(own in (key, groups.get(key)) for own, key in zip(shown[:-2], keys, strict=True))
    assert not any("${" in line for line in lines)
    for n in settings:
        assert lines[n + 1].startswith("      ") and len(lines[n + 1].split()) > 1, f"{lines[n]} has no meaning"


def test_help_of_a_mistyped_experiment_is_a_mistake(run):
    status, lines = run("experiment=fig22", "--help")
    assert status == 2 and "did you mean 'fig2'" in lines[0]
    assert run("experiment=all", "--help")[0] == 0 and "fig2, fig3" in run.printed


def test_layers_of_a_small_network_that_are_given(run, tmp_path):
    (tmp_path / "lesser.py").write_text(
        "from torch import nn\n\n\nclass Lesser(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 4, 3), nn.Threshold(0, 0), nn.Flatten(), nn.Linear(4 * 62 * 62, 2))\n"
    )
    words = ["model._target_=lesser.Lesser", *SMALL[:2]]
    figure = ["experiment=fig2", *words, *SMALL[2:], "k=1", "grids=[[1,1]]"]
    status, lines = run(*figure)
    assert status == 2 and len(lines) == 1 and "model.layers=[...]; experiment=units lists them" in lines[0], lines
    assert run("experiment=units", *words) == (0, [])
    assert run(*figure, "model.layers=['1']")[0] == 0


def test_the_home_folder_of_weights(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    weights.save(model, tmp_path / "ours.safetensors", classes=["a", "b"])
    assert weights.read_metadata("~/ours.safetensors")["classes"] == ["a", "b"]
    assert weights.load(copy.deepcopy(model), "~/ours.safetensors").preprocessing == model.preprocessing


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["experiment=fig2", "grids=[[1,1]]"], "5 layers and 1 grids"),
        (["experiment=fig2", "choose=[9]"], "no map 9 in relu1: there are 4"),
        (["experiment=fig2", "choose={relu3: [4]}"], "no map 4 in relu3: there are 4"),
        (["experiment=fig2", "k=13"], "the data has 12 images, fewer than k=13"),
        (["experiment=steps", "map=4"], "no map 4 in relu5: there are 4"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_a_network_cannot_give_is_said_before_it_is_trained(words, says, run, tmp_path):
    status, lines = run(*words, *TINY, "model.weights=trained")
    assert status == 2 and len(lines) == 1 and says in lines[0], lines
    assert not files(tmp_path)


def test_a_list_is_asked_for_in_plain_words(run):
    assert run("experiment=fig5", "images=3") == (2, ["run.py: images: give a list, [...]"])


def test_a_name_in_any_script_needs_no_quotes(run, tmp_path):
    assert run("experiment=stripes", "out=héé") == (0, [])
    assert (tmp_path / "héé" / "result.json").exists()
