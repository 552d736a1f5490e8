"""One error for what a user can put right, and one wording for a name that does not exist."""

import difflib
from collections.abc import Iterable

MOST = 30  # names that an error lists


class InputError(ValueError):
    """A mistake in what was given: its message is one line that says what, where and what to do."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a `name` that is not among `choices`: the nearest one, and all others where they fit in a line."""
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    left = len(names) - MOST if len(names) > MOST + 1 else 0
    listed = ", ".join([*names[: MOST // 2], f"... {left} more ...", *names[-MOST // 2 :]] if left else names)
    return InputError(f"no {kind} {name!r}{guess}; there is: {listed or 'none'}")


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type's name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
