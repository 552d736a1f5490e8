"""One error for what a user can put right, and one wording for a name that does not exist."""

import difflib
from collections.abc import Iterable
from typing import Any

MOST = 30  # names that an error lists
LONGEST = 5000  # letters of an error: a path has up to 4096


def printable(text: object) -> str:
    """Text as one line that every terminal and file can take: control codes, newlines and stray bytes are escaped."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


class InputError(ValueError):
    """A mistake in the input: its message is one line that says what is wrong, where, and what to do.

    It is a ValueError; `zfnet` raises nothing else for what a user can put right.
    """

    def __init__(self, message: object = "") -> None:
        line = printable(message)
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")


class BrokenImage(InputError):
    """A file that cannot be loaded as an image, or made into what a network sees; a scan leaves it out and names it."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a `kind` of thing ("layer") without such a name: the nearest of the choices, and all of them."""
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    omitted = len(names) - MOST if len(names) > MOST + 1 else 0
    listed = ", ".join([*names[: MOST // 2], f"... {omitted} more ...", *names[-MOST // 2 :]] if omitted else names)
    return InputError(f"no {kind} {name!r}{guess}; available: {listed or 'none'}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut after 300 letters, without an errno; its type if it is empty."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = next((line.strip() for line in message.splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 300 else f"{line[:300]} ..."


def with_article(value: Any) -> str:
    """The type of a value in words: "a list", "an ndarray"."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
