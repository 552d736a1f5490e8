"""Features learned on one set of images, tested on another: a new classifier on top of a frozen network.

Features are standardised and rotated into the span of the n training images. All inner products are preserved, so a
linear classifier on 290,400 features equals one on n. Its regularisation is chosen on a part of the training images.
Zeiler & Fergus (2014), section 5.2: 15, 30, ... training images of each class, up to 50 test images of each; the mean
over classes of the accuracy; mean and deviation over folds.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, pairwise_distances_chunked
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from zfnet.errors import InputError, unknown_name

Rows = NDArray[np.float64]
Presence = NDArray[np.int8]

GRID = tuple(10.0**n for n in range(-2, 6))  # scikit-learn's C: rows have a mean square length of 1
UNCHOSEN = 100.0  # C where a class has a single training image
CHUNK = 2**13  # columns at a time
CLASSIFIERS: dict[str, Callable[[float], Any]] = {
    "softmax": lambda c: LogisticRegression(C=c, max_iter=2000),
    # one against all others, squared hinge; for a large C the primal takes ten times as long
    "SVM": lambda c: LinearSVC(C=c, dual=True, random_state=0),
}


class Split(NamedTuple):
    """The images that one fold trains and tests on; int64, no image in both."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def split(
    labels: Sequence[int],
    per_class: int,
    *,
    test: int = 50,
    seed: int = 0,
    fold: int = 0,
    classes: Sequence[str] = (),
    official: Sequence[str | None] | None = None,
) -> Split:
    """Draw `per_class` training images of each class, and up to `test` of its other images, by seed and fold.

    A larger `per_class` adds images to those of a smaller one.

    Args:
        labels: the class number of each image; images with a negative one are left out.
        classes: names, for errors.
        per_class: how many training images of each class.
        test: how many test images of each class, at most.
        seed, fold: which draw.
        official: "train" or "test" for each image, from which fold 0 is drawn; other folds draw from all images.

    Raises:
        InputError: where a class has too few images.
    """
    if per_class < 1 or test < 1:
        raise InputError(f"{per_class} training and {test} test images of each class: give at least 1 of each")
    drawn: list[list[NDArray[np.int64]]] = [[], []]
    numbers = np.asarray(labels)
    for label in range(max(len(classes), int(numbers.max(initial=-1)) + 1)):
        members = np.random.default_rng([seed, fold, label]).permutation((numbers == label).nonzero()[0])
        pools = (members, members[per_class:])
        if official is not None and fold == 0:
            sides = np.array([official[i] for i in members], dtype=object)
            pools = members[sides == "train"], members[sides == "test"]
        if len(pools[0]) < per_class or not len(pools[1]):
            name = f" ({classes[label]!r})" if label < len(classes) else ""
            size = len(members) if pools[0] is members else f"{len(pools[0])} training and {len(pools[1])} test"
            raise InputError(
                f"class {label}{name} has {size} images: too few for {per_class} to train and 1 to test on; "
                "lower per_class or drop the class"
            )
        drawn[0].append(pools[0][:per_class])
        drawn[1].append(pools[1][-test:])
    return Split(*(np.concatenate(part) for part in drawn))


def standardised(train: ArrayLike, test: ArrayLike) -> tuple[Rows, Rows]:
    """Features (n, D) and (m, D), standardised by the training images, as (n, r) and (m, r) with r <= min(n, D).

    Features that do not vary are left out; rows of `train` have a mean square length of 1.
    """
    train, test = np.asanyarray(train), np.asanyarray(test)
    inner, across = np.zeros((len(train), len(train))), np.zeros((len(test), len(train)))
    count = 0
    blocks: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for first in range(0, train.shape[1], CHUNK):
        rows = np.asarray(train[:, first : first + CHUNK], dtype=np.float32)
        others = np.asarray(test[:, first : first + CHUNK], dtype=np.float32)
        mean, spread = rows.mean(0), rows.std(0)
        varying = spread > 1e-6 * np.abs(rows).max(initial=0)
        count += int(varying.sum())
        rows, others = ((x[:, varying] - mean[varying]) / spread[varying] for x in (rows, others))
        if train.shape[1] <= len(train):  # no rotation is needed
            blocks.append((rows, others))
        else:
            inner += rows @ rows.T
            across += others @ rows.T
    if not count:
        raise InputError("none of the features varies over the training images; no classifier can use them")
    if blocks:
        wide, wide_test = (np.concatenate(part, 1).astype(np.float64) for part in zip(*blocks, strict=True))
        return wide / count**0.5, wide_test / count**0.5
    lengths, directions = np.linalg.eigh(inner / count)
    kept = lengths > 1e-7 * lengths[-1]
    roots = np.sqrt(lengths[kept])
    return directions[:, kept] * roots, across @ directions[:, kept] / (count * roots)


def fit(kind: str, rows: Rows, labels: NDArray[np.int64], seed: int = 0) -> Any:
    """A classifier of scikit-learn, one of `CLASSIFIERS`, fitted to rows (n, r) and labels (n,).

    Its C is the value of `GRID` with the best mean accuracy over classes on a fourth of the rows of each class (one at
    least), held out by seed; of equally good ones the smallest. Then it is fitted to all rows.
    """
    if kind not in CLASSIFIERS:
        raise unknown_name("classifier", kind, CLASSIFIERS)
    held = np.zeros(len(labels), dtype=bool)
    fewest = len(labels)
    for label in np.unique(labels):
        members = np.random.default_rng([seed, int(label)]).permutation((labels == label).nonzero()[0])
        held[members[: max(1, len(members) // 4)]] = True
        fewest = min(fewest, len(members))

    def accuracy(c: float) -> float:
        classifier = _fitted(kind, c, rows[~held], labels[~held])
        return float(balanced_accuracy_score(labels[held], classifier.predict(rows[held])))

    return _fitted(kind, max(GRID, key=accuracy) if fewest > 1 else UNCHOSEN, rows, labels)


def _fitted(kind: str, c: float, rows: Rows, labels: NDArray[Any], shares: Rows | None = None) -> Any:
    # a second thread waits more than it works on so few rows
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # with next to no regularisation: those are not chosen
        return CLASSIFIERS[kind](c).fit(rows, labels, shares)


def transferred(
    features: NDArray[Any], labels: Sequence[int], part: Split, kinds: Sequence[str] = ("softmax",), seed: int = 0
) -> dict[str, tuple[float, float]]:
    """By kind of classifier on frozen features (N, D): its mean accuracy over classes, and the C chosen for it."""
    numbers = np.asarray(labels)
    rows, others = standardised(features[part.train], features[part.test])
    classifiers = {kind: fit(kind, rows, numbers[part.train], seed) for kind in kinds}
    return {
        kind: (balanced_accuracy_score(numbers[part.test], classifier.predict(others)), float(classifier.C))
        for kind, classifier in classifiers.items()
    }


def average_precision(scores: ArrayLike, positive: ArrayLike) -> float:
    """The area under the precision-recall curve, as in the devkit of PASCAL VOC since 2010; NaN without positives.

    Precision at a recall is the best at that recall or a higher one. Of equal scores the negatives come first, so that
    ties do not pay. Everingham et al. (2010), doi:10.1007/s11263-009-0275-4.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if not positive.any():
        return float("nan")
    hits = positive[np.lexsort((positive, -scores))]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[hits].sum() / hits.sum())


def exclusive_scores(c: float, rows: Rows, presence: Presence, others: Rows) -> Rows:
    """Scores (m, C) of each class by one softmax, the paper's: an image of several classes counts in part for each.

    Args:
        c: scikit-learn's C.
        rows, presence: of the training images, (n, r) and (n, C): 1 present, -1 absent, 0 not known.
        others: (m, r), the images to score. A class that no training image shows has NaN.
    """
    scores = np.full((len(others), presence.shape[1]), np.nan)
    images, labels = (presence == 1).nonzero()
    shares = 1 / (presence == 1).sum(1)[images]
    scores[:, np.unique(labels)] = _fitted("softmax", c, rows[images], labels, shares).predict_proba(others)
    return scores


def separate_scores(c: float, rows: Rows, presence: Presence, others: Rows) -> Rows:
    """Scores (m, C) by a classifier for each class; arguments and NaN as in `exclusive_scores`."""
    scores = np.full((len(others), presence.shape[1]), np.nan)
    for label, marks in enumerate(presence.T):
        known = marks != 0
        positive = marks[known] == 1
        if positive.any() and not positive.all():
            scores[:, label] = _fitted("softmax", c, rows[known], positive).decision_function(others)
    return scores


PRESENCE = {"exclusive": exclusive_scores, "each class": separate_scores}


def precisions(scores: Rows, presence: Presence) -> Rows:
    """The average precision (C,) of scores (m, C); images whose presence (m, C) is 0 are left out of that class."""
    return np.array(
        [
            np.nan if np.isnan(s).any() else average_precision(s[marks != 0], marks[marks != 0] == 1)
            for s, marks in zip(scores.T, presence.T, strict=True)
        ]
    )


def transferred_presence(
    features: NDArray[Any], presence: Presence, part: Split, kind: str, seed: int = 0
) -> tuple[Rows, float]:
    """The average precision (C,) of a classifier of `PRESENCE` on frozen features (N, D), and its C.

    C is the value of `GRID` with the best mean on a fourth of the training images, held out by seed.
    """
    if kind not in PRESENCE:
        raise unknown_name("classifier of presence", kind, PRESENCE)
    rows, others = standardised(features[part.train], features[part.test])
    marks, order = presence[part.train], np.random.default_rng(seed).permutation(len(part.train))
    held, rest = np.split(order, [max(1, len(order) // 4)])

    def mean_precision(c: float) -> float:
        values = precisions(PRESENCE[kind](c, rows[rest], marks[rest], rows[held]), marks[held])
        return 0.0 if np.isnan(values).all() else float(np.nanmean(values))

    best = max(GRID, key=mean_precision)
    return precisions(PRESENCE[kind](best, rows, marks, others), presence[part.test]), best


def near_duplicates(images: ArrayLike, others: ArrayLike, threshold: float = 0.95) -> list[tuple[int, int, float]]:
    """Pairs (image, other, correlation) of thumbnails (N, ...) and (M, ...) whose correlation is above the threshold.

    The paper removed such images from the sets that it transfers to (section 5.2), and gives no threshold.
    """
    rows = [x.reshape(len(x), -1) for x in (np.asarray(images, np.float64), np.asarray(others, np.float64))]
    pairs = []
    first = 0
    # the cosine of centred rows is their correlation; a gigabyte of pairs at a time
    for distances in pairwise_distances_chunked(*(x - x.mean(1, keepdims=True) for x in rows), metric="cosine"):
        for i, j in np.argwhere(1 - distances > threshold):
            pairs.append((first + int(i), int(j), 1 - float(distances[i, j])))
        first += len(distances)
    return pairs
