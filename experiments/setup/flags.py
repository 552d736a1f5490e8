"""The options of the command line, those of Hydra that mean something here: they begin with a dash, settings do not."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from zfnet.errors import InputError, unknown_name

OURS = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists the options")


def options_of(line: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options, in Hydra's form, and the other words. Raises InputError for an unknown option."""
    parser = _Parser(prog="run.py", add_help=False, allow_abbrev=False)
    one = parser.add_mutually_exclusive_group()
    for names in (("-h", "--help"), ("-m", "--multirun"), ("--version",)):
        one.add_argument(*names, action="store_true")
    one.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    options, words = parser.parse_known_args(line)
    if (options.resolve or options.package) and not options.cfg:
        parser.error("--resolve and --package go with --cfg")
    for word in words:
        if word.partition("=")[0] in OURS:
            raise InputError(f"{word.partition('=')[0]} is not supported: the configuration is in conf/")
        if word[:1] == "-":
            known = [name for action in parser._actions for name in action.option_strings]
            raise unknown_name("option", word, known)
    given = []
    for name, value in vars(options).items():
        if value:
            given += [f"--{name}"] if value is True else [f"--{name}", value]
    return given, words
