"""From words to a configuration: Hydra composes it, and OmegaConf checks its types.

The types of an experiment's settings are those of its function's signature, and so are the defaults.
"""

import contextlib
import copy
import importlib
import inspect
import logging
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.setup.hints import PLAIN, Count, Names, Seed, check, hints_of, shown
from experiments.setup.options import READING, SHOWING
from experiments.setup.trust import check_trusted
from zfnet.errors import InputError, first_line, unknown_name

OBJECTS = ("model", "data", "training", "validation", "networks", "scans")  # arguments that are made from groups
PARTS: dict[str, Any] = {  # of groups: what objects fill in, or need where a function does not, and seeds
    "layers": Names | Literal["auto"],
    "layer7": str,
    "num_classes": Count | None,
    "image_size": Count | None,
    "preprocessing": object,
    "seed": Seed,
}
CONF = Path(__file__).resolve().parent.parent.parent / "conf"
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what get_object raises, which is said below


@dataclass
class Config:
    """The types of `conf/config.yaml`, which says what each setting is; a group's own settings are not typed here."""

    seed: int = 0
    device: str = "auto"
    out: str | None = None
    training: str = "train"
    validation: str = "val"
    networks: str = "outputs/networks"
    scans: str = "outputs/scan"
    trust: bool = False
    experiment: Any = field(default_factory=dict)
    model: Any = field(default_factory=dict)
    data: Any = field(default_factory=dict)
    train: Any = field(default_factory=dict)


ConfigStore.instance().store("types", Config)
OmegaConf.register_new_resolver(
    "layer",  # ${layer:5}: the one that stands for the paper's layer 5, the last of a network that has fewer
    lambda number, *, _root_: _root_.model.layers[min(number, len(_root_.model.layers)) - 1],
    replace=True,
)


def configured(words: Sequence[str]) -> DictConfig:
    """The configuration that the words ask for, Hydra's part included; InputError where Hydra or OmegaConf refuse it.

    An experiment has every argument of its function, with its type and default.
    """
    for word in words:
        if word.startswith("model="):
            add_model(word.partition("=")[2])
    with refused():
        return copy.deepcopy(_composed(tuple(words)))


@lru_cache(64)  # it takes a tenth of a second
def _composed(words: tuple[str, ...]) -> DictConfig:
    known = GlobalHydra.instance().is_initialized()
    with contextlib.nullcontext() if known else initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose("config", list(words), return_hydra_config=True)
        except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
            raise InputError(f"cannot read {' '.join(words)}: {first_line(error)}") from None
    _check_architecture(config.model)  # whose parts others are made of
    if not (config.trust and any(key_of(word) == "trust" for word in words)):  # a file cannot set it
        _check_trust(config)
    if "_target_" in config.experiment:
        typed = OmegaConf.structured(schema(config.experiment._target_))
        config.experiment = OmegaConf.merge(typed, config.experiment)
    return config


def _check_architecture(model: Any) -> None:
    known = (
        isinstance(model, DictConfig) and "architecture" in model and not OmegaConf.is_missing(model, "architecture")
    )
    if known and not isinstance(model.architecture, DictConfig):
        advice = "give its settings one by one: model.architecture.KEY=VALUE"
        raise InputError(f"model.architecture is {shown(model.architecture)}; {advice}")


def _check_trust(config: DictConfig) -> None:
    """InputError for a `_target_` that asks for trust, also one that an interpolation makes."""
    for key in sorted(map(str, config), key="experiment".__eq__):  # last: it repeats the groups
        if key != "hydra":
            check_trusted({key: plain(config, key)})
    for key in ("launcher", "sweeper", "callbacks"):
        check_trusted({f"hydra.{key}": plain(config.hydra, key)}, launching=True)


def plain(config: DictConfig, key: str) -> Any:
    """A setting, or a group of them, without interpolations."""
    value = None if OmegaConf.is_missing(config, key) else config[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def has_file(group: str, name: str) -> bool:
    """Whether `conf/` has a choice of that name in a group; names such as `../../other` are not."""
    return any(path.stem == name for path in (CONF / group).glob("*.yaml"))


def add_model(name: str) -> bool:
    """Make a classifier of torchvision's, or of timm's as timm/NAME, a choice of `model`; False if there is none."""
    if not has_file("model", name):
        from experiments.setup.models import settings_of  # a second of import time

        if (settings := settings_of(name)) is None:
            return False
        folder, _, own = f"model/{name}".rpartition("/")
        ConfigStore.instance().store(own, settings, folder, "model")
    return True


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf into one line."""
    try:
        yield
    except InstantiationException:  # what a function that was called says is not hydra's
        raise
    except RecursionError:
        raise InputError("interpolations ${...} lead in a circle") from None
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        key = str(getattr(cause, "full_key", None) or "").removeprefix("experiment.")
        what = "give a list, [...]" if "is not a ListConfig" in str(cause) else first_line(cause)
        raise InputError(f"{key}: {what}" if key else what) from None


def schema(target: str) -> Any:
    """A function's arguments as a dataclass that OmegaConf checks; of what it has no type for, it takes any."""
    main, fields = get_object(target), []
    hints = get_type_hints(main, include_extras=True)
    for name, parameter in inspect.signature(main).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            shared = get_type_hints(get_args(hints[name])[0], include_extras=True)
            settings: list[Any] = [(key, hint, (SHOWING | READING)[key]) for key, hint in shared.items()]
        elif name == "out":
            continue
        else:
            settings = [(name, hints[name], "???" if parameter.default is parameter.empty else parameter.default)]
        for key, hint, value in settings:
            value = list(value) if isinstance(value, tuple) else value
            fields.append((key, _checked(hint), field(default_factory=partial(copy.copy, value))))
    return make_dataclass("Arguments", [*fields, ("_target_", str, field(default=target))])


def _checked(hint: Any) -> Any:
    """A type hint as far as OmegaConf knows such; `hints` checks the rest."""
    if get_origin(hint) is Annotated:
        return _checked(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [_checked(kind) for kind in get_args(hint)]
        if all(kind in PLAIN for kind in kinds):
            return Union[tuple(dict.fromkeys(kinds))]  # noqa: UP007
        rest = [kind for kind in kinds if kind is not types.NoneType]
        return rest[0] | None if len(rest) == 1 < len(kinds) and rest[0] is not Any else Any
    if get_origin(hint) is Sequence:
        return list[Any]
    return hint if hint in PLAIN else Any


def suite(config: DictConfig, words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The requested experiments, with those of a suite one by one: the name of each, and its words."""
    if "suite" not in config.experiment:
        return [(config.hydra.runtime.choices.experiment, list(words))]
    rest = [word for word in words if key_of(word) != "experiment"]
    experiments = []
    for name in config.experiment.suite:
        known = configured([f"experiment={name}"]).experiment
        own = [w for w in rest if not key_of(w).startswith("experiment.") or key_of(w).split(".")[1] in known]
        experiments.append((name, [f"experiment={name}", *own]))
    return experiments


def key_of(word: str) -> str:
    """The setting that a word is for."""
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def listed(words: Sequence[str]) -> str:
    """The settings that words give, as YAML."""
    pairs = [word.partition("=") for word in words]
    return OmegaConf.to_yaml({key: OmegaConf.from_dotlist([f"_={value}"])._ for key, _, value in pairs})


def look_up(node: Any, path: Sequence[str], before: str = "") -> None:
    """InputError unless the path leads to a setting below `node`, which is called `before`."""
    for key in path:
        if not isinstance(node, DictConfig):
            return
        keys, more = arguments_of(node)
        if key not in keys and not more:
            raise unknown_name("setting", f"{before}{key}", [f"{before}{name}" for name in keys])
        node = None if key not in node or OmegaConf.is_missing(node, key) else node[key]
        before += f"{key}."


def arguments_of(node: DictConfig) -> tuple[list[str], bool]:
    """The keys that may be set in a part of the configuration, and whether any other may be."""
    keys, more = [str(key) for key in node if not str(key).startswith("_")], False
    if "_target_" in node and not OmegaConf.is_missing(node, "_target_"):
        try:
            parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
        except Exception as error:  # the user's own module may raise anything
            why = (
                f"{missing_in(node['_target_']) or first_line(error.__cause__ or error)}; give a name that Python can "
            )
            why += "import from the current folder, such as my.module.Net"
            raise InputError(f"cannot use {node['_target_']}: {why}") from None
        more = any(p.kind is p.VAR_KEYWORD for p in parameters)
        keys += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return list(dict.fromkeys(keys)), more


def missing_in(target: str) -> str:
    """Which name a module that can be imported does not have; "" if the module itself cannot."""
    module, _, name = str(target).rpartition(".")
    try:
        known = importlib.import_module(module)
    except Exception:  # the user's own module may raise anything
        return ""
    return "" if hasattr(known, name) else f"the module {module} has no {name}"


def check_groups(config: DictConfig, groups: Iterable[str]) -> None:
    """Raises InputError for the first setting of these groups that its function does not have or whose type is wrong.

    Types of a user's own functions are not checked.
    """
    check({"seed": config.seed}, {"seed": Seed})
    for group in groups:
        with refused():
            settings = plain(config, group)
        _check_made(settings, group)


def check_experiment(settings: Mapping[str, Any], made: Collection[str]) -> None:
    """InputError for the first setting of an experiment that is not what its function's signature says.

    Args:
        settings: without interpolations.
        made: those that are objects.
    """
    function = get_object(settings["_target_"])
    hints = hints_of(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            hints |= get_type_hints(get_args(hints[parameter.name])[0], include_extras=True)
    own = {name: value for name, value in settings.items() if name not in made and name != "_target_"}
    check(own, hints)
    for name, value in own.items():
        if isinstance(value, Mapping) and "_target_" in value:
            _check_made(value, name)


def _check_made(settings: Any, name: str) -> None:
    if not isinstance(settings, Mapping) or "_target_" not in settings:
        raise InputError(f"{name} is {shown(settings)}; give {name}=NAME, or its settings one by one: {name}.KEY=VALUE")
    values = {key: value for key, value in settings.items() if not key.startswith("_") and value != "???"}
    target = settings["_target_"]
    if target.partition(".")[0] in ("zfnet", "experiments"):
        check(values, hints_of(get_object(target)) | PARTS, f"{name}.")
    for key, value in values.items():
        if isinstance(value, Mapping) and "_target_" in value:
            _check_made(value, f"{name}.{key}")
