"""The layout of the repository, read from its syntax trees: imports point only back along the flow of a tensor."""

import ast
from pathlib import Path

import pytest

import zfnet

ROOT = Path(__file__).resolve().parent.parent
# a module may import those before it; the files of `data` import the three before it and each other
ORDER = [
    "errors",
    "files",
    "identity",
    "data",
    "switches",
    "model",
    "checks",
    "windows",
    "operations",
    "tracing",
    "aliases",
    "verification",
    "graph",
    "layers",
    "views",
    "recording",
    "receptive_fields",
    "processes",
    "winners",
    "gathering",
    "scanning",
    "scan_files",
    "deconvnet",
    "formats",
    "weights",
    "rendering",
    "training",
    "analysis",
]
FOR_EXPERIMENTS = {"hydra", "omegaconf", "matplotlib"}
LIBRARY = sorted((ROOT / "zfnet").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))


def imported(file: Path) -> set[str]:
    """The modules a file imports, wherever in the file: `zfnet.record`, `torch.nn`, ..."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file.name}: a relative import"
            found.add(node.module or "")
            if node.module in ("zfnet", "zfnet.data"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(file: Path) -> str:
    """Its place in ORDER: the name of the file, or of the folder in zfnet/."""
    inner = file.relative_to(ROOT / "zfnet").parts
    return inner[0].removesuffix(".py")


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", [f for f in LIBRARY if part(f) != "__init__"], ids=name_of)
def test_imports_point_back(file: Path) -> None:
    assert part(file) in ORDER, "a new module takes its place in ORDER"
    within = [name.split(".") for name in imported(file) if name.split(".")[0] == "zfnet"]
    assert ["zfnet"] not in within, "the package itself imports all of it"
    used = {name[1] for name in within}
    allowed = set(ORDER[: ORDER.index(part(file))]) if part(file) != "data" else {"errors", "files", "identity", "data"}
    allowed |= {part(file)} if file.parent != ROOT / "zfnet" else set()  # the files of a folder import each other
    assert used <= allowed, f"{sorted(used - allowed)} come after {part(file)}"


# plumbing knows no experiment; what experiments share stands in setup, output, and the modules named here
SHARED = {
    "tables": {"transfer", "variants", "runs"},
    "ablation": {
        "units",
        "judge",
        "intervention",
        "prediction",
        "sanity",
        "sufficiency",
        "measure",
        "analysis",
        "report",
        "draw",
        "trials",
        "people",
    },
}


@pytest.mark.parametrize("file", [f for f in EXPERIMENTS if f.stem != "run"], ids=name_of)
def test_experiments_import_no_other_experiment(file: Path) -> None:
    folder = file.parent.name
    for name in imported(file):
        parts = name.split(".")
        if parts[0] != "experiments" or len(parts) < 2 or parts[1] in ("setup", "output"):
            assert parts[0] != "experiments" or len(parts) > 2 or name == "experiments", f"{name}: import from a module"
            assert folder != "setup" or parts[:2] != ["experiments", "output"], "setup comes before output"
            continue
        assert folder not in ("setup", "output"), f"{name_of(file)} imports the experiment {name}"
        shared = next((stem for stem in SHARED.get(parts[1], ()) if name.endswith(f".{stem}")), None)
        assert shared, f"{name_of(file)} imports the experiment {name}"


@pytest.mark.parametrize("file", EXPERIMENTS, ids=name_of)
def test_functions_of_experiments_fit_a_screen(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_what_reads_the_command_line_is_short() -> None:
    files = [ROOT / "experiments" / name for name in ("run.py", "setup/commands.py")]
    assert sum(len(file.read_text().splitlines()) for file in files) < 200


@pytest.mark.parametrize("file", LIBRARY, ids=name_of)
def test_the_library_knows_nothing_of_the_experiments(file: Path) -> None:
    assert not {name.split(".")[0] for name in imported(file)} & (FOR_EXPERIMENTS | {"experiments", "tests"})


@pytest.mark.parametrize("file", [*LIBRARY, *EXPERIMENTS], ids=name_of)
def test_no_drawer_for_odds_and_ends(file: Path) -> None:
    assert file.stem not in ("utils", "common", "base", "helpers", "misc")


@pytest.mark.parametrize("file", [*LIBRARY, *EXPERIMENTS], ids=name_of)
def test_files_open_with_their_idea(file: Path) -> None:
    source = file.read_text()
    assert not source.strip() or ast.get_docstring(ast.parse(source))


PUBLIC = {
    "ZFNet",
    "SwitchMaxPool2d",
    "pool",
    "unpool",
    "Deconvnet",
    "Patches",
    "receptive_field",
    "scan",
    "TopActivations",
    "layer_table",
    "rule",
    "Recording",
    "ReceptiveField",
    "InputError",
    "OcclusionMaps",
    "occlusion_maps",
    "project_top",
}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names(name: str) -> None:
    assert callable(getattr(zfnet, name)) and name in zfnet.__all__


def test_all_is_what_there_is() -> None:
    assert all(hasattr(zfnet, name) for name in zfnet.__all__)
    assert len(set(zfnet.__all__)) == len(zfnet.__all__)


def test_oracles_stand_alone() -> None:
    assert not {name for name in imported(ROOT / "tests" / "oracles.py") if name.startswith("zfnet")}
