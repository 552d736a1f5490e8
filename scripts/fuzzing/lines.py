"""Command lines: settings and options of every experiment with odd values, up to where an experiment would begin.

Each ends with status 0, or with status 2, a single line on standard error and no result. A traceback, another status, a
second line, a part of a result, and anything that a line calls are failures.
"""

import contextlib
import io
import os
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock


def listed(text: str) -> list[str]:
    return text.split()


EXPERIMENTS = listed("""
    fig2 fig3 fig4 fig5 fig6 fig7 fig9 table1 table2 table3 table4 table5 table6 table7 seeds ablation units steps
    stripes train variant
""")
SUITES = listed("figures tables all")
MODELS = listed("zfnet zfnet_small zfnet512 own squeezenet1_1 resnet5 timm/nope null [a] ${nope}")
DATA = listed("scenes held_out several photos cifar10 caltech101 voc2012 imagenet null foo {a:1} /etc")
VALUES = (
    listed("0 1 2 3 10 0.5 0.9 -1 1.5 nan inf -inf 1e400 10000000000 99999999999999999999 [] [0] [1,2] [0,foo] [-1]"),
    listed("0 1 2 5 224 [1,2] [2,2] 0.25 true false null"),
    listed("relu1 relu5 foo [relu1] [relu1,relu2] [relu1,relu1] [nope] random strongest guided safe paper grey rms"),
    listed("null true no {} {a:1} {a:{b:[1]}} [[]] [null] [[3,3]] [3,0] [1,2,3,4,5,6] \u00dcn\u00efc a,b 1,2 range(3)"),
    listed("${nope} ${k} ${seed} ${oc.env:NOPE} ${oc.env:HOME} ${model} ${layer:x} ${ ${} $ ??? ( ] { ' \" \\ %s {0}"),
    listed("/dev/null /dev/full /nope/nope file empty pipe . .. ~ ~/x file.pth file/below trained DEFAULT PACKAGE"),
    ["", "' '", "a=b=c", "a\nb", "\x1b[31mred", "a" * 300, "/".join(["b" * 100] * 60), "x" * 40_000],
)
DEVICES = listed("cuda:9 cpu meta tpu mps cuda:-1 cpu:3 auto")
TARGETS = listed("""
    os.system builtins.eval torch.hub.load torch.os.system zfnet.identity.os.system torch.load subprocess.run os null
    timm.models.load_checkpoint mine.os.system mine.pwned torchvision.datasets.utils.download_url numpy.fromfile [] 1.2
    hydra.utils.instantiate __main__.x torch..nn . torch.nn torch.nn.Linear mine.Net mine.nope torch.nn.Module.__class__
    experiments.output.results._commit experiments.run.command_line zfnet.files.write_atomically ${nope} ${out}
""")
ROOTS = listed("seed device out networks training validation trust model data train experiment hydra")
GROUPED = listed("""
    model.weights model.layers model.layer7 model.seed model.entry model.sha256 model.architecture model.preprocessing
    model.architecture.num_classes model.architecture.maps model.architecture.hidden model.architecture.conv1
    model.architecture.border model.architecture.norm model.architecture.dropout model.architecture.image_size
    model.architecture.init model.architecture.contrast model.architecture.foo model.architecture._partial_
    model.architecture._args_ model.preprocessing.size model.preprocessing.resize model.preprocessing.mean
    model.preprocessing.std model.preprocessing.channels model.preprocessing._target_ data.root data.split data.count
    data.count.val data.count.train data.classes data.seed data.objects data.labels data.download data.trained_on
    data.foo data._target_ data._partial_ train.epochs train.batch_size train.learning_rate train.optimizer
    train.momentum train.weight_decay train.max_filter_rms train.schedule train.factor train.patience train.stored_size
    train.crops train.seed train.max_shift train.flip train.pixel_mean train.precision train.foo train._target_
    train._partial_ hydra.run.dir hydra.sweep.dir hydra.sweep.subdir hydra.launcher._target_ hydra.callbacks hydra.foo
    hydra/launcher hydra.job_logging hydra.searchpath hydra.job.chdir hydra.sweeper._target_
""")
MADE = listed("model model.architecture data train experiment scratch hydra.launcher hydra.callbacks.a x")
OPTIONS = listed("""
    -m --multirun --help -h --nope -x -- - --cfg --cfg=foo --cfg=job --info --config-dir=. --config-name=nope -cn -c
    --resolve --package --version --run --experimental-rerun -sc --hydra-help
""")
LEFT = {"__pycache__", "multirun.yaml", "outputs"}  # by Python, and by Hydra at the beginning of a sweep
WORDS = listed("""
    = == =1 a=b=c a + ~ ++ +x=1 ~experiment ~model ~seed ~model.weights ~k k @ +x._target_=os.system ++hydra.x=1 ~hydra
    model@x=zfnet model@_global_=zfnet \u00e9=1 a.b.c=1 .=1 experiment.=1 .k=1 k.=1 k..a=1 experiment..k=1 --k=1
    +k=2 experiment.k.a=1 data={_target_:os.system} scratch={_target_:os.system,_args_:[touch\\ pwned]} data/x=1
    /data=scenes choose={a:{_target_:builtins.eval}} layers=[{_target_:builtins.eval}]
    +model.architecture.x=[{_target_:torch.os.system}]
""")


def case(seed: int, folder: Path) -> str:
    """Run a command line in the folder, up to where an experiment would begin its work."""
    _fill(folder)
    line = words(random.Random(seed))
    before, path = _files(folder), list(sys.path)
    os.chdir(folder)
    error, status = _run(line)
    sys.path[:] = path
    lines = error.splitlines()
    told = f"{[word[:60] for word in line]} -> {status}: {error[-200:]!r}"
    assert status in (0, 2), told
    assert status == 0 or (len(lines) == 1 and lines[0].startswith("run.py: ") and len(lines[0]) < 2500), told
    assert all(c.isprintable() for text in lines for c in text), told
    assert not (folder / "pwned").exists(), f"{told}: ran what it named"
    assert _files(folder) == before or status == 0, f"{told}: left {_files(folder) - before}"
    return "taken" if status == 0 else "named"


def words(dice: random.Random) -> list[str]:
    """A command line."""
    experiment = dice.choice(EXPERIMENTS if dice.random() < 0.95 else SUITES)
    line = [f"experiment={experiment}"] * (dice.random() < 0.95)
    line += [f"model={dice.choice(MODELS)}"] * (dice.random() < 0.1)
    line += ["model.weights=null"] * (dice.random() < 0.4)
    line += [f"data={dice.choice(DATA)}"] * (dice.random() < 0.1)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        kind, value = dice.random(), dice.choice(dice.choice(VALUES))
        if kind < 0.6 and experiment in EXPERIMENTS:
            name = dice.choice(settings(experiment))
            line.append(f"{dice.choice(('', '', '', '+', '++', 'experiment.'))}{name}={value}")
        elif kind < 0.8:
            line.append(f"{dice.choice(GROUPED)}={value}")
        elif kind < 0.86:
            line.append(f"{dice.choice(ROOTS)}={dice.choice((value, dice.choice(DEVICES)))}")
        elif kind < 0.92:
            line.append(f"{dice.choice(('', '+', '++'))}{dice.choice(MADE)}._target_={dice.choice(TARGETS)}")
        elif kind < 0.97:
            line.append(dice.choice(WORDS))
        else:
            line.append(dice.choice(OPTIONS))
    dice.shuffle(line)
    return line


@cache
def settings(experiment: str) -> list[str]:
    """The names of an experiment's settings."""
    from experiments.setup.configuration import configured

    return [str(key) for key in configured([f"experiment={experiment}"]).experiment]


def _run(line: list[str]) -> tuple[str, object]:
    """What is written to standard error, and the status."""
    from experiments.run import command_line
    from experiments.setup.objects import Objects

    error, status = io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(error))
        stack.enter_context(mock.patch.object(sys, "argv", ["run.py", *line]))
        stack.enter_context(mock.patch.dict(os.environ))
        if not {"experiment=units", "experiment=stripes"} & {*line}:  # which take no time
            stack.enter_context(mock.patch.object(Objects, "experiment", _begin))
        try:
            command_line()
        except SystemExit as end:
            status = end.code or 0  # type: ignore[assignment]
    return error.getvalue(), status


def _begin(objects: Any, _: Path) -> None:
    """In the place of an experiment: make what it asks for, unless that is trained first or takes long."""
    from omegaconf import OmegaConf

    architecture = OmegaConf.to_yaml(objects.config.model.architecture)
    if objects.config.model.weights != "trained" and "4096" not in architecture:
        for name in sorted(objects.asked - {"networks"}):
            getattr(objects, name)


def _fill(folder: Path) -> None:
    """What odd values may name."""
    (folder / "file").write_text("no photograph")
    (folder / "file.pth").write_bytes(b"no weights")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "mine.py").write_text("import os\nfrom os import system as pwned\n")


def _files(folder: Path) -> set[str]:
    paths = [path.relative_to(folder) for path in folder.rglob("*")]
    return {
        str(path) for path in paths if not {"__pycache__", "multirun.yaml"} & {*path.parts} and str(path) != "outputs"
    }
