"""How the command ends: with one line and an exit status, also after mistakes, interrupts and closed pipes.

Status 2: a user's mistake, 1: a bug, with its traceback, 130: Ctrl-C, 143: SIGTERM, as from a cluster. This module
imports nothing large, so that Ctrl-C works while torch is imported.
"""

import contextlib
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

NO_MEMORY = ("can't allocate memory", "out of memory")  # as torch says it
LONGEST = 1200  # letters of a line: what was typed may be longer


class Stopped(KeyboardInterrupt):
    """A signal that ends the run like Ctrl-C: code with a state saves it."""


def leave(number: int, _: FrameType | None) -> None:
    """End at once, while there is nothing to save."""
    os.write(2, b"run.py: interrupted\n")
    os._exit(128 + number)


def stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


def understand(handler: Any) -> None:
    """Call this function for Ctrl-C and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and shells in the background ask for
            signal.signal(number, handler)


def stand_somewhere() -> None:
    """End in one line where the current folder was deleted, without which torch cannot even be imported."""
    try:
        os.getcwd()
    except OSError:
        os.write(2, b"run.py: the current folder was deleted; change to another\n")
        sys.exit(2)


class Pipe(io.FileIO):
    """An output stream; if its reader closes it, as `| head` does, output is dropped and the run continues."""

    lost = False

    def write(self, content: Any) -> int:  # type: ignore[override]
        try:
            return len(content) if self.lost else super().write(content) or 0
        except BrokenPipeError:
            self.lost = True
            return len(content)
        except OSError as error:
            from zfnet.errors import InputError

            self.lost = True
            raise InputError(f"cannot write what is printed: {error.strerror}") from None


def outlast() -> None:
    """Let the standard streams survive their readers, and escape characters that their encoding lacks."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        if (stream := getattr(sys, name)) is not None:
            stream.flush()
            buffer = io.BufferedWriter(Pipe(number, "wb", closefd=False))
            terminal = name == "stderr" or stream.isatty()
            text = io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=terminal)
            setattr(sys, name, text)


def raise_again(ignored: Any) -> None:
    """Python drops what is raised in a destructor, where Ctrl-C may come too: then it comes once more."""
    if isinstance(ignored.exc_value, Stopped):
        threading.Timer(0.1, signal.raise_signal, ignored.exc_value.args).start()
    else:
        sys.__unraisablehook__(ignored)


@contextlib.contextmanager
def attended() -> Iterator[None]:
    """Run with streams and signals as above, and warnings of one line; at the end nothing is left to save."""
    outlast()
    understand(stop)
    hooks = sys.unraisablehook, warnings.formatwarning
    sys.unraisablehook, warnings.formatwarning = raise_again, lambda message, *_: line(str(message))  # type: ignore
    try:
        yield
    finally:
        sys.unraisablehook, warnings.formatwarning = hooks  # type: ignore[assignment]
        understand(leave)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """End as the module says, unless all goes well."""
    from zfnet.errors import InputError

    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except InputError as error:
        say(str(error).replace("fresh=True", "fresh=true").replace('rules="extended"', "rules=extended"))
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        number = error.args[0] if isinstance(error, Stopped) else signal.SIGINT
        say("interrupted; the same command resumes from what was saved", before="\n")
        raise SystemExit(128 + number) from None
    except Exception as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
            say("not enough memory; give a smaller batch_size, or smaller images")
            raise SystemExit(2) from None
        traceback.print_exc()
        raise SystemExit(1) from None


def say(message: str, before: str = "") -> None:
    """A line on standard error."""
    print(before + line(message), end="", file=sys.stderr)


def line(message: str) -> str:
    """The message as one line: names of files may contain line feeds and escape codes."""
    from zfnet.errors import printable

    shown = printable(message)
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST * 2 // 3]} ... {shown[-LONGEST // 3 :]}"
    return f"run.py: {shown}\n"
