"""Statistics against simulated truths: intervals hold them, tests err as often as they say, and laws hold exactly."""

import itertools
import sys

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from zfnet import InputError
from zfnet.analysis.statistics import holm, mixed_logistic, two_way


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*size, seed=0):
    return torch.randn(*size, generator=seeded(seed), dtype=torch.float64)


def crossed(maps, images):
    """The map and the image of each value: every map with every image."""
    return torch.arange(maps).repeat_interleave(images), torch.arange(images).repeat(maps)


def pooled(maps, per_map, images):
    """Each map with images of its own choice from those that all share."""
    drawn = torch.rand(maps, images, generator=seeded()).argsort(1)[:, :per_map]
    return torch.arange(maps).repeat_interleave(per_map), drawn.flatten()


DESIGNS = {
    "64 x 11 crossed": crossed(64, 11),
    "64 x 11 of 400": pooled(64, 11, 400),
    "16 x 11 of 100": pooled(16, 11, 100),
}


def effects(maps, images, of_maps, of_images, experiments, seed):
    """What maps and images add to values, in each experiment: (experiments, M)."""
    rows, columns = (normal(experiments, int(c.max()) + 1, seed=seed + n) for n, c in enumerate((maps, images)))
    return of_maps * rows[:, maps] + of_images * columns[:, images]


def uniform(*size, seed):
    return torch.rand(*size, generator=seeded(seed), dtype=torch.float64)


def differences(maps, images, by, experiments, seed):
    """Of the answers, right or wrong, of two pictures that are equally good: their chances vary by `by`."""
    shift = by / 2
    one, other = (uniform(experiments, len(maps), seed=seed + n) for n in (0, 1))
    return (one < 0.6 + shift).double() - (other < 0.6 - shift).double()


def coverage(experiments, truths, maps, images):
    """How many of the intervals of experiments (N, M) hold their truth (N,)."""
    results = (two_way(values, maps, images) for values in experiments)
    return np.mean([r.low < truth < r.high for r, truth in zip(results, truths.tolist(), strict=True)])


class TestTwoWay:
    @pytest.mark.parametrize("kind", ["measures", "answers"])
    @pytest.mark.parametrize("spread", [0.0, 0.3])
    @pytest.mark.parametrize("design", DESIGNS)
    def test_intervals_of_95_percent_hold_400_truths(self, design, spread, kind):
        maps, images = DESIGNS[design]
        if kind == "measures":
            values = effects(maps, images, spread, spread, 400, seed=1) + normal(400, len(maps), seed=19)
        else:
            values = differences(maps, images, effects(maps, images, spread / 2, spread / 2, 400, seed=1), 400, seed=19)
        truths = torch.linspace(-1, 1, 400, dtype=torch.float64)
        assert 0.92 <= coverage(values + truths[:, None], truths, maps, images) <= 0.98

    @pytest.mark.parametrize(("of_maps", "of_images"), [(0.3, 0.0), (0.0, 0.3)])
    def test_they_do_where_only_one_side_varies(self, of_maps, of_images):
        maps, images = DESIGNS["64 x 11 crossed"]
        values = effects(maps, images, of_maps, of_images, 400, seed=1) + normal(400, len(maps), seed=19)
        assert 0.92 <= coverage(values, torch.zeros(400), maps, images) <= 0.98

    def test_p_is_below_5_percent_where_the_interval_leaves_0_out(self):
        maps, images = DESIGNS["16 x 11 of 100"]
        results = [two_way(v + 0.15, maps, images) for v in normal(100, len(maps))]
        assert {r.p < 0.05 for r in results} == {True, False}
        assert all((r.p < 0.05) == (r.low > 0 or r.high < 0) for r in results)

    def test_an_observer_with_a_known_error_rate_gives_it_back(self):
        maps, images = DESIGNS["64 x 11 of 400"]
        rates = torch.linspace(0.05, 0.5, 200, dtype=torch.float64)
        right = (uniform(200, len(maps), seed=4) >= rates[:, None]).double()
        assert 0.92 <= coverage(right, 1 - rates, maps, images) <= 0.98

    @pytest.mark.parametrize("truth", [0.0, 0.03, -0.03])
    def test_equivalence_errs_at_most_in_5_percent_and_is_found(self, truth):
        """At the margin it must not be concluded; where there is nothing, and 704 values say so, it must."""
        maps, images = DESIGNS["64 x 11 of 400"]
        values = truth + effects(maps, images, 0.03, 0.03, 400, seed=5) + 0.15 * normal(400, len(maps), seed=7)
        rate = np.mean([two_way(v, maps, images).equivalent for v in values])
        assert rate > 0.9 if truth == 0 else 0.02 < rate < 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5

    def test_equivalent_is_where_90_percent_lie_inside_the_margin(self):
        maps, images = DESIGNS["64 x 11 crossed"]
        values = 0.02 + normal(len(maps))
        low, high = (abs(x) for x in two_way(values, maps, images)[1:3])
        assert two_way(values, maps, images, margin=max(low, high)).equivalent
        assert not two_way(values, maps, images, margin=abs(float(values.mean()))).equivalent

    def test_one_value_for_a_map_and_an_image_is_students_test(self):
        values, each = 0.2 + normal(20), torch.arange(20)
        result, expected = two_way(values, each, each), ttest_1samp(values.numpy(), 0)
        assert result.p == pytest.approx(expected.pvalue)
        assert result[1:3] == pytest.approx(tuple(expected.confidence_interval(0.95)))

    def test_maps_and_images_are_treated_alike_where_all_pairs_are_there(self):
        maps, images = crossed(7, 5)
        values = normal(35) + normal(7, seed=1)[maps]
        assert two_way(values, maps, images) == pytest.approx(two_way(values, images, maps))

    def test_order_and_names_do_not_matter(self):
        maps, images = DESIGNS["16 x 11 of 100"]
        values, order = normal(len(maps)), torch.randperm(len(maps), generator=seeded())
        again = two_way(values[order], 1000 - 3 * maps[order], images[order] + 7)
        assert again == pytest.approx(two_way(values, maps, images))

    def test_maps_count_alike_and_nan_are_left_out(self):
        maps, images = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 1, 2, 3, 3])
        result = two_way(torch.tensor([1.0, torch.nan, 3.0, 2.0, 10.0]), maps, images)
        assert result.mean == pytest.approx(6) and result.values == 4

    def test_twins_tell_nothing_new(self):
        """The same trials twice, as of an image that was seen twice, are not twice as many trials."""
        maps, images = DESIGNS["64 x 11 of 400"]
        values = normal(len(maps))
        once, twice = two_way(values, maps, images), two_way(values.repeat(2), maps.repeat(2), images.repeat(2))
        assert twice[:3] == pytest.approx(once[:3]) and twice.p == pytest.approx(once.p)

    def test_of_values_without_spread_nothing_is_concluded(self):
        maps, images = crossed(4, 5)
        for value in (0.0, 1.0):
            found = two_way(torch.full((20,), value), maps, images)
            assert found[:4] == pytest.approx((value, value, value, 20)) and np.isnan(found.p) and not found.equivalent

    def test_one_map_or_one_image_says_nothing_of_others(self):
        values, several, one = normal(6), torch.arange(6), torch.zeros(6, dtype=torch.int64)
        assert two_way(values, several, one) is None and two_way(values, one, several) is None
        assert two_way(values * torch.nan, several, several) is None

    def test_a_margin_is_positive(self):
        with pytest.raises(InputError, match=r"^margin is 0; give a positive difference, 0.03 for a share$"):
            two_way(normal(6), torch.arange(6), torch.arange(6), margin=0)


class TestHolm:
    def test_by_hand(self):
        """0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not be below the one before."""
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.6, 0.5]) == [1, 1] and holm([0.2]) == [0.2] and holm([]) == []

    def test_it_closes_bonferronis_test(self):
        """A hypothesis is rejected if Bonferroni rejects every set of hypotheses that it is in."""
        for ps in uniform(20, 5, seed=0).square().tolist():
            sets = [s for k in range(1, 6) for s in itertools.combinations(range(5), k)]
            bonferroni = {s: min(1, len(s) * min(ps[n] for n in s)) for s in sets}
            assert holm(ps) == pytest.approx([max(b for s, b in bonferroni.items() if n in s) for n in range(5)])

    def test_what_is_no_test_does_not_count(self):
        assert holm([None, 0.02, float("nan"), 0.03]) == [None, 0.04, None, 0.04]

    @pytest.mark.parametrize("effective", [0, 2])
    def test_the_rate_of_families_with_an_error_is_5_percent(self, effective):
        """Of five contrasts, as of five layers, some have an effect: none of the others may be found in 95 of 100."""
        maps, images = DESIGNS["16 x 11 of 100"]
        values = effects(maps, images, 0.2, 0.2, 1000, seed=2) + normal(1000, len(maps), seed=3)
        ps = np.array([two_way(v, maps, images).p for v in values]).reshape(200, 5)
        ps[:, :effective] = 1e-4
        errors = [min(holm(family)[effective:]) <= 0.05 for family in ps.tolist()]
        bound = 2 * (0.05 * 0.95 / 200) ** 0.5
        assert np.mean(errors) <= 0.05 + bound
        assert np.mean(ps[:, effective:].min(1) <= 0.05) > 0.05 + bound  # what they would err without it

    def test_p_is_a_probability(self):
        with pytest.raises(InputError, match=r"^p-value 1 is 1.5; give values from 0 to 1$"):
            holm([0.1, 1.5])


class TestMixedLogistic:
    @staticmethod
    def answers(maps, images, by, log_odds, seed=0):
        """Of two pictures, whose log odds of being right are `log_odds` and 0, and `by` for maps and images."""
        chances = [(by + shift).sigmoid() for shift in (log_odds, 0.0)]
        return [(uniform(len(maps), seed=seed + n) < c).double() for n, c in enumerate(chances)]

    def test_it_finds_simulated_odds(self):
        pytest.importorskip("statsmodels")
        maps, images = crossed(20, 11)
        shifts = effects(maps, images, 0.7, 0.7, 20, seed=1)
        results = [
            mixed_logistic(*self.answers(maps, images, by, 1.0, 2 * n), maps, images) for n, by in enumerate(shifts)
        ]
        assert np.mean([e.low < 1 < e.high for e in results]) >= 0.85
        assert np.mean([e.mean for e in results]) == pytest.approx(1, abs=0.15)
        assert results[0] == mixed_logistic(*self.answers(maps, images, shifts[0], 1.0), maps, images)

    def test_without_effects_it_is_the_ratio_of_odds(self):
        pytest.importorskip("statsmodels")
        maps, images = DESIGNS["64 x 11 crossed"]
        one, other = self.answers(maps, images, torch.zeros(len(maps)), 0.8)
        result = mixed_logistic(one, other, maps, images)
        odds = [float(x.sum() / (1 - x).sum()) for x in (one, other)]
        deviation = sum(1 / float(n) for x in (one, other) for n in (x.sum(), (1 - x).sum())) ** 0.5
        assert result.mean == pytest.approx(np.log(odds[0] / odds[1]), abs=0.03)
        assert result.high - result.low == pytest.approx(3.92 * deviation, rel=0.1)
        swapped = mixed_logistic(other, one, maps, images)
        assert (swapped.mean, swapped.low) == pytest.approx((-result.mean, -result.high), abs=1e-3)

    def test_ties_are_left_out_and_infinite_odds_are_none(self):
        pytest.importorskip("statsmodels")
        maps, images = crossed(6, 8)
        one, other = self.answers(maps, images, torch.zeros(48), 0.5)
        one[5], other[7] = 0.5, torch.nan
        kept = [n for n in range(48) if n not in (5, 7)]
        result = mixed_logistic(one, other, maps, images)
        assert result.values == 46 and result == mixed_logistic(one[kept], other[kept], maps[kept], images[kept])
        assert mixed_logistic(torch.ones(48), other, maps, images) is None

    def test_without_statsmodels_it_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "statsmodels.genmod.bayes_mixed_glm", None)
        with pytest.raises(
            InputError, match=r"^a mixed-effects model needs statsmodels: pip install 'zfnet\[stats\]'$"
        ):
            mixed_logistic(*[torch.ones(2)] * 4)
