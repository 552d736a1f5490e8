"""Reading the command line: every name and setting is looked up before anything runs; errors name the nearest one.

An argument of the experiment's function is given by its name alone (k=4) or in full (experiment.k=4).
"""

import contextlib
import os
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from experiments.setup.choices import GROUPS, choices
from experiments.setup.configuration import CONF, OBJECTS, arguments_of, configured, key_of, look_up, suite
from zfnet.errors import InputError, unknown_name

HYDRAS = (["launcher"], ["sweeper"], ["sweep"], ["run"])  # how and where jobs are started
ARCHITECTURE = "model.architecture._target_"


def parsed(word: str, swept: bool = False) -> tuple[str, Override]:
    """A word as Hydra is to read it; a path with special characters is quoted, unless a sweep may be meant."""
    parser, (key, equals, value) = OverridesParser.create(), word.partition("=")
    with contextlib.suppress(HydraException):
        override = parser.parse_override(word)
        if swept or not override.is_sweep_override():
            return word, override
        if not {"/", "\\"} & set(value) and not os.path.exists(value):
            hint = f"add -m to run each, or quote it: {key}='\"{value}\"'"
            raise InputError(f"{word} gives several values: {hint}")
    with contextlib.suppress(HydraException):
        if (
            equals
            and (not swept or "," not in value)
            and ({"/", "\\", "~"} & set(value) or not value.isascii() or os.path.exists(value))
        ):
            quoted = value.replace("'", "\\'")
            return f"{key}='{quoted}'", parser.parse_override(f"{key}='{quoted}'")
    hint = f"quote special characters, {key}='\"...\"'" if equals else "a setting is written key=value"
    raise InputError(f"cannot read {word!r}: {hint}")


def spelled(words: Sequence[str], swept: bool = False) -> list[str]:
    """The words in Hydra's form. Raises InputError for the first unknown word, with the nearest name."""
    whole: list[str] = []
    for word in words:  # your own network is the model `own`, with its _target_
        own = key_of(word) == "model._target_"
        whole += ["model=own", f"++{ARCHITECTURE}={word.partition('=')[2]}"] if own else [word]
    overrides = dict(parsed(word, swept) for word in whole)
    for word, override in overrides.items():
        if override.is_delete():
            raise InputError(f"{word}: a setting cannot be deleted; give another value, key=value")
        if override.package is not None:
            raise InputError(f"{word}: a group cannot be moved; give it without @{override.package}")
        if override.key_or_group in GROUPS or "/" in override.key_or_group:
            choices(override)
    groups = [w for w, o in overrides.items() if o.key_or_group in (*GROUPS, ARCHITECTURE, "trust")]
    single = [w for w, o in overrides.items() if w in groups and not o.is_sweep_override()]
    config = configured(single)
    if any(override.key_or_group == ARCHITECTURE for override in overrides.values()):
        arguments_of(config.model.architecture)  # it can be imported
    several = [o for o in overrides.values() if o.key_or_group == "experiment" and o.is_sweep_override()]
    known: dict[str, None] = {}
    for more in [[f"experiment={name}"] for o in several for name in choices(o)] or [[]]:
        for _, words_of_one in suite(configured([*single, *more]), [*single, *more]):
            known |= dict.fromkeys(map(str, configured(words_of_one).experiment))
    for name in (*OBJECTS, "_target_"):
        known.pop(name, None)
    return [_addressed(word, override, config, list(known)) for word, override in overrides.items()]


def _addressed(word: str, override: Override, config: DictConfig, known: list[str]) -> str:
    """The word with the full address of its setting, which must exist."""
    key = override.key_or_group
    root, *path = key.split(".")
    if root.split("/")[0] == "hydra" and key.replace("/", ".").split(".")[1:2] not in HYDRAS:
        raise unknown_name("setting", key, [f"hydra.{name}" for (name,) in HYDRAS])
    if key in GROUPS or root.split("/")[0] == "hydra" or key == ARCHITECTURE:
        return word
    if root in config and root != "experiment":
        try:
            look_up(config, [root, *path])
        except InputError as error:
            raise InputError(f"{error}{_elsewhere(root, path)}") from None
        return "++" + word.lstrip("+")
    name = path[0] if root == "experiment" and path else root
    if name not in known:
        raise unknown_name("setting", key, dict.fromkeys([*(k for k in map(str, config) if k != "hydra"), *known]))
    return f"++experiment.{word.lstrip('+').removeprefix('experiment.')}"


def _elsewhere(group: str, path: list[str]) -> str:
    """For an error: the choices of a group that have the setting, as data.root is one of data=photos."""
    files = sorted((CONF / group).glob("*.yaml")) if group in GROUPS else []
    having = [f"{group}={file.stem}" for file in files if path[0] in list(OmegaConf.load(file))]
    return f"; it is a setting of {', '.join(having)}" if having else ""
