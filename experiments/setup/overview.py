"""The text of `--help`: a line for each experiment, or the settings of one, from docstrings and signatures."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from experiments.setup.choices import GROUPS, names
from experiments.setup.commands import spelled
from experiments.setup.configuration import CONF, configured, key_of
from experiments.setup.options import Reading, Showing

USAGE = "python experiments/run.py experiment=NAME [model=...] [data=...] [train=...] [seed=...] [key=value]"


def overview(words: Sequence[str]) -> str:
    """The text for these words: about one experiment, if they name it."""
    if not any(key_of(word) == "experiment" for word in words):
        width = max(map(len, names("experiment")))
        lines = [f"  {name:{width}}  {_about(name)}" for name in names("experiment")]
        groups = [f"{group}: {', '.join(names(group))}" for group in GROUPS if group != "experiment"]
        filled = "\n\n".join(textwrap.fill(line, 118, subsequent_indent="    ") for line in groups)
        closing = "experiment=NAME --help lists the settings of one. -m runs a sweep: k=4,9.\n"
        closing += "trust=true allows code from outside zfnet, torch and the current folder: docs/security.md."
        return "\n".join([USAGE, "", "experiments:", *lines, "", filled, "", closing])
    config = configured(spelled(words))
    if "suite" in config.experiment:
        return f"runs one after the other: {', '.join(config.experiment.suite)}"
    main = get_object(config.experiment._target_)
    meanings = {n: meaning for thing in (Reading, Showing, main) for n, meaning in _arguments(thing)}
    lines = [
        f"{config.hydra.runtime.choices.experiment}: {inspect.getdoc(main) or ''}".partition("\n")[0],
        "",
        USAGE,
        "",
    ]
    raw: Any = OmegaConf.to_container(config.experiment, resolve=False)
    resolved: Any = OmegaConf.to_container(config.experiment, resolve=True)
    for name, value in resolved.items():
        if name != "_target_":
            setting, meaning = name, meanings.get(name, "")
            if isinstance(value, dict) and "${" in str(raw[name]):  # what a group makes: its choice
                setting = re.split(r"[.}]", raw[name].removeprefix("${"))[0]
                value = config.hydra.runtime.choices[setting]
            lines += _entry(setting, value, meaning) if meaning else []
    lines += _entry(
        "out", f"outputs/{config.hydra.runtime.choices.experiment}/<model>-<data>", "the folder of the result."
    )
    lines += _entry("device", "auto", "cpu, cuda, or auto: a GPU where there is one.")
    return "\n".join(lines)


def _about(name: str) -> str:
    """The first line of an experiment's module; for a suite, the experiments that it runs."""
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    if not (target := re.search(r"_target_: ([\w.]+)\.main", text)):
        return "all of " + text.partition("suite: [")[2].partition("]")[0]
    module = CONF.parent.joinpath(*target[1].split(".")).with_suffix(".py")
    return (
        (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").partition("\n\n")[0].replace("\n", " ")
    )


def _entry(name: str, value: Any, meaning: str) -> list[str]:
    """A setting with its default, and below it what it means."""
    default = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    if isinstance(value, list):
        default = f"[{','.join(map(str, value))}]"
    return [f"  {name}={default}", *textwrap.wrap(meaning, 112, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _arguments(thing: Any) -> Iterator[tuple[str, str]]:
    """The names and meanings in the section `Args:` of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(thing) or "", re.DOTALL | re.MULTILINE)
    for entry in re.split(r"\n(?= {4}\S)", section[1].rstrip()) if section else ():
        heads, _, meaning = entry.strip().partition(": ")
        for name in heads.split(", "):
            yield name.strip("*"), " ".join(meaning.split())
