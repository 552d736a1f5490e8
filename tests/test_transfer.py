"""Folds that share no image, classifiers in the span of the training images, and average precision by VOC's rule."""

import re

import numpy as np
import pytest
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from tests import oracles
from zfnet import InputError
from zfnet.analysis.transfer import (
    CLASSIFIERS,
    GRID,
    PRESENCE,
    Split,
    average_precision,
    fit,
    near_duplicates,
    precisions,
    split,
    standardised,
    transferred,
    transferred_presence,
)

LABELS = [n % 3 for n in range(60)]


def clouds(count=40, width=30, seed=0):
    """Two classes of points, apart by their first coordinate."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    rows = random.normal(size=(count, width))
    rows[:, 0] += 6 * labels
    return rows.astype(np.float32), labels


# ---- folds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_class", [1, 5, 15])
def test_no_fold_shares_an_image_between_training_and_test(per_class):
    drawn = [split(LABELS, per_class, test=8, seed=3, fold=fold) for fold in range(5)]
    for train, test in drawn:
        assert not {*train} & {*test}
        assert len({*train}) == len(train) == 3 * per_class and len({*test}) == len(test)
        for part, count in ((train, per_class), (test, min(8, 20 - per_class))):
            assert [sum(LABELS[i] == label for i in part) for label in range(3)] == [count] * 3
    assert len({tuple(sorted(part.train)) for part in drawn}) == 5
    again = split(LABELS, per_class, test=8, seed=3, fold=2)
    assert np.array_equal(again.train, drawn[2].train) and np.array_equal(again.test, drawn[2].test)


def test_fewer_training_images_are_among_more():
    few, many = (set(split(LABELS, n, seed=1).train.tolist()) for n in (4, 9))
    assert few < many


def test_the_first_fold_is_that_of_a_split_file():
    parts = ["train" if n < 30 else "test" for n in range(60)]
    train, test = split(LABELS, 10, official=parts)
    assert set(train) == set(range(30)) and set(test) == set(range(30, 60))
    assert set(split(LABELS, 10, fold=1, official=parts).train) != set(range(30))


def test_images_without_a_label_are_in_no_fold():
    labels = [-1 if n < 6 else label for n, label in enumerate(LABELS)]
    assert min(np.concatenate(split(labels, 5))) >= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"per_class": 20},
            "class 0 ('a') has 20 images: too few for 20 to train and 1 to test on; lower per_class or drop the class",
        ),
        ({"per_class": 21}, "class 0 ('a') has 20 images: too few for 21 to train"),
        (
            {"per_class": 5, "official": ["train"] * 60},
            "class 0 ('a') has 20 training and 0 test images: too few for 5 to train",
        ),
        ({"per_class": 0}, "0 training and 50 test images"),
        ({"per_class": 1, "classes": "abcd"}, "class 3 ('d') has 0 images"),
    ],
)
def test_too_few_images_are_named(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        split(LABELS, **{"classes": "abc"} | arguments)


# ---- classifiers -----------------------------------------------------------------------------------------------------


def test_turning_keeps_all_inner_products_of_standardised_features():
    random = np.random.default_rng(0)
    train, test = random.normal(3, 2, (12, 50)), random.normal(3, 2, (7, 50))
    train[:, 4] = test[:, 4] = 5.0  # does not vary
    rows, others = standardised(train, test)
    plain = [
        (np.delete(x, 4, 1) - np.delete(train, 4, 1).mean(0)) / np.delete(train, 4, 1).std(0) for x in (train, test)
    ]
    assert rows.shape[1] <= 12
    np.testing.assert_allclose(rows @ rows.T, plain[0] @ plain[0].T / 49, atol=1e-5)
    np.testing.assert_allclose(others @ rows.T, plain[1] @ plain[0].T / 49, atol=1e-5)
    assert np.square(rows).sum(1).mean() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    "classifier",
    [LogisticRegression(C=10.0, max_iter=5000, tol=1e-10), LinearSVC(C=1.0, loss="hinge", tol=1e-8, max_iter=10**6)],
    ids=["softmax", "SVM"],
)
def test_a_classifier_on_turned_features_is_the_same_classifier(classifier):
    (train, labels), (test, _) = clouds(), clouds(count=300, seed=1)
    wide = np.concatenate([train, np.random.default_rng(2).normal(size=(40, 60))], 1)
    beyond = np.concatenate([test, np.random.default_rng(3).normal(size=(300, 60))], 1)
    rows, others = standardised(wide, beyond)
    mean, spread = wide.mean(0), wide.std(0)
    plain, its = ((x - mean) / spread / 90**0.5 for x in (wide, beyond))
    classifier.intercept_scaling = 1.0
    rotated = classifier.fit(rows, labels).decision_function(others)
    direct = classifier.fit(plain, labels).decision_function(its)
    np.testing.assert_allclose(rotated, direct, atol=5e-3)


@pytest.mark.parametrize("kind", ["softmax", "SVM"])
def test_both_classifiers_learn_and_choose_c_from_the_training_images_alone(kind):
    rows, labels = clouds(count=200, width=5)
    part = split(labels.tolist(), 30, test=50)
    accuracy, c = transferred(rows, labels.tolist(), part, (kind,))[kind]
    assert accuracy > 0.95 and c in GRID
    spoilt = rows.copy()
    spoilt[part.test] = 0
    assert transferred(spoilt, labels.tolist(), part, (kind,))[kind][1] == c
    with pytest.raises(InputError, match="no classifier 'forest'"):
        fit("forest", rows, labels)


def memorised(count=48, copies=1):
    """Rows of two classes that a strict classifier learns by heart: each has a feature of its own, which is no use
    for others; what all share is right, but for four rows, which can only be learnt by turning it round."""
    labels = np.arange(count) % 2
    shared, own = 0.1 * (2 * labels - 1.0), np.eye(count)
    shared[:4] *= -4
    own[:4] = 0
    return np.concatenate([np.repeat(shared[:, None], copies, 1), own], 1), labels


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_c_is_chosen_by_rows_that_were_not_fitted(kind, seed):
    rows, labels = memorised()
    fitted = [CLASSIFIERS[kind](c).fit(rows, labels).score(rows, labels) for c in (GRID[0], GRID[-1])]
    assert fitted[0] < fitted[1] == 1
    assert GRID[0] == fit(kind, rows, labels, seed).C


@pytest.mark.parametrize("kind", PRESENCE)
def test_c_of_presence_is_chosen_by_rows_that_were_not_fitted(kind):
    rows, labels = memorised(copies=10)
    presence = np.where(labels[:, None] == [0, 1], 1, -1).astype(np.int8)
    everything = Split(np.arange(48), np.arange(48))
    assert transferred_presence(rows, presence, everything, kind)[1] == GRID[0]


def test_features_that_do_not_vary_are_refused():
    with pytest.raises(InputError, match="none of the features varies"):
        standardised(np.ones((4, 3)), np.ones((2, 3)))


# ---- average precision -----------------------------------------------------------------------------------------------


def test_average_precision_worked_examples():
    # by rank: hit, miss, hit: precision 1 up to recall 1/2, then 2/3
    assert average_precision([3, 2, 1], [1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    # miss, hit, hit: precision 1/2 and 2/3, of which the envelope is 2/3 throughout; scikit-learn adds up the steps
    assert average_precision([3, 2, 1], [0, 1, 1]) == pytest.approx(2 / 3)
    assert average_precision_score([0, 1, 1], [3, 2, 1]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precision([1, 1], [1, 0]) == 0.5  # a tie does not pay
    assert np.isnan(average_precision([1, 2], [0, 0]))


def test_average_precision_is_the_devkits_and_not_less_than_scikit_learns():
    random = np.random.default_rng(0)
    for _ in range(50):
        scores, positive = random.permutation(30).astype(float), random.random(30) < 0.3
        positive[0] = True
        ours = average_precision(scores, positive)
        assert ours == pytest.approx(oracles.voc_average_precision(scores, positive), abs=1e-12)
        assert ours >= average_precision_score(positive, scores) - 1e-12
    ranked = np.array([1, 1, 1, 0, 0, 1, 0], dtype=bool)  # precision falls at each hit: the two rules agree
    assert average_precision(-np.arange(7), ranked) == pytest.approx(average_precision_score(ranked, -np.arange(7)))


def test_what_is_difficult_counts_neither_way():
    scores = np.array([[4.0], [3.0], [2.0], [1.0]])
    marks = np.array([[1], [0], [1], [-1]], dtype=np.int8)
    assert precisions(scores, marks) == pytest.approx([1.0])
    assert precisions(scores, np.where(marks == 0, -1, marks).astype(np.int8)) == pytest.approx([(1 + 2 / 3) / 2])


@pytest.mark.parametrize("kind", PRESENCE)
def test_presence_is_learned(kind):
    random = np.random.default_rng(0)
    presence = np.where(random.random((160, 3)) < 0.4, 1, -1).astype(np.int8)
    features = presence + random.normal(0, 0.3, (160, 3))
    part = Split(np.arange(100), np.arange(100, 160))
    values, c = transferred_presence(features.astype(np.float32), presence, part, kind)
    assert values.min() > (0.95 if kind == "each class" else 0.7) and c in GRID
    shuffled, _ = transferred_presence(features[random.permutation(160)].astype(np.float32), presence, part, kind)
    assert shuffled.mean() < 0.7


def test_an_image_of_two_classes_counts_as_half_of_one_for_each():
    random = np.random.default_rng(1)
    rows, presence = random.normal(size=(8, 2)), np.full((8, 3), -1, dtype=np.int8)
    presence[np.arange(8), np.arange(8) % 3] = 1
    presence[0, 1] = 1
    twice = LogisticRegression(C=1.0, max_iter=2000).fit(
        np.concatenate([rows, rows[1:], rows[:1]]), [*(np.arange(8) % 3), *(np.arange(1, 8) % 3), 1]
    )  # all images twice, the first once as each
    halved = PRESENCE["exclusive"](2.0, rows, presence, rows)
    np.testing.assert_allclose(halved, twice.predict_proba(rows), atol=1e-3)


def test_a_class_that_no_training_image_shows_has_no_score():
    presence = np.array([[1, -1, -1], [-1, 1, -1], [1, 1, -1], [-1, 1, 0]], dtype=np.int8)
    rows = np.random.default_rng(0).normal(size=(4, 2))
    for scores in PRESENCE.values():
        assert np.isnan(scores(1.0, rows, presence, rows)).all(0).tolist()[2]
    with pytest.raises(InputError, match="no classifier of presence 'both'"):
        transferred_presence(rows, presence, Split(np.arange(3), np.arange(3, 4)), "both")


# ---- near duplicates -------------------------------------------------------------------------------------------------


def test_near_duplicates_are_found_whatever_their_contrast():
    random = np.random.default_rng(0)
    images, others = random.integers(256, size=(6, 3, 8, 8)), random.integers(256, size=(9, 3, 8, 8))
    images[2] = others[7] // 2 + 40
    ((i, j, correlation),) = near_duplicates(images, others)
    assert (i, j) == (2, 7) and 0.99 < correlation <= 1
    assert correlation == pytest.approx(np.corrcoef(images[2].ravel(), others[7].ravel())[0, 1])
    assert near_duplicates(np.zeros((1, 4)), others.reshape(9, -1)[:, :4]) == []


def test_near_duplicates_are_those_of_all_correlations_whatever_fits_into_memory():
    random = np.random.default_rng(0)
    images, others = random.normal(size=(300, 5)), random.normal(size=(500, 5))
    expected = np.corrcoef(images, others)[:300, 300:]
    with sklearn.config_context(working_memory=0.05):  # MiB: 13 rows at a time
        pairs = near_duplicates(images, others, 0.9)
    assert [pair[:2] for pair in pairs] == [tuple(pair) for pair in np.argwhere(expected > 0.9).tolist()]
    np.testing.assert_allclose([r for _, _, r in pairs], expected[expected > 0.9], rtol=1e-12)
