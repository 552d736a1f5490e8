"""Checks settings against the type hints of their arguments, including elements and limits.

An experiment's settings are checked against its signature before anything is made or trained: `k: Count`, `style:
Literal["safe", "paper"]`, `grids: Sequence[Grid] | None`. An unknown hint allows anything.
"""

import inspect
import json
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from zfnet.errors import InputError, unknown_name

PLAIN = {int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null", str: "text"}


LARGEST = 2**31 - 1  # what torch, numpy and scikit-learn all take; an error does not name it


class Limits(NamedTuple):
    """The range of a number; `above`: the least is excluded. For use in `Annotated`."""

    least: float
    most: float = math.inf
    above: bool = False

    def allow(self, value: Any) -> bool:
        return bool(self.least < value <= self.most if self.above else self.least <= value <= self.most)

    def __str__(self) -> str:
        return f" {'above' if self.above else 'from'} {self.least:g}" + f" to {self.most:g}" * (self.most < LARGEST)


class Length(NamedTuple):
    """The length of a list; without a number, one or more. For use in `Annotated`."""

    number: int | None = None

    def allow(self, value: Any) -> bool:
        return isinstance(value, str) or (len(value) == self.number if self.number else len(value) > 0)

    def __str__(self) -> str:
        return f" ({self.number} of them)" if self.number else " (one or more)"


Count = Annotated[int, Limits(1, LARGEST)]
Natural = Annotated[int, Limits(0, LARGEST)]
Seed = Annotated[int, Limits(0, LARGEST)]
Share = Annotated[float, Limits(0, 1, above=True)]
Finite = Annotated[float, Limits(-(10.0**30), 10.0**30)]
Width = Annotated[float, Limits(2, 8000)]
Grid = Annotated[Sequence[Count], Length(2)]
Names = Annotated[Sequence[str], Length()]
Palette = Literal["safe", "paper"]
Choice = Literal["random", "strongest"] | Sequence[Natural] | Mapping[str, Sequence[Natural]]
Amounts = Annotated[Sequence[Finite], Length()]


def check(settings: Mapping[str, Any], hints: Mapping[str, Any], before: str = "") -> None:
    """Raises InputError for the first setting that does not match its hint.

    Args:
        settings: plain values by name.
        hints: types by name; other names may be anything.
        before: of the names, in the error.
    """
    for name, value in settings.items():
        hint = hints.get(name, Any)
        if fits(value, hint):
            continue
        choices = [choice for kind in _kinds(hint) if get_origin(kind) is Literal for choice in get_args(kind)]
        if isinstance(value, str) and fits([value], hint) and not get_close_matches(value, map(str, choices)):
            raise InputError(f"{before}{name} is {value!r}; a list is written in brackets: {name}=[{value}]")
        if isinstance(value, str) and choices:
            raise unknown_name(before + name, value, [*choices, *_others(hint)])
        raise InputError(f"{before}{name} is {shown(value)}; give {said(hint)}")


def hints_of(function: Any) -> dict[str, Any]:
    """The types of a function's, or class's, arguments; a hint that cannot be evaluated allows anything."""
    try:
        hints = get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}
    hints.pop("return", None)
    return hints


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value matches a hint."""
    kinds = _kinds(hint)
    return any(_fits(value, kind) for kind in kinds)


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, arguments[0]) and all(limit.allow(value) for limit in arguments[1:] if value is not None)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if kind is int:
        return type(value) is int
    if kind in PLAIN:
        return isinstance(value, kind)
    if kind is Path:
        return isinstance(value, str | Path) and value != "" and "\0" not in str(value)
    if origin in (Sequence, list, tuple):
        entries = [hint for hint in arguments if hint is not Ellipsis]
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and len(entries) == len(arguments):
            return len(value) == len(entries) and all(map(fits, value, entries))
        return all(fits(entry, entries[0]) for entry in value)
    if origin in (Mapping, dict):
        return isinstance(value, Mapping) and all(fits(entry, arguments[1]) for entry in value.values())
    if kind is Any or isinstance(kind, TypeVar):
        return True
    return isinstance(value, Mapping) and "_target_" in value  # what makes an object


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _others(hint: Any) -> Iterable[str]:
    """The alternatives of a hint besides its choices."""
    return [said(kind) for kind in _kinds(hint) if get_origin(kind) is not Literal and kind is not types.NoneType]


def said(hint: Any) -> str:
    """The values that a hint allows, in words."""
    words: dict[str, None] = {}
    for kind in _kinds(hint):
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            words[said(arguments[0]) + "".join(map(str, arguments[1:]))] = None
        elif origin is Literal:
            words |= dict.fromkeys(map(str, arguments))
        elif origin in (Sequence, list, tuple):
            entries = [said(entry) for entry in arguments if entry is not Ellipsis]
            words["a list [...], each " + entries[0]] = None
        elif origin in (Mapping, dict):
            words["{name: ...}, each " + said(arguments[1])] = None
        else:
            words[PLAIN.get(kind, "a path" if kind is Path else "{_target_: ...}")] = None
    return " or ".join(words)


def shown(value: Any) -> str:
    """A value as it is typed."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
