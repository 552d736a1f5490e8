"""The ablation's report, from simulated trials whose truth is known."""

import importlib.util
import json
import math
import re

import pytest
import torch
from matplotlib.figure import Figure

from experiments.ablation import analysis, draw, networks, report
from experiments.ablation.analysis import (
    BETTER,
    CONTROL,
    CONTROLS,
    EQUIVALENT,
    PICTURE,
    UNDECIDED,
    WORSE,
    analysed,
    difference,
)
from experiments.ablation.units import FIELD, MASKS, Units
from experiments.output.pages import Page, save, style_of
from zfnet import Deconvnet, InputError
from zfnet.analysis.statistics import Contrast

LINES = style_of("safe").lines
SETTINGS = {"seed": 3, "queries": 5}
RATES = dict.fromkeys(MASKS, 0.7) | {"oracle": 0.95}
LAYERS = ("relu1", "relu2", "relu3", "relu4", "relu5")


def uniform(*size, seed):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(maps=12, per_map=5, images=40, seed=0):
    """The columns that say which trial it is: each map with images of its own choice from those that all share."""
    chosen = uniform(maps, images, seed=seed).argsort(1)[:, :per_map]
    return {"map": torch.arange(maps).repeat_interleave(per_map).tolist(), "image": chosen.flatten().tolist()}


def effects(keys, spread, seed):
    """What maps and images add to every picture's chance of being right."""
    maps, images = (torch.tensor(keys[name]) for name in ("map", "image"))
    rows, columns = (uniform(int(c.max()) + 1, seed=seed + n) - 0.5 for n, c in enumerate((maps, images)))
    return spread * (rows[maps] + columns[images])


def answered(keys, rates, seed=0, spread=0.2):
    """Answers of observers that are right at these rates."""
    drawn, shift = uniform(len(rates), len(keys["map"]), seed=1000 + seed), effects(keys, spread, 2000 + seed)
    right = (drawn < torch.tensor(list(rates.values()))[:, None] + shift).double()
    return keys | {name: row.tolist() for name, row in zip(rates, right, strict=True)}


def repeated(keys, **conditions):
    """The same units under each of some conditions."""
    count, times = len(keys["map"]), len(next(iter(conditions.values())))
    named = {name: [value for value in values for _ in range(count)] for name, values in conditions.items()}
    return {name: column * times for name, column in keys.items()} | named


def measured(keys, levels, seed=0):
    noise = 0.3 * (uniform(len(levels), len(keys["map"]), seed=3000 + seed) - 0.5)
    return keys | {name: (row + level).tolist() for row, (name, level) in zip(noise, levels.items(), strict=True)}


def result(layers):
    """What result.json has of these trials."""
    drawn = {layer: sorted({*trials["A1"]["map"]}) if "A1" in trials else [] for layer, trials in layers.items()}
    named = {layer: {"maps": 96, "dead": 0, "drawn": drawn[layer], "trials": of} for layer, of in layers.items()}
    known = {"network": "SqueezeNet", "dataset": "photographs", "images": 801, "judge": "Lite0", "broken_images": []}
    return known | {"layers": named}


def everything(seed=0, gain=0.0, seen=(27,), **of_units):
    """Trials of every task; `gain` is the primary contrast's, and maps see areas of the sizes `seen` in turn."""
    keys = units(**of_units, seed=seed)
    sizes = [seen[m % len(seen)] for m in keys["map"]]
    known, rates = keys | {"rows": sizes, "columns": sizes}, RATES | {PICTURE: 0.7 + gain}
    unseen = {name: rate - 0.1 for name, rate in rates.items() if name != "oracle"}
    levels = {name: rate / 2 for name, rate in unseen.items()}
    steps = ["conv2", "conv1"]
    cases = [
        (rule, how, step)
        for rule in ("projection", "guided", "gradient")
        for how in ("cascade", "alone")
        for step in steps
    ]
    cases += [(rule, "another map", None) for rule in ("projection", "guided", "gradient")]
    rules, hows, shuffled = (list(column) for column in zip(*cases, strict=True))
    crops = {"crop": 0.8, "masked crop": 0.75, "whole image": 0.7, "random crop": 0.5}
    likeness = {"similarity": 0.8, "partial": 0.2, "cosine": 0.1, "ssim": 0.3, "hog": 0.4}
    conditions = {"fill": ["grey"] * 3 + ["blur"] * 3, "share": [5, 10, 20] * 2}
    return {
        "A1": answered(known | {"left": [0.4] * len(sizes)}, rates, seed),
        "A1/blur": answered(known, rates, seed + 1),
        "A1/unmatched": answered(known, rates, seed + 4),
        "A2": answered(known, unseen, seed + 2),
        "B": answered(repeated(keys, pair=["extreme", "percentile"]), crops, seed + 3),
        "sanity": measured(repeated(keys, rule=rules, how=hows, shuffled=shuffled), likeness, seed),
        "recovery": measured(
            repeated(keys, rule=list(report.RECOVERED)), {"edges": 0.3, "another": 0.5, "unswitched": 0.6}
        ),
        "sufficiency": measured(repeated(keys, **conditions), levels, seed),
        "necessity": measured(repeated(keys, **conditions), levels, seed + 1),
    }


@pytest.fixture(scope="module")
def ours():
    layers = {
        layer: everything(10 * n, 0.25 * (n == 1), (27, 43) if n == 4 else (27,)) for n, layer in enumerate(LAYERS)
    }
    return result(layers)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """Without the logistic model, which takes seconds."""
    monkeypatch.setattr(report, "logistic", lambda ours: None)


def primary_of(trials):
    return analysed(result({"relu1": {"A1": trials}}))["primary"]["relu1"]


class TestEstimates:
    def test_observers_with_known_error_rates_give_them_back(self):
        """200 layers, of other truths each: 92 to 98 % of the intervals hold them, also those of differences."""
        truths = {f"{n}": {FIELD: 0.4 + 0.002 * n, PICTURE: 0.75 - 0.002 * n} for n in range(200)}
        keys = units(64, 11, 400)
        found = analysed(result({n: {"A1": answered(keys, rates, 10 * int(n))} for n, rates in truths.items()}))
        held = dict.fromkeys((FIELD, PICTURE, difference()), 0)
        for n, rates in truths.items():
            of = found["compared"]["A1"][n]
            assert (of.maps, of.trials) == (64, 704)
            for name, estimate in (of.means | of.differences).items():
                held[name] += (
                    estimate.low < (rates | {difference(): rates[PICTURE] - rates[FIELD]})[name] < estimate.high
                )
        assert all(0.92 <= count / 200 <= 0.98 for count in held.values()), held

    def test_holm_controls_the_family_of_layers(self):
        """Of 200 networks without any difference at most one in twenty has a layer with one; uncorrected more have."""
        keys, false, uncorrected = units(16, 11, 100), 0, 0
        for n in range(200):
            trials = {
                layer: {"A1": answered(keys, {FIELD: 0.7, PICTURE: 0.7}, 50 * n + 7 * m)}
                for m, layer in enumerate(LAYERS)
            }
            found = analysed(result(trials))["primary"].values()
            false += any(of.corrected < 0.05 for of in found)
            uncorrected += any(of.difference.p < 0.05 for of in found)
        assert false <= 200 * (0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5) and uncorrected > 200 * 0.12

    @pytest.mark.parametrize(("gain", "expected"), [(0.15, BETTER), (-0.15, WORSE), (0.03, UNDECIDED)])
    def test_a_difference_is_found_or_not_decided(self, gain, expected):
        trials = answered(units(64, 11, 400), {FIELD: 0.6, PICTURE: 0.6 + gain})
        assert primary_of(trials).verdict == expected

    def test_what_is_corrected_decides(self):
        contrast = Contrast(0.05, 0.001, 0.1, 704, 0.04, False)
        assert [analysis.verdict(contrast, p) for p in (0.04, 0.2, None)] == [BETTER, UNDECIDED, UNDECIDED]
        assert analysis.verdict(contrast._replace(equivalent=True), 0.04) == EQUIVALENT

    def test_observers_who_nearly_agree_are_equivalent_if_there_are_enough_trials(self):
        for keys, expected in ((units(64, 11, 400), EQUIVALENT), (units(8, 4, 20), UNDECIDED)):
            field = answered(keys, {FIELD: 0.5})[FIELD]
            other = [1 - right if n % 20 == 0 else right for n, right in enumerate(field)]
            assert primary_of(keys | {FIELD: field, PICTURE: other}).verdict == expected

    def test_one_network_has_one_family(self):
        """The same trials, alone and with four layers of nothing."""
        trials = answered(units(64, 11, 400), {FIELD: 0.6, PICTURE: 0.7})
        alone = primary_of(trials)
        others = {f"{n}": {"A1": answered(units(64, 11, 400), {FIELD: 0.6, PICTURE: 0.6}, n)} for n in range(4)}
        family = analysed(result({"relu1": {"A1": trials}} | others))["primary"]["relu1"]
        assert alone.difference == family.difference and family.corrected == pytest.approx(5 * alone.difference.p)
        assert alone.corrected == alone.difference.p > 0

    def test_a_layer_counts_its_maps_alike_and_shows_its_strata_apart(self):
        """Maps 0 to 15 see little and gain 1, the others see much, have twice as many trials, and lose 1."""
        small, large = units(16, 4, 40), units(16, 8, 40)
        keys = {"map": small["map"] + [16 + m for m in large["map"]], "image": small["image"] + large["image"]}
        sizes = [27] * 64 + [43] * 128
        trials = keys | {
            "rows": sizes,
            "columns": sizes,
            FIELD: [0.0] * 64 + [1.0] * 128,
            PICTURE: [1.0] * 64 + [0.0] * 128,
        }
        whole = analysed(result({"relu1": {"A1": trials}}))["compared"]["A1"]["relu1"]
        assert whole.differences[difference()].mean == pytest.approx(0)
        assert {name: (of.maps, of.trials) for name, of in whole.strata.items()} == {
            "27 x 27": (16, 64),
            "43 x 43": (16, 128),
        }
        gains = [of.differences[difference()].mean for of in whole.strata.values()]
        assert gains == pytest.approx([1, -1])

    def test_conditions_are_told_apart(self, ours):
        compared = analysed(ours)["compared"]
        shares = [f"{fill}/{share}" for fill in ("grey", "blur") for share in (5, 10, 20)]
        kinds = {f"{kind}/{name}" for kind in ("sufficiency", "necessity") for name in shares}
        assert set(compared) == {"A1", "A1/blur", "A1/unmatched", "A2", "B/extreme", "B/percentile"} | kinds
        assert [len(of.strata) for of in compared["A1"].values()] == [0, 0, 0, 0, 2]
        columns = ours["layers"]["relu3"]["trials"]["B"]
        rows = zip(columns["pair"], columns["map"], columns["crop"], strict=True)
        right = [[r for p, m, r in rows if p == "percentile" and m == n] for rows in [list(rows)] for n in range(12)]
        mean = sum(sum(of_map) / len(of_map) for of_map in right) / 12
        assert compared["B/percentile"]["relu3"].means["crop"].mean == pytest.approx(mean)

    def test_chance_is_what_choices_are_tested_against(self):
        keys = units(64, 11, 400)
        found = analysed(result({"relu1": {"A1": answered(keys, {FIELD: 0.5, PICTURE: 0.9}, spread=0)}}))
        chance, better = (found["compared"]["A1"]["relu1"].means[name] for name in (FIELD, PICTURE))
        assert chance.p > 0.01 and better.p < 1e-6 and not better.equivalent

    def test_undecided_answers_are_half_right_and_counted(self):
        keys = units()
        trials = answered(keys, {PICTURE: 0.7}) | {FIELD: [0.5] * len(keys["map"])}
        of = analysed(result({"relu1": {"A1": trials}}))["compared"]["A1"]["relu1"]
        assert of.undecided == {PICTURE: 0, FIELD: 60} and of.means[FIELD].mean == 0.5

    def test_fills_are_compared_on_the_same_units(self):
        """Another fill leaves out some trials and turns half of what is wrong right."""
        trials = answered(units(64, 11, 400), {FIELD: 0.6, PICTURE: 0.6})
        kept = [n for n in range(704) if n % 7]
        other = {name: [column[n] for n in kept] for name, column in trials.items()}
        other[PICTURE] = [max(right, n % 2) for n, right in enumerate(other[PICTURE])]
        change = analysed(result({"relu1": {"A1": trials, "A1/blur": other}}))["changes"]["relu1"]["blur"]
        assert change.values == len(kept)
        by_map = {}
        for m, now, before in zip(other["map"], other[PICTURE], [trials[PICTURE][n] for n in kept], strict=True):
            by_map.setdefault(m, []).append(now - before)
        assert change.mean == pytest.approx(sum(sum(of) / len(of) for of in by_map.values()) / 64)

    def test_likeness_has_means_medians_and_what_is_undefined(self):
        keys = repeated(units(4, 3, 10), rule=["projection"], how=["cascade"], shuffled=["conv1"])
        values = [float(m) ** 2 for m in keys["map"]]
        values[0] = None
        columns = keys | {"partial": values, "similarity": values}
        of = analysed(result({"relu1": {"sanity": columns}}))["sanity"]["relu1"]["projection"]["cascade"]["conv1"][
            "partial"
        ]
        assert of.mean.mean == pytest.approx((0 + 1 + 4 + 9) / 4) and (of.mean.values, of.undefined) == (11, 1)
        assert of.median == 4

    def test_a_task_that_there_is_not_is_refused(self):
        with pytest.raises(InputError, match="no task 'A3'"):
            analysed(result({"relu1": {"A3": units()}}))

    def test_names_are_those_of_masks(self):
        assert {PICTURE, FIELD, *CONTROLS} <= set(MASKS) == set(draw.MARKS)

    def test_of_few_maps_or_images_the_mean_stands_alone(self):
        for of, expected in ((units(7, 5, 40), True), (units(8, 5, 40), False), (units(9, 3, 7), True)):
            contrast = primary_of(answered(of, RATES)).difference
            means = [contrast.mean, contrast.values]
            assert math.isnan(contrast.low) is math.isnan(contrast.p) is expected and not any(map(math.isnan, means))

    def test_a_share_ends_at_0_and_1(self):
        right = [float(m > 1) for m in units()["map"]]  # two of twelve maps are always wrong
        found = analysed(result({"relu1": {"A1": answered(units(), RATES) | {PICTURE: right}}}))
        mean = found["compared"]["A1"]["relu1"].means[PICTURE]
        assert mean.low < mean.mean < mean.high == 1

    def test_of_answers_that_are_nearly_all_alike_the_mean_stands_alone(self):
        keys = units(16, 11, 100)
        for wrong, alone in ((9, True), (10, False)):
            answers = [float(n % 17 > 0 or n // 17 >= wrong) for n in range(176)]
            mean = analysis.estimate(torch.tensor(answers), *analysis.clusters(keys))
            assert math.isnan(mean.low) is math.isnan(mean.p) is alone and mean.mean == pytest.approx(1 - wrong / 176)


class TestWords:
    def test_the_title_is_answered_first(self, ours):
        words = report.report(ours, SETTINGS).split("\n\n")[1]
        better = [layer for layer, of in analysed(ours)["primary"].items() if of.verdict == BETTER]
        assert words.startswith("**In short.**") and f"{BETTER} in {report.listed(better)}" in words
        assert "extreme queries, " in words and "percentile queries, " in words

    def test_sentences_are_made_of_the_numbers(self, ours):
        words = report.report(ours, SETTINGS)
        found = analysed(ours)
        for layer, of in found["primary"].items():
            (line,) = (line for line in words.splitlines() if line.startswith(f"- **{layer}: "))
            assert line.startswith(f"- **{layer}: {of.verdict}.** {report.gain(of.difference)}, p ")
            assert report.size(found["compared"]["A1"][layer]) in line
            assert ("27 x 27 pixels" in line and "43 x 43 pixels" in line) == (layer == "relu5")
        assert "SqueezeNet, 801 images (photographs): 5 layers, 60 feature maps, 300 trials of task A1; maps" in words
        assert "drawn by seed 3." in words
        assert "in 92 %" in words and "are others here" in words and "their judge, Lite0, a network" in words
        assert found["primary"]["relu2"].verdict == BETTER and "A control failed" not in words

    def test_only_what_is_primary_stands_above_exploratory(self, ours):
        above, below = report.report(ours, SETTINGS).split("## Exploratory: all that follows")
        assert all(
            task in below and task not in above for task in ("**A2", "**B,", "**Sanity", "**Recovery", "**Sufficiency")
        )

    def test_result_json_says_the_same_bit_for_bit(self, ours):
        again = json.loads(json.dumps(ours))
        assert report.report(again, SETTINGS) == report.report(ours, SETTINGS)
        assert report.tables(again) == report.tables(ours)

    def test_a_report_is_two_pages(self, ours):
        """A page in small print holds 75 lines of 140 letters."""
        lines = report.report(ours, SETTINGS).splitlines()
        assert sum(max(1, -(-len(line) // 140)) for line in lines if line) <= 150

    def test_tables_have_every_estimate(self, ours):
        words = report.tables(ours)
        for tasks in analysed(ours)["compared"].values():
            for of in (part for whole in tasks.values() for part in (whole, *whole.strata.values())):
                assert all(report.cell(mean, digits=3) in words for mean in of.means.values())
                assert all(report.gain(contrast) in words for contrast in of.differences.values())
        assert words.count("cascade") == 5 * 3 * 2 * 5 and words.count("| another map |") == 5 * 3 * 5

    def test_a_shuffled_mask_above_the_field_is_said_first(self, ours):
        layers = {layer: dict(of["trials"]) for layer, of in ours["layers"].items()}
        layers["relu3"]["A1"] = answered(units(), RATES | {CONTROL: 0.95})
        changed = result(layers)
        first = report.report(changed, SETTINGS).split("\n\n")[1]
        contrast = analysed(changed)["compared"]["A1"]["relu3"].differences[difference(CONTROL)]
        assert first.startswith("**A control failed.**") and f"relu3 by {report.gain(contrast)}, 12 maps" in first
        assert "relu2" not in first

    def test_a_field_below_chance_is_said(self):
        trials = answered(units(), RATES | {FIELD: 0.25, PICTURE: 0.5}, spread=0)
        said = "The field is below chance here"
        unsure = trials | {FIELD: [float(n % 2 and n > 2) for n in range(60)]}
        assert said not in report.report(result({"relu1": {"A1": unsure}}), SETTINGS)
        assert said in report.report(result({"relu1": {"A1": trials}}), SETTINGS)
        assert said not in report.report(result({"relu1": {"A1": answered(units(), RATES)}}), SETTINGS)

    def test_the_end_of_a_cascade_is_where_all_is_shuffled(self):
        keys = repeated(units(), rule=["projection"] * 3, how=["cascade"] * 3, shuffled=["conv3", "conv2", "conv1"])
        falls = [level + 0.001 * n for level in (0.9, 0.5, 0.1) for n in range(60)]
        words = report.report(result({"relu3": {"sanity": keys | {"partial": falls}}}), SETTINGS)
        (row,) = (line for line in words.splitlines() if line.startswith("| projection, given the field"))
        assert "| 0.13 (" in row

    def test_few_maps_and_none_are_said(self):
        rates = RATES | {PICTURE: 1.0, CONTROL: 1.0}
        few = {f"{maps}": {"A1": answered(units(maps, 4, 20), rates)} for maps in (1, 4)}
        nothing = {
            "empty": {
                "A1": {name: [] for name in few["4"]["A1"]},
                "sanity": {"map": [], "image": [], "rule": [], "how": [], "shuffled": [], "partial": []},
            },
            "none": {},
        }
        words = report.report(result(few | nothing), SETTINGS | {"queries": 4})
        assert "A control failed" not in words
        assert "- **1: not decided.** +" in words and "1 map, 4 images, 4 trials." in words
        assert words.count("too few for an interval: projection x field 1.00, field ") == 2 and "nan" not in words
        assert all(f"- **{layer}: not decided.** There is no trial." in words for layer in nothing)
        assert "There is no trial of task A1 in empty and none." in words and "There is no trial of task B." in words
        assert report.tables(result(few | nothing)).count("| 1     |") > len(RATES)
        assert "too few" not in report.report(result({"8": {"A1": answered(units(8, 4, 20), RATES)}}), SETTINGS)

    def test_pictures_without_a_value_are_said(self):
        keys = repeated(units(), rule=["projection"], how=["cascade"], shuffled=["conv1"])
        silent = keys | {name: [None] * 60 for name in ("partial", "similarity")}
        ours = result({"relu1": {"sanity": silent}})
        assert "There is no trial of sanity, or no picture has a value in it." in report.report(ours, SETTINGS)
        assert "0 |        60 |" in report.tables(ours)

    def test_units_without_an_answer_are_counted(self, ours):
        changed = json.loads(json.dumps(ours))
        changed["layers"]["relu1"] |= {"dead": 7, "drawn": [*range(13)]}
        changed["broken_images"] = ["a.jpg"]
        words = report.report(changed, SETTINGS)
        assert words.count("60 trials, and 5 units whose activation both squares reduce by the same amount.") == 1
        assert "left out: 7 of 96 in relu1." in words and "1 image could not be read." in words

    def test_a_small_difference_that_is_clear_is_said_to_be_small(self):
        keys = units(64, 11, 400)
        field = [float(n % 2) for n in range(704)]
        better = [max(right, float(n % 60 == 0)) for n, right in enumerate(field)]
        words = report.report(
            result({"relu1": {"A1": keys | {FIELD: field, PICTURE: better}}}), SETTINGS | {"queries": 11}
        )
        assert (
            f"- **relu1: {EQUIVALENT}.** +0.017 (+0.0" in words
            and "excludes 0, but the difference is too small" in words
        )

    def test_the_logistic_model_is_a_check(self, monkeypatch):
        pytest.importorskip("statsmodels")
        monkeypatch.setattr(report, "logistic", analysis.logistic)
        trials = {"relu1": {"A1": answered(units(), {FIELD: 0.4, PICTURE: 0.8})}, "relu2": {}}
        words = report.report(result(trials), SETTINGS)
        odds = analysis.logistic(result(trials))["relu1"]
        assert (
            odds.low > 0
            and f"relu1 {report.cell(odds, '+')} of 60." in words
            and "contradicts the sign above in no layer" in words
        )
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert "statsmodels is not installed" in report.report(result(trials), SETTINGS)


class TestNetworks:
    def test_contrasts_stand_side_by_side(self, ours):
        other = result({layer: everything(7, gain) for layer, gain in (("conv1", 0.3), ("conv2", -0.5))})
        known = networks.estimates({"one": ours, "other": other})
        _, _, one, two, *_ = networks.primary_table(known).splitlines()
        cells = [cell.strip() for cell in two.split("|")][1:-1]
        assert cells[0] == "`other`" and cells[3:] == [""] * 3 and "`one`" in one
        assert cells[1].startswith("**+0.") and cells[2].startswith("**-0.")
        words = networks.sentences(known)
        verdicts = [of.verdict for found in known.values() for of in found["primary"].values()]
        assert f"Of 7 contrasts of 2 networks the projection is better in {verdicts.count(BETTER)}, worse" in words
        assert "It is worse in `other`, layer 2." in words
        lines = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in words.splitlines() if line.startswith("|")
        ]
        assert ["A1, blur squares", PICTURE, "effective field"] in [line[:3] for line in lines]
        assert {line[-1] for line in lines[2:]} == {"7"}
        for made in (networks.pointing_table, networks.judged_table):
            lines = made(known).splitlines()
            assert (
                len(lines) == 2 + 7 + 2 * (made is networks.pointing_table)
                and len({line.count("|") for line in lines}) == 1
            )
            assert "0.7" in lines[2]

    def test_other_rules_stand_beside_the_extended_ones(self, ours):
        known = networks.estimates({"one": ours, "other": result({"conv1": everything(7, 0.3)})})
        words = networks.extended_sentences(known)
        verdicts = [of.verdict for found in known.values() for of in found["primary"].values()]
        assert f"of 6 contrasts of 2 networks, with Holm's correction over the layers of each, {PICTURE} is " in words
        assert f"better than the field in {verdicts.count(BETTER)}, worse in {verdicts.count(WORSE)}," in words
        of = known["other"]["compared"]["A1"]["conv1"]
        rival = of.differences[difference(PICTURE, "gradient x field")]
        assert rival.low > 0 and re.search(rf"{PICTURE} +\| gradient x field +\| +[1-9]", words)
        lines = networks.extended_table(known).splitlines()
        assert len(lines) == 2 + 6 and len({line.count("|") for line in lines}) == 1
        cells = [cell.strip() for cell in lines[-1].split("|")][1:-1]
        assert cells[:3] == ["`other`", "conv1", f"{of.trials}, {of.maps}, {of.images}"]
        assert cells[8] == networks.signed(rival) and cells[5] == networks.signed(of.differences[difference()])
        judged = networks.extended_judged_table(known).splitlines()
        assert len(judged) == 2 + 6 and len({line.count("|") for line in judged}) == 1
        of = known["other"]["compared"]["B/percentile"]["conv1"]
        assert networks.signed(of.differences[difference("masked crop", "crop")]) in judged[-1]

    def test_what_was_not_asked_is_a_dash(self):
        known = networks.estimates({"one": result({"relu1": {"A1": answered(units(), RATES)}, "relu2": {}})})
        tables = (networks.extended_table, networks.extended_judged_table)
        for made in (networks.primary_table, networks.pointing_table, networks.judged_table, *tables):
            assert "| -" in made(known)
        assert "Of 2 contrasts of 1 networks" in networks.sentences(known)


class TestFigures:
    @pytest.mark.parametrize("task", ["A1", "A2", "B"])
    def test_points_are_the_estimates(self, ours, task, tmp_path):
        figure = draw.draw_choices(ours, task, LINES, 6.9)
        save(figure, tmp_path / "figure")
        compared = analysed(ours, [task])["compared"]
        first, column = next(iter(compared.values())), figure.axes[1]
        expected = {estimate.mean for estimate in first["relu2"].means.values()}
        assert expected <= {float(x) for line in column.lines for x in line.get_xdata()}
        assert [axis.get_title() for axis in figure.axes[:5]] == list(LAYERS)

    @pytest.mark.parametrize("drawing", [draw.draw_sanity, draw.draw_sufficiency])
    def test_curves_can_be_printed(self, ours, drawing, tmp_path):
        figure = drawing(ours, LINES, 6.9)
        save(figure, tmp_path / "figure")
        assert all(axis.lines for axis in figure.axes)

    def test_what_is_not_there_is_not_drawn(self, ours):
        seven = result({f"{n}": {"A1": answered(units(), RATES, n)} if n else {} for n in range(7)})
        figures = [draw.draw_choices(seven, task, LINES, 6.9) for task in ("A1", "A2")]
        figures += [drawing(seven, LINES, 6.9) for drawing in (draw.draw_sanity, draw.draw_sufficiency)]
        assert all(isinstance(figure, Figure) for figure in figures)
        assert sum(axis.axison for axis in figures[0].axes) == 14
        assert "No picture has a value." in figures[2].get_supxlabel()

    def test_pictures_of_units(self, model, data, tmp_path):
        rows = torch.tensor([[image, m, 2, 2 + m] for image in range(4) for m in range(3)])
        deconvnet = Deconvnet(model)
        every, some = (Units(deconvnet, data, "relu2", which, 0) for which in (rows, rows[:2]))
        page = Page(6.9)
        masks = some.masks(every)
        figure = draw.draw_pictures(page, {"relu2": (some, masks)})
        save(figure, tmp_path / "pictures")
        assert sum(bool(axis.images) for axis in figure.axes) == 2 * (1 + len(masks))
