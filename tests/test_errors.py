"""Errors: one printable line each, whatever the input was called."""

import pickle

import pytest

from zfnet.errors import LONGEST, BrokenImage, InputError, first_line, printable


@pytest.mark.parametrize(
    "text", ["two\nlines", "\x1b[31mred", "\udcff", "\u202e", "\0", "tab\t", "\x85", "é \\ ok", ""]
)
def test_any_text_is_printed_on_one_line(text):
    line = printable(text)
    assert line.isprintable() and line.encode().decode() == printable(line) == line
    assert line == text or not text.isprintable()


def test_an_error_is_printable_and_stays_so_when_it_is_sent():
    for kind in (InputError, BrokenImage):
        error = kind("no file\n\x1b[1m\udce9.png")
        assert str(error) == r"no file\n\x1b[1m\udce9.png" == str(pickle.loads(pickle.dumps(error)))


def test_long_messages_are_cut():
    assert len(str(InputError("x" * 10**6))) < LONGEST + 9
    assert first_line(ValueError("\n\n" + "x" * 10**6 + "\nmore")) == "x" * 300 + " ..."
    assert first_line(OSError(2, "No such file")) == "No such file" and first_line(KeyError()) == "KeyError"
