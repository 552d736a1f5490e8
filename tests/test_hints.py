"""What a signature says of a setting, as the command line checks it."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from experiments.setup.hints import Count, Grid, Length, Limits, Names, Share, check, fits
from zfnet import InputError

NUMBERS = "a list [...], each a whole number"
TAKEN = [
    (Count, (1, 9)),
    (Share, (0.1, 1, 1.0)),
    (float, (1, 0.5, -2)),
    (int | None, (3, None)),
    (bool, (True, False)),
    (str | Path | None, ("a", "", None)),
    (Literal["rgb", "grey"], ("rgb",)),
    (Literal[1, 10] | None, (1, 10, None)),
    (Names, (["a"], ["a", "b"])),
    (Grid, ([1, 2],)),
    (Sequence[Grid] | None, ([[1, 2], [3, 4]], [], None)),
    (Literal["random"] | Sequence[int] | Mapping[str, Sequence[int]], ("random", [0], {"a": [0]}, {})),
    (tuple[int, int], ((1, 2), [1, 2])),
    (partial[Any] | None, ({"_target_": "a.b"}, None)),
    (Any, (1, "a", None, [{}])),
]
REFUSED = [
    (Count, (0, -1, 1.0, True, "1", None, [1], 2**31)),
    (Share, (0, 1.1, float("nan"), "a", None, True)),
    (float, (float("nan"), "0.5", True, None, [])),
    (int | None, ("a", 1.5, False)),
    (bool, (0, "yes", None)),
    (str | Path | None, (5, [], {})),
    (Literal["rgb", "grey"], ("RGB", None, 0, ["rgb"])),
    (Literal[1, 10] | None, (2, True, "1")),
    (Names, ([], "a", [1], ["a", None], None)),
    (Grid, ([1], [1, 2, 3], [0, 1], 5)),
    (Sequence[Grid] | None, ([1, 2], [[1, 2], 3], "a")),
    (Literal["random"] | Sequence[int] | Mapping[str, Sequence[int]], ("all", ["a"], {"a": 0}, 3)),
    (tuple[int, int], ([1], [1, 2, 3], [1, "a"])),
    (partial[Any] | None, (5, "a", {}, [])),
]


@pytest.mark.parametrize(("hint", "values"), TAKEN, ids=str)
def test_what_a_hint_allows(hint, values):
    assert [value for value in values if not fits(value, hint)] == []


@pytest.mark.parametrize(("hint", "values"), REFUSED, ids=str)
def test_what_a_hint_does_not_allow(hint, values):
    assert [value for value in values if fits(value, hint)] == []


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        (0, Count, "k is 0; give a whole number from 1"),
        (2, Share | None, "k is 2; give a number above 0 to 1 or null"),
        (None, int, "k is null; give a whole number"),
        ("relu3", Names | Literal["auto", "all"], "k is 'relu3'; a list is written in brackets: k=[relu3]"),
        (
            "al",
            Names | Literal["auto", "all"],
            "no k 'al' (did you mean 'all'?); available: auto, all, a list [...], each text (one or more)",
        ),
        ("gray", Literal["rgb", "grey"], "no k 'gray' (did you mean 'grey'?); available: rgb, grey"),
        ([0, "foo"], Sequence[int], "k is [0, 'foo']; give a list [...], each a whole number"),
        ([1], Annotated[Sequence[int], Length(2)], "k is [1]; give a list [...], each a whole number (2 of them)"),
        (9, Annotated[int, Limits(0, 5)], "k is 9; give a whole number from 0 to 5"),
    ],
)
def test_an_error_says_what_to_give(value, hint, says):
    with pytest.raises(InputError) as error:
        check({"other": 1, "k": value}, {"k": hint})
    assert str(error.value) == says
