"""What the command line may say: every key and name is looked up before anything runs.

A setting is known if `conf/` lists it, or if the function it is for (`_target_`) has an argument of that name.
"""

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.setup.models import CLASSIFIERS, settings_of
from experiments.setup.reading import Reading
from zfnet.errors import InputError, first_line, unknown_name

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
for _name in CLASSIFIERS:
    if not (CONF / "model" / f"{_name}.yaml").exists():
        ConfigStore.instance().store(_name, settings_of(_name), "model")
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what get_object raises, which is said below
TARGET = "model.architecture._target_="
GROUPS = ("experiment", "model", "data", "train")
GIVEN = ("model", "data", "training", "validation", "networks", "out")  # arguments that run.py makes


def names(group: str) -> list[str]:
    """Those of `conf/`; as models, torchvision's too."""
    files = {path.stem for path in (CONF / group).glob("*.yaml")}
    return sorted(files | set(CLASSIFIERS if group == "model" else ()))


def own_model(words: Sequence[str]) -> list[str]:
    """The words with `model._target_=my.module.Net` spelt out: the model `own`, and what makes it."""
    spelt: list[str] = []
    for word in words:
        key, _, target = word.lstrip("+").partition("=")
        spelt += ["model=own", f"model.architecture._target_={target}"] if key == "model._target_" else [word]
    return spelt


def configured(words: Sequence[str]) -> DictConfig:
    """The configuration, hydra's part included, that the words ask for; InputError where hydra refuses them."""
    try:
        if GlobalHydra.instance().is_initialized():
            return compose("config", list(words), return_hydra_config=True)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(first_line(error)) from None


def arguments(config: DictConfig) -> list[str]:
    """The arguments of the configured experiment that can be set."""
    names, reads = _known(config.experiment)
    return [name for name in names if name not in GIVEN] + (list(Reading.__annotations__) if reads else [])


def single(config: DictConfig, words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The experiments that are asked for, a suite's one by one: each one's name, and the words meant for it."""
    if "suite" not in config.experiment:
        return [(config.hydra.runtime.choices.experiment, list(words))]
    rest = [word for word in words if not word.startswith("experiment=")]
    experiments = []
    for name in config.experiment.suite:
        known = arguments(configured([f"experiment={name}"]))
        subset = [
            w for w in rest if not w.startswith("++experiment.") or w[13:].partition("=")[0].split(".")[0] in known
        ]
        experiments.append((name, [f"experiment={name}", *subset]))
    return experiments


def _parse(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        why = f"quote special characters, key='\"value\"' ({first_line(error)})"
        raise InputError(f"cannot read {word!r}: {why if '=' in word else 'a setting is written key=value'}") from None


def _choices(override: Override) -> list[str]:
    """The names chosen in a group; several in a sweep."""
    value, options = override.value(), names(override.key_or_group)
    chosen = [str(v) for v in value.list] if isinstance(value, ChoiceSweep) else [str(value)]
    for name in chosen:
        if name not in options:
            raise unknown_name({"data": "data set"}.get(override.key_or_group, override.key_or_group), name, options)
    return chosen


def _known(node: DictConfig) -> tuple[list[str], bool]:
    """The keys that may be set in a part of the configuration, and whether any other may be."""
    keys, more = [str(key) for key in node if not str(key).startswith("_")], False
    if "_target_" in node and not OmegaConf.is_missing(node, "_target_"):
        try:
            parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            why = f"{first_line(error.__cause__ or error)}; give what Python can import from here, my.module.Net"
            raise InputError(f"cannot use {node['_target_']}: {why}") from None
        more = any(p.kind is p.VAR_KEYWORD for p in parameters)
        keys += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return list(dict.fromkeys(keys)), more


def _look_up(node: Any, path: Sequence[str], before: str = "") -> None:
    """InputError unless the path leads to a setting below `node`, which is called `before`."""
    for key in path:
        if not isinstance(node, DictConfig):
            return
        known, more = _known(node)
        if key not in known and not more:
            raise unknown_name("setting", f"{before}{key}", [f"{before}{name}" for name in known])
        node = None if key not in node or OmegaConf.is_missing(node, key) else node[key]
        before += f"{key}."


def check(words: Sequence[str]) -> list[str]:
    """The words as hydra is to be given them: an argument of the experiment may be called by its name alone.

    InputError for the first word that means nothing says what there is, nearest first.
    """
    overrides = [_parse(word) for word in words]
    chosen = {o.key_or_group: _choices(o) for o in overrides if o.key_or_group in GROUPS and not o.is_delete()}
    groups = [f"{group}={several[0]}" for group, several in chosen.items() if group != "experiment"]
    groups += [f"++{word.lstrip('+')}" for word in words if word.lstrip("+").startswith(TARGET)]
    config = configured(groups)
    if config.hydra.runtime.choices.model == "own":
        _known(config.model.architecture)
    settings: list[str] = []
    for name in chosen.get("experiment", [config.hydra.runtime.choices.experiment]):
        for _, experiment_words in single(configured([*groups, f"experiment={name}"]), [f"experiment={name}"]):
            settings += arguments(configured([*groups, *experiment_words]))
    pairs = zip(words, overrides, strict=True)
    return [_checked(word, override, config, settings) for word, override in pairs]


def _checked(word: str, override: Override, config: DictConfig, settings: list[str]) -> str:
    root, *path = override.key_or_group.split(".")
    if override.key_or_group in GROUPS or override.is_delete() or root.startswith("hydra"):
        return word
    if root in config and root not in ("experiment", "hydra"):
        _look_up(config, [root, *(path if not word.lstrip("+").startswith(TARGET) else path[:-1])])
        return "++" + word.lstrip("+")
    if root == "experiment":
        name, word = path[0], word.partition(".")[2]
    else:
        name, word = root, word.lstrip("+")
    if name not in settings:
        top = [str(key) for key in config if key != "hydra"]
        raise unknown_name("setting", override.key_or_group, dict.fromkeys([*top, *settings]))
    return f"++experiment.{word}"
