"""Checks of settings that several experiments share. Each error says what is wrong and what to give instead."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zfnet.errors import InputError, first_line, unknown_name


def check_folder(out: str | None) -> None:
    """InputError unless results can be written to a folder of that name."""
    path = Path(out or ".").expanduser().absolute()
    try:
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    except OSError as error:  # such as a name that is too long
        raise InputError(f"cannot write to {path}: {first_line(error)}") from None
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "may not be written to" if nearest.is_dir() else "is not a folder"
        raise InputError(f"cannot write to {path}: {nearest} {why}; give another folder, out=...")


def at_least(least: float, **settings: float) -> None:
    """InputError for the first setting below `least`."""
    for name, value in settings.items():
        if value < least:
            raise InputError(f"{name} is {value}; give at least {least}")


def share(**settings: float) -> None:
    """InputError for the first setting that is not above 0, up to 1."""
    for name, value in settings.items():
        if not 0 < value <= 1:
            raise InputError(f"{name} is {value}; give a number above 0, up to 1")


def one_of(what: str, name: str, names: Iterable[str]) -> None:
    """InputError with the nearest name unless it is one of the names."""
    if name not in names:
        raise unknown_name(what, name, names)


def stand_for(layers: Sequence[str], numbers: Sequence[int]) -> None:
    """InputError unless there is one layer for each of the paper's; two must be different layers."""
    if len(layers) != len(numbers) or (len(layers) == 2 and len(set(layers)) == 1):
        papers = ", ".join(map(str, numbers))
        raise InputError(f"layers are {', '.join(layers)}; give {len(numbers)}, which stand for the paper's {papers}")


def grid(shape: Any, name: str = "a grid") -> None:
    """InputError unless it is rows and columns of feature maps."""
    if not isinstance(shape, Sequence) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
        raise InputError(f"{name} is [rows, columns] of feature maps; got {shape}")


def as_list(names: str | Sequence[str], what: str = "layers") -> list[str]:
    """Names of layers, or files; one name alone is a list of one. InputError for a name that is given twice."""
    names = [names] if isinstance(names, str) else list(names)
    if len({*names}) < len(names):
        raise InputError(f"{what} are {', '.join(names)}; give each once")
    return names


def by_number(layer: str, total: int, choose: Any) -> list[int]:
    """The maps that `choose` gives for a layer by number; none where it gives a way. InputError for one it has not."""
    maps = choose.get(layer, []) if isinstance(choose, Mapping) else [] if isinstance(choose, str) else choose
    for m in maps:
        if type(m) is not int or not 0 <= m < total:
            raise InputError(f"no map {m!r} in {layer}: there are {total}")
    return list(maps)
