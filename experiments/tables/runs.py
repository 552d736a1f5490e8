"""Existing results of experiment=variant, one for each network and seed, for one table.

They may differ only in the variant and the seed; any other difference is an error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.output.results import RESULT, read_result
from zfnet import InputError
from zfnet.model import VARIANTS

OWN = ("variant", "fresh", "recipe.seed")  # settings in which runs may differ
Key = tuple[str, int]  # variant, seed


class Runs(NamedTuple):
    measurements: dict[Key, dict[str, Any]]  # in the order of the rows, then of the seeds
    settings: dict[str, Any]  # that all share
    unsaid: list[str]  # settings that some files do not state, and which are therefore not compared
    sources: dict[str, dict[str, Any]]  # of each run: the file's digest, the commit, the device


def read_runs(folder: str | Path) -> Runs:
    """All results of experiment=variant in a folder, or anywhere below it; results of other experiments are ignored.

    Raises:
        InputError: if there is none, if one is damaged or lacks a measurement, if two are of the same network and
            seed, and if two differ in another setting.
    """
    files: dict[Key, Path] = {}
    results = {}
    for file in sorted(Path(folder).expanduser().rglob(RESULT)):
        result = read_result(file)
        if result.get("experiment") != "variant":
            continue
        key = _key(file, result)
        if key in files:
            raise InputError(f"{files[key]} and {file} are both of {key[0]}, seed {key[1]}; keep one of them")
        files[key], results[key] = file, result
    if not files:
        raise InputError(f"no result of experiment=variant in {folder} or below it")
    keys = sorted(files, key=lambda key: (list(VARIANTS).index(key[0]), key[1]))
    stated = {key: flat(results[key]["settings"]) for key in keys}
    names = dict.fromkeys(name for settings in stated.values() for name in settings if name not in OWN)
    for name in names:
        recorded = [key for key in keys if name in stated[key]]
        for key in recorded:
            if stated[key][name] != stated[recorded[0]][name]:
                other = f"{stated[recorded[0]][name]} in {files[recorded[0]]}"
                advice = "the runs of a table may only differ in variant and seed"
                raise InputError(f"{files[key]}: {name} is {stated[key][name]}, but {other}; {advice}")
    shared = {name: value for name, value in results[keys[0]]["settings"].items() if name not in OWN}
    shared["recipe"] = {name: value for name, value in shared["recipe"].items() if name != "seed"}
    unsaid = [name for name in names if any(name not in settings for settings in stated.values())]
    sources = {f"{name}, seed {seed}": _source(results[name, seed]) for name, seed in keys}
    return Runs({key: results[key]["ours"] for key in keys}, shared, unsaid, sources)


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by their full names: {"recipe": {"epochs": 1}} becomes {"recipe.epochs": 1}."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        named |= flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return named


def _key(file: Path, result: Mapping[str, Any]) -> Key:
    settings, ours = result["settings"], result["ours"]
    needed = {"variant", "architecture", "recipe", "images", "validation_images"} - set(settings)
    needed |= {"error", "parameters", "history"} - set(ours)
    if needed:
        raise InputError(f"{file} does not say {', '.join(sorted(needed))}: run experiment=variant again")
    if settings["variant"] not in VARIANTS:
        raise InputError(f"{file} is of {settings['variant']!r}, which is not a row of Table 3; move it elsewhere")
    return settings["variant"], settings["recipe"]["seed"]


def _source(result: Mapping[str, Any]) -> dict[str, Any]:
    provenance = {name: result["provenance"].get(name) for name in ("commit", "device", "seconds")}
    return {"digest": result["digest"], **provenance}
