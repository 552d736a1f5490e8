"""Limits on configurations: Hydra imports and calls any `_target_`.

Without `trust=true` a `_target_` may be code of the current folder, or a class or function of zfnet, experiments,
torch, torchvision and timm that makes networks, data or recipes. Nothing is imported, and so run, before its package is
known. The object must also be defined in such a package: `torch.os.system` is not torch's. See docs/security.md.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zfnet.errors import InputError

# what makes things; beside it the same packages download, load pickles, run compilers, and call what a text names
MAKERS = (
    "zfnet.model",
    "zfnet.switches",
    "zfnet.data",
    "zfnet.training.recipe",
    "experiments.setup.models",
    "experiments.setup.datasets",
    "experiments.setup.efficientnet_lite",
    "torch.nn",
    "torch.optim",
    "torch.utils.data.dataset",
    "torchvision.models",
    "torchvision.datasets",
    "torchvision.transforms",
    "timm.models",
    "timm.layers",
)
EXCEPT = ("torchvision.datasets.utils", "torchvision.datasets.lsun")  # the latter reads pickles
PACKAGES = {maker.partition(".")[0] for maker in MAKERS}
HYDRAS = re.compile(
    r"hydra\._internal\.core_plugins\.basic_(launcher\.BasicLauncher|sweeper\.BasicSweeper)|hydra_plugins\.[\w.]+"
)
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def check_trusted(settings: Any, place: str = "", launching: bool = False) -> None:
    """InputError for the first `_target_` that asks for trust, anywhere in plain settings.

    Args:
        settings: without interpolations.
        place: of the settings, for the error.
        launching: they say how Hydra starts jobs, which its own plugins do.
    """
    for where, target in targets(settings, place):
        if isinstance(target, str) and ("/" in target or target.endswith(".py")):
            raise InputError(
                f"{where}._target_ is {target!r}, a file; give module.Class, and run in the module's folder"
            )
        if not (launching and isinstance(target, str) and HYDRAS.fullmatch(target)) and not is_trusted(target):
            raise InputError(
                f"{where}._target_ is {str(target)!r}, which is not allowed by default (docs/security.md); "
                "if you trust it, add trust=true"
            )


def targets(settings: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every `_target_` in mappings and lists, however deep, with the place of what it makes."""
    if isinstance(settings, Mapping):
        if settings.get("_target_", "???") != "???":
            yield place, settings["_target_"]
        for key, value in settings.items():
            yield from targets(value, f"{place}.{key}".lstrip("."))
    elif isinstance(settings, list | tuple):
        for number, value in enumerate(settings):
            yield from targets(value, f"{place}[{number}]")


def is_trusted(target: Any) -> bool:
    """Whether a dotted name is a class or function of the packages above, or of the current folder.

    Names that do not exist are trusted too: calling them raises an error.
    """
    if not isinstance(target, str) or not NAME.fullmatch(target) or "._" in target:
        return False
    if target in named_by_us():
        return True  # without an import, which may take seconds
    package = target.partition(".")[0]
    if package not in PACKAGES and not is_here(package):
        return not exists(package)
    try:
        thing = _found(target)
    except Exception:  # the user's own module may raise anything
        return True
    if not inspect.isclass(thing) and not inspect.isfunction(thing):
        return False
    module = str(thing.__module__)
    package = module.partition(".")[0]
    return _makes(module) if package in PACKAGES else is_here(package)


@cache
def named_by_us() -> set[str]:
    """The `_target_`s in the files of conf/."""
    files = (Path(__file__).resolve().parents[2] / "conf").rglob("*.yaml")
    return {target for file in files for target in re.findall(r"_target_: ([\w.]+)", file.read_text(encoding="utf-8"))}


def exists(package: str) -> bool:
    """Whether a top-level module can be imported; nothing is."""
    return package in sys.modules or _spec_of(package) is not None


def is_here(package: str) -> bool:
    """Whether the file of a top-level module lies in the current folder, and not elsewhere under the same name."""
    specs = PathFinder.find_spec(package, [str(Path.cwd())]), _spec_of(package)
    here, there = ((spec.origin, list(spec.submodule_search_locations or ())) if spec else None for spec in specs)
    return here is not None and here == there


def _spec_of(package: str) -> ModuleSpec | None:
    try:
        return find_spec(package)
    except (ImportError, ValueError):  # such as __main__, which has none
        return None


def _makes(module: str) -> bool:
    """Whether a module is one of makers; timm's and torchvision's private ones do other things, but for two."""

    def within(names: tuple[str, ...]) -> bool:
        return any(f"{module}.".startswith(f"{name}.") for name in names)

    private = "._" in module and module not in ("timm.models._factory", "torchvision.models._api")
    return within(MAKERS) and not within(EXCEPT) and not private


def _found(target: str) -> Any:
    """The object of a dotted name, looked up through modules."""
    parts = target.split(".")
    thing: Any = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if inspect.ismodule(thing) and not hasattr(thing, part):
            importlib.import_module(".".join(parts[:number]))  # only what lies in the package can be
        thing = getattr(thing, part)
    return thing
