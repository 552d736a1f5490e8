"""Command lines: settings and options of every experiment with odd values, where nothing large is made.

Each ends with status 0, or with status 2, a single line on standard error and no result. A traceback, another status, a
second line or a part of a result is a failure.
"""

import contextlib
import io
import os
import random
import sys
from functools import cache
from pathlib import Path
from unittest import mock

EXPERIMENTS = ("fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "fig9", "table1", "table2", "table3", "table4", "table5")
EXPERIMENTS += ("table6", "table7", "seeds", "ablation", "units", "steps", "stripes", "train", "variant")
SUITES = ("figures", "tables", "all")
ODD = (
    *(
        "",
        "null",
        "true",
        "no",
        "0",
        "1",
        "-1",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "10000000000",
        "99999999999999999999",
    ),
    *(
        "[]",
        "[0]",
        "[0,foo]",
        "[-1]",
        "[[]]",
        "[null]",
        "{}",
        "{a:1}",
        "{a:{b:[1]}}",
        "[1,2,3,4,5,6]",
        "foo",
        "Ünïcödé",
        "'  '",
    ),
    *("relu5", "[relu1]", "[relu1,relu1]", "[nope]", "[relu1,relu2,relu3,relu4,relu9]", "[[3,3]]", "[3,0]", "random"),
    *(
        "${nope}",
        "${k}",
        "${seed}",
        "${oc.env:NOPE}",
        "${oc.env:HOME}",
        "${model}",
        "${layer:x}",
        "${",
        "${}",
        "$",
        "???",
    ),
    *(
        "a=b",
        "a=b=c",
        "a,b",
        "1,2",
        "(",
        "]",
        "{",
        "'",
        '"',
        "\\",
        "a\nb",
        "\x1b[31mred",
        "%s",
        "{0}",
        "@",
        "*",
        "~",
        "~/x",
    ),
    *(
        "/dev/null",
        "/dev/full",
        "/nope/nope",
        "file",
        "empty",
        "pipe",
        ".",
        "..",
        "a" * 300,
        "/".join(["b" * 100] * 60),
    ),
    *(
        "cuda:9",
        "cpu",
        "meta",
        "tpu",
        "mps",
        "trained",
        "DEFAULT",
        "PACKAGE",
        "file.pth",
        "safe",
        "range(3)",
        "choice(1,2)",
    ),
    *("{_target_: os.system, _args_: [touch pwned]}", "[{_target_: builtins.eval}]", "{_target_: torch.os.system}"),
)
TARGETS = (
    "os.system",
    "builtins.eval",
    "torch.hub.load",
    "torch.os.system",
    "zfnet.weights.pickle.loads",
    "torch.load",
)
TARGETS += (
    "subprocess.run",
    "timm.models.load_checkpoint",
    "mine.os.system",
    "os",
    "",
    "null",
    "[]",
    "1.2",
    "torch..nn",
    ".",
)
TARGETS += (
    "torchvision.datasets.utils.download_url",
    "hydra.utils.instantiate",
    "numpy.fromfile",
    "__main__.x",
    "mine.pwned",
)
ROOTS = ("seed", "device", "out", "networks", "training", "validation", "trust", "model", "data", "train", "experiment")
GROUPED = (
    *(
        "model.weights",
        "model.layers",
        "model.layer7",
        "model.seed",
        "model.entry",
        "model.sha256",
        "model.architecture",
    ),
    *(f"model.architecture.{name}" for name in ("num_classes", "maps", "hidden", "conv1", "border", "norm", "dropout")),
    *(f"model.architecture.{name}" for name in ("image_size", "init", "contrast", "foo", "_partial_", "_args_")),
    *(
        "model.preprocessing",
        *(f"model.preprocessing.{name}" for name in ("size", "resize", "mean", "std", "channels")),
    ),
    *("data.root", "data.split", "data.count", "data.count.val", "data.count.train", "data.classes", "data.seed"),
    *("data.objects", "data.labels", "data.download", "data.trained_on", "data._target_", "data.foo", "data._partial_"),
    *(f"train.{name}" for name in ("epochs", "batch_size", "learning_rate", "optimizer", "momentum", "weight_decay")),
    *(f"train.{name}" for name in ("max_filter_rms", "schedule", "factor", "patience", "stored_size", "crops", "seed")),
    *(f"train.{name}" for name in ("max_shift", "flip", "pixel_mean", "precision", "foo", "_target_", "_partial_")),
    *(
        "hydra.run.dir",
        "hydra.sweep.dir",
        "hydra.sweep.subdir",
        "hydra.launcher._target_",
        "hydra.callbacks",
        "hydra.foo",
    ),
    *("hydra.job_logging", "hydra.searchpath", "hydra/launcher", "hydra.job.chdir", "hydra.sweeper._target_", "hydra"),
)
MODELS = (
    "zfnet",
    "zfnet_mini",
    "zfnet_small",
    "zfnet512",
    "own",
    "squeezenet1_1",
    "resnet5",
    "timm/nope",
    "null",
    "",
    "[a]",
)
DATA = (
    "scenes",
    "held_out",
    "several",
    "photos",
    "cifar10",
    "caltech101",
    "voc2012",
    "imagenet",
    "null",
    "foo",
    "{a:1}",
)
OPTIONS = (
    "-m",
    "--multirun",
    "--help",
    "-h",
    "--nope",
    "-x",
    "--",
    "-",
    "--cfg",
    "--cfg=foo",
    "--info",
    "--config-dir=.",
)
OPTIONS += (
    "--config-name=nope",
    "-cn",
    "-c",
    "--resolve",
    "--package",
    "--version",
    "--run",
    "--experimental-rerun",
    "-sc",
)
WORDS = (
    "",
    "=",
    "==",
    "=1",
    "a=b=c",
    "a",
    "+",
    "~",
    "++",
    "+x=1",
    "~experiment",
    "~model",
    "~seed",
    "~model.weights",
    "k",
    "@",
)
WORDS += (
    "+x._target_=os.system",
    "++hydra.x=1",
    "~hydra",
    "model@x=zfnet",
    "model@_global_=zfnet",
    "é=1",
    "a.b.c=1",
    ".=1",
)
WORDS += (
    "experiment.=1",
    ".k=1",
    "k.=1",
    "k..a=1",
    "experiment..k=1",
    "experiment.k.a=1",
    "+k=2",
    "~k",
    "--k=1",
    "k=1 2",
)


class Made(Exception):
    """The settings are taken, and something large would be made."""


def case(seed: int, folder: Path) -> str:
    """Run a command line in the folder, up to where an experiment would begin its work."""
    _fill(folder)
    line = words(random.Random(seed))
    before, path = _files(folder), list(sys.path)
    os.chdir(folder)
    output, error, status = _run(line)
    sys.path[:] = path
    lines = error.splitlines()
    told = f"{line} -> {status}: {error[-300:]!r}"
    assert status in (0, 2), told
    assert status == 0 or (len(lines) == 1 and lines[0].startswith("run.py: ")), told
    assert "Traceback" not in error and all(c.isprintable() for text in lines for c in text), told
    assert not (folder / "pwned").exists(), f"{line} ran what it named"
    assert _files(folder) == before or status == 0, f"{line} left {_files(folder) - before}"
    return "taken" if status == 0 else "named"


def words(dice: random.Random) -> list[str]:
    """A command line."""
    line = [f"experiment={dice.choice(EXPERIMENTS if dice.random() < 0.9 else SUITES)}"] * (dice.random() < 0.95)
    line += [f"model={dice.choice(MODELS)}"] * (dice.random() < 0.2)
    line += [f"data={dice.choice(DATA)}"] * (dice.random() < 0.2)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        kind, value = dice.random(), dice.choice(ODD)
        if kind < 0.5:
            line.append(f"{dice.choice(('', '', '', '+', '++', 'experiment.'))}{dice.choice(settings())}={value}")
        elif kind < 0.75:
            line.append(f"{dice.choice(GROUPED)}={value}")
        elif kind < 0.83:
            line.append(f"{dice.choice(ROOTS)}={value}")
        elif kind < 0.9:
            place = dice.choice(
                ("model", "model.architecture", "data", "train", "experiment", "scratch", "hydra.launcher", "x")
            )
            line.append(f"{dice.choice(('', '+', '++'))}{place}._target_={dice.choice(TARGETS)}")
        elif kind < 0.95:
            line.append(dice.choice(WORDS))
        else:
            line.append(dice.choice(OPTIONS))
    dice.shuffle(line)
    return line


@cache
def settings() -> list[str]:
    """The names of all settings of all experiments."""
    from experiments.setup.configuration import configured

    return sorted({str(key) for name in EXPERIMENTS for key in configured([f"experiment={name}"]).experiment})


def _run(line: list[str]) -> tuple[str, str, object]:
    from experiments.run import command_line
    from experiments.setup.objects import Objects

    output, error, status = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(error))
        stack.enter_context(mock.patch.object(sys, "argv", ["run.py", *line]))
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(mock.patch.object(Objects, "experiment", _stop))
        try:
            command_line()
        except SystemExit as end:
            status = end.code or 0  # type: ignore[assignment]
    return output.getvalue(), error.getvalue(), status


def _stop(*_: object) -> None:
    """In the place of the experiment."""


def _fill(folder: Path) -> None:
    """What odd values may name."""
    (folder / "file").write_text("no photograph")
    (folder / "file.pth").write_bytes(b"no weights")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "mine.py").write_text("import os\nfrom os import system as pwned\n")


def _files(folder: Path) -> set[Path]:
    return {
        path.relative_to(folder) for path in folder.rglob("*") if path.name != "__pycache__" and path.suffix != ".pyc"
    }
