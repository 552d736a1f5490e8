"""The pages agree with the results, and every rule can pass and fail."""

import copy
import re
from pathlib import Path

import pytest

from experiments.figures import fig6
from scripts import beside, claims, report
from zfnet import InputError

LINEAR = {"translation": {"linearity": [-2.3, 0.6]}, "scale": {"linearity": [-1.2, 0.8]}}
KEPT = {"translation": 0.9, "scale": 0.85, "rotation": 0.3}
ON = {"share": 0.8, "interval": [0.68, 0.88]}


def masks(five: float, seven: float, *ps: float) -> list[dict]:
    """What a mask does in layers 5 and 7."""
    return [{"mean": of, "p": p, "changed": 0.1} for of, p in zip((five, seven), ps or (None, None), strict=True)]


FACES = {part: masks(0.07, 0.07, 0.001, 0.4) for part in ("right eye", "left eye", "nose")}


def rises(*each: float) -> dict:
    """The errors of three seeds above those of their own network."""
    middle = sum(each) / len(each)
    return {"mean": middle, "each": list(each), "interval": [middle - 0.1, middle + 0.1]}


DEEP = "krizhevsky without layers 3, 4, 6, 7"
DEPTH = {
    f"krizhevsky without layers {layers}": {"validation_top1": rises(*of), "train_top1": rises(*of)}
    for layers, of in {"3, 4": (1.0, 1.2, 0.9), "6, 7": (2.0, 2.1, 1.9), "3, 4, 6, 7": (9.0, 9.3, 8.9)}.items()
}
MAPS, FC = "fig3 512-1024-512", "fig3 fc 8192"
WIDTH = {
    name: {"train_top1": rises(-9.0, -9.5, -8.5), "validation_top1": rises(*of)}
    for name, of in {MAPS: (-1.0, -1.1, -0.9), FC: (0.4, 0.1, 0.7)}.items()
}
LATTICES = {"krizhevsky": [3.0, 3.1], "fig3": [1.0, 1.1]}
SIZES = {"fig3 not renormalised": 2.5, "fig3": 1.6}
CASES = {  # judge -> what fulfils its rule, and changes of it that do not: the path, the value, and what is left
    claims.architecture: (
        {"ours": {"layers": {"conv1": 110}, "parameters": 5}, "paper": {"layers": {"conv1": 110}}},
        [("ours.layers.conv1", 109, 0)],
    ),
    claims.sensitivity: (
        {"ours": LINEAR},
        [("ours.scale.linearity", [0.2, 0.8], 0.5), ("ours.translation.linearity", [-1, 0.4], 0.5)],
    ),
    claims.stability: (
        {"ours": {kind: {"probability_kept": kept} for kind, kept in KEPT.items()}},
        [("ours.scale.probability_kept", 0.5, 0.5)],
    ),
    claims.rotation: (
        {"ours": {kind: {"probability_kept": kept} for kind, kept in KEPT.items()}},
        [("ours.rotation.probability_kept", 0.87, 0.5), ("ours.rotation.probability_kept", 0.95, 0)],
    ),
    claims.occlusion: (
        {"ours": {"on_object": {"images": 64, "chance": 0.2, "probability": ON, "best_place": {"share": 0.5}}}},
        [("ours.on_object.best_place.share", 0.7, 0.5), ("ours.on_object.probability.interval", [0.1, 0.9], 0)],
    ),
    claims.correspondence(0): (
        {"ours": {**FACES, "random": masks(0.1, 0.07)}},
        [("ours.nose", masks(0.2, 0.07, 0.001, 0.4), 2 / 3), ("ours.random", masks(0.05, 0.07), 0)],
    ),
    claims.correspondence(1): (
        {"ours": {**FACES, "random": masks(0.1, 0.075)}},
        [
            ("ours.nose", masks(0.07, 0.01, 0.001, 0.001), 2 / 3),
            ("ours.random", masks(0.05, 0.075), None),
            ("ours.nose", masks(0.2, 0.01, 0.4, 0.001), 2 / 3),  # in layer 7 alone: the contrary
        ],
    ),
    claims.transfer: (
        {"ours": {"each": {"pretrained": {"15": [8, 9]}, "from scratch": {"15": [2, 3]}}}},
        [("ours.each.from scratch.15", [8.5, 3], 0.5)],
    ),
    claims.deeper: (
        {"ours": {"accuracy": {f"SVM ({n})": 10.0 * n for n in range(1, 6)}}},
        [("ours.accuracy.SVM (3)", 10.0, 0.75), ("ours.accuracy.SVM (5)", 5.0, 0)],
    ),
    claims.settling: (
        {
            "ours": {
                "settled_epoch": {"relu1": 2, "relu2": 2, "relu3": 10, "relu4": 20, "relu5": None},
                "settled_before_rate_fell": {"relu1": True, "relu5": False},
                "rate_fell": [30],
            }
        },
        [
            ("ours.settled_epoch.relu2", 20, 5 / 6),
            ("ours.settled_before_rate_fell.relu1", False, 5 / 6),
            ("ours.settled_epoch", {"relu1": 30, "relu2": 30, "relu5": None}, 3 / 4),
            ("ours.settled_epoch", {"relu1": None, "relu2": None, "relu5": None}, 1 / 4),
        ],
    ),
    claims.dominance: (
        {"ours": {"each": {name: {"largest_rms_over_median": [n, n]} for name, n in SIZES.items()}}},
        [
            ("ours.each.fig3.largest_rms_over_median", [1.5, 1.8], 0.75),
            ("ours.each.fig3 not renormalised.largest_rms_over_median", [None, 2.9], None),
        ],
    ),
    claims.by_seed("claim", "dead"): (
        {
            "ours": {
                "claims": {"claim": {"as_claimed": 3, "contrary": 0, "equal": 0}},
                "each": {name: {"dead": [0.1, 0.2, 0.1]} for name in ("krizhevsky", "fig3")},
            }
        },
        [
            ("ours.claims.claim", {"as_claimed": 0, "contrary": 2, "equal": 1}, 0),
            ("ours.claims.claim", {"as_claimed": 0, "contrary": 0, "equal": 0}, None),
            ("ours.each", {name: {"dead": [0.0, 0.0, 0.0]} for name in ("krizhevsky", "fig3")}, None),
        ],
    ),
    claims.lattices: (
        {"ours": {"each": {n: {"layer2_lattice": of, "filters_lattice": [1.0, 1.0]} for n, of in LATTICES.items()}}},
        [
            ("ours.each.fig3.layer2_lattice", [3.0, 1.0], 4 / 6),
            ("ours.each.fig3.layer2_lattice", [4.0, 4.0], 2 / 6),
            ("ours.each.fig3.layer2_lattice", [None, 1.0], None),
        ],
    ),
    claims.depth: (
        {
            "ours": {
                "difference": DEPTH,
                "seeds": {name: [0, 1, 2] for name in DEPTH},
                "training": {f"{DEEP}, seed 0": {"flat": True}},
            }
        },
        [
            (f"ours.difference.{DEEP}.validation_top1", rises(1.0, 1.1, 0.9), 0),
            (f"ours.difference.{DEEP}.validation_top1", rises(3.0, 3.5, 2.5), 0.5),
            (f"ours.difference.{DEEP}.validation_top1", rises(4.0, 5.0, 3.5), None),
            (f"ours.difference.{DEEP}.validation_top1.each", [9.0], None),
            (f"ours.difference.{DEEP}.validation_top1.each", [], None),
            (f"ours.seeds.{DEEP}", [0, 1, 3], None),
            ("ours.difference", {DEEP: DEPTH[DEEP]}, None),
        ],
    ),
    claims.underfitting: (
        {"ours": {"difference": DEPTH}},
        [
            (f"ours.difference.{DEEP}.train_top1", rises(0.5, 0.4, 0.6), 0),
            (f"ours.difference.{DEEP}.train_top1.interval", None, None),
            (f"ours.difference.{DEEP}.train_top1.interval", [-1.0, 9.0], None),
            (f"ours.difference.{DEEP}.train_top1", {"mean": None, "each": [], "interval": None}, None),
            ("ours.difference", {}, None),
        ],
    ),
    claims.width: (
        {"ours": {"difference": WIDTH}},
        [
            (f"ours.difference.{MAPS}.validation_top1", rises(1.0, 1.1, 0.9), 2 / 3),
            (f"ours.difference.{FC}.validation_top1", rises(-11.0, -11.5, -10.5), 2 / 3),
            (f"ours.difference.{FC}.train_top1.interval", None, None),
        ],
    ),
    claims.averaging: (
        {
            "ours": {
                "each": {
                    "Figure 3, 1 net": {"validation_top1": [30.0, 31.0, 32.0]},
                    "Figure 3, 5 nets (a)": {"validation_top1": [28.0]},
                }
            }
        },
        [
            ("ours.each.Figure 3, 5 nets (a).validation_top1", [30.9], 0),
            ("ours.each.Figure 3, 1 net.validation_top1", [30.0], None),
        ],
    ),
    claims.other_architecture: (
        {
            "ours": {
                "sixth": {"validation_top1": {"difference": -1.0, "p": 0.01}},
                "error": {
                    "Figure 3, 5 nets (a)": {"validation_top1": 26.0, "validation_top5": 5.2},
                    "(a) and (b), 6 nets": {"validation_top1": 25.5, "validation_top5": 5.0},
                },
            }
        },
        [
            ("ours.sixth.validation_top1", {"difference": 1.0, "p": 0.01}, 2 / 3),
            ("ours.sixth.validation_top1.p", 0.2, None),
            ("ours.error.(a) and (b), 6 nets", {"validation_top1": 26.5, "validation_top5": 5.2}, 1 / 3),
        ],
    ),
}


def changed(result: dict, path: str, value: object) -> dict:
    """The result with another value at a path; names may hold dots where no shorter one is there."""
    other = copy.deepcopy(result)
    node, rest = other, path
    while True:
        name = next(key for key in sorted(node, key=len, reverse=True) if f"{rest}.".startswith(f"{key}."))
        rest = rest[len(name) + 1 :]
        if not rest:
            node[name] = value
            return other
        node = node[name]


@pytest.mark.parametrize("judge", CASES, ids=lambda judge: judge.__qualname__)
def test_a_rule_tells_yes_from_no(judge) -> None:
    result, changes = CASES[judge]
    assert judge(result)[0] == 1 and judge(result)[1]
    for path, value, share in changes:
        assert judge(changed(result, path, value))[0] == share, path


def test_every_rule_is_tried() -> None:
    tried = {judge.__qualname__ for judge in CASES}
    assert {claim.judge.__qualname__ for claim in claims.CLAIMS if claim.pattern} <= tried


def test_claims_of_figure_6_are_those_that_it_counts() -> None:
    asked = {c.judge.__closure__[0].cell_contents for c in claims.CLAIMS if c.judge.__qualname__.startswith("by_seed")}
    assert asked and asked <= set(fig6.CLAIMS)


@pytest.mark.parametrize(
    ("fell", "words"), [(None, "is not recorded"), ([], "never came"), ([9, 12], "was in epoch 9, 12")]
)
def test_when_the_rate_fell_is_said_as_it_is_known(fell: list[int] | None, words: str) -> None:
    result, _ = CASES[claims.settling]
    assert claims.settling(changed(result, "ours.rate_fell", fell))[1].endswith(f"a fall of the learning rate {words}")


def trained(seed: int, **settings: object) -> dict:
    """A result of experiment=train."""
    how = {"images": 9, "validation_images": 3, "recipe": {"epochs": 1, "seed": seed}}
    ours = {"history": [{"validation_error": 0.5, "seconds": 60.0}], "validation_top1": 0.4}
    ours["dead_maps"] = {"relu1": {"dead": 0, "maps": 4}}
    return {"ours": ours, "settings": how | settings, "provenance": {"threads": 1, "device": "a processor"}}


def test_runs_of_one_row_differ_in_their_seed_alone(monkeypatch) -> None:
    runs = {f"train/net, seed {seed}": trained(seed) for seed in (0, 1)}
    monkeypatch.setattr(report, "results", lambda _: runs)
    assert "2 seed(s)" in report.trained_table()
    runs["train/net, seed 1"] = trained(1, images=8)
    with pytest.raises(
        InputError, match="images is 8 in results/train/net, seed 1, and 9 in results/train/net, seed 0: "
    ):
        report.trained_table()


def test_what_the_pages_cannot_be_made_of_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "net.json").write_text("{")
    with pytest.raises(InputError, match=r"published/net.json is damaged"):
        report.published()
    monkeypatch.setattr(report, "results", lambda _: {"table1/x": {"ours": {}}})
    claim = next(claim for claim in claims.CLAIMS if claim.pattern == "table1/*")
    with pytest.raises(InputError, match=r"results/table1/x/result.json lacks an entry .KeyError"):
        report.judged(claim)
    with pytest.raises(InputError, match=r"no table of README.md 'nope'"):
        report.filled("<!-- numbers: nope -->\n<!-- end -->", "README.md")


def test_the_pages_are_what_the_results_say() -> None:
    for path, text in report.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run python scripts/report.py"


@pytest.mark.parametrize("name", beside.ENTRIES)
def test_another_digit_on_a_page_of_the_paper_is_found(name: str) -> None:
    text = (report.ROOT / "docs" / "paper" / f"{name}.md").read_text(encoding="utf-8")
    last = [match.start() for match in re.finditer(r"\d", text[: text.index("How each result was made")])][-1]
    other = f"{text[:last]}{(int(text[last]) + 1) % 10}{text[last + 1 :]}"
    assert report.filled(other, name) == text != other


def test_every_figure_and_table_with_results_has_a_page() -> None:
    known = {folder.name for folder in (report.ROOT / "results").iterdir() if re.match(r"(fig|table)\d", folder.name)}
    assert known == set(beside.ENTRIES)
    index = (report.ROOT / "docs" / "paper" / "index.md").read_text(encoding="utf-8")
    assert all(f"\n{name}\n" in index for name in known)


@pytest.mark.parametrize("name", beside.ENTRIES)
def test_every_row_of_the_paper_is_asked_for_by_a_name_that_is_there(name: str) -> None:
    found = report.results(f"{name}/*").values()
    keys = {"/".join(map(str, path)) for result in found for path, _ in beside.leaves(result["ours"])}
    for pattern in beside.ENTRIES[name]:
        assert any(beside.fnmatchcase(key, pattern) for key in keys), pattern


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (62357608, "62,357,608"),
        (0.0, "0"),
        (59.15, "59.1"),
        (-1.3, "-1.30"),
        (0.0192, "0.019"),
        ("Scenes", "Scenes"),
        (None, ""),
        ([-61.0, 61.0], "-61, 61"),
        ({"share": 0.89, "interval": [0.79, 0.946]}, "89.0 % (95 %: 79.0 to 94.6)"),
        ({"as_claimed": 2, "contrary": 1, "equal": 0}, "2 as claimed, 1 contrary, 0 equal"),
        (
            {"mean": 0.128, "spread": 0.016, "interval": [0.118, 0.138], "p": 1.0, "changed": 0.07},
            "0.128 ± 0.016 (95 %: 0.118 to 0.138), p 1.0000; 7% of features change",
        ),
        (
            {"mean": 13.9, "interval": [9.5, 18.3], "each": [1, 2, 3], "verdict": "as in the paper"},
            "13.9 (95 %: 9.50 to 18.3), n = 3; as in the paper",
        ),
        ({"mean": None, "interval": None, "each": [], "verdict": "not trained"}, ""),
    ],
)
def test_numbers_in_words(value, words) -> None:
    assert beside.shown(value) == words


def test_measurements_have_their_deviation_and_their_number() -> None:
    ours = {"accuracy": {"pretrained": {"15": 59.15}}, "deviation": {"pretrained": {"15": 2.0}}}
    result = {
        "paper": {"accuracy": {"pretrained": {"15": [83.8, 0.5], "30": [86.5, None]}}},
        "ours": ours | {"each": {"pretrained": {"15": [58.0, 60.3]}}},
    }
    assert dict(beside.rows("table4", "ours", result)) == {"accuracy/pretrained/15": "59.1 ± 2.00, n = 2"}
    paper = {"accuracy/pretrained/15": "83.8 ± 0.5", "accuracy/pretrained/30": "86.5"}
    assert dict(beside.rows("table4", "paper", result)) == paper
    page = beside.numbers("table4", {"table4/net-data": result}).splitlines()
    assert [cell.strip() for cell in page[2].split("|")[1:-1]] == ["pretrained, 15", "83.8 ± 0.5", "59.1 ± 2.00, n = 2"]
    assert len(page) == 3  # 30 a class was not measured


def test_no_path_of_a_machine_is_in_a_result() -> None:
    for file in [*Path(report.ROOT, "results").rglob("*.json"), *Path(report.ROOT, "published").glob("*.json")]:
        assert not re.search(r"[ \"'=]/(home|root|tmp|work)/", file.read_text()), file


@pytest.mark.parametrize(
    ("result", "rows"),
    [
        (
            {
                "experiment": "table4",
                "ours": {"each": {"pretrained": {"15": [8.0, 9.0], "30": [9.0, 9.5]}, "from scratch": {"15": [2.0]}}},
                "paper": {"accuracy": {"pretrained": {"15": [83.8, 0.5]}}},
            },
            [
                ("pretrained, 15, 30 a class", [[8.0, 9.0], [9.0, 9.5]], [83.8]),
                ("from scratch, 15 a class", [[2.0]], []),
            ],
        ),
        (
            {
                "experiment": "table7",
                "ours": {"each": {"SVM (1)": [4.0], "softmax (5)": [7.0], "SVM (7)": [8.0]}},
                "paper": {"accuracy": {f"SVM ({n})": [[40.0 + n, 0.7], [20.0, 0.4]] for n in (1, 7)}},
            },
            [("SVM on layers 1, 7", [[4.0], [8.0]], [41.0, 47.0])],
        ),
        (
            {
                "experiment": "table6",
                "ours": {"each": {kind: {"mean": [50.0], "dog": [30.0]} for kind in ("exclusive", "from scratch")}},
                "paper": {"precision": {"mean": {"Zeiler & Fergus": 79.0}}},
            },
            [("mean precision, one softmax", [[50.0]], [79.0]), ("mean precision, from scratch", [[50.0]], [])],
        ),
    ],
)
def test_rows_of_transfer_are_a_results_own(result, rows) -> None:
    assert report.transferred(result) == rows
