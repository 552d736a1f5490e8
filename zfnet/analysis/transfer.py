"""Features learned on one set of images, judged by another: a new classifier on top of a frozen network.

Rows of features are standardised, and turned so that no more numbers are left than there are training images, which
changes no inner product among them and with training images: so a linear classifier on 290,400 features costs what one
on 600 does, and is the same classifier.  How much it is regularised is chosen on a part of the training images alone.
Zeiler & Fergus (2014), section 5.2: 15, 30, ... training images of each class, up to 50 test images of each, the mean
over classes of the accuracy, mean and deviation over folds.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits  # of scikit-learn

from zfnet.errors import InputError, unknown_name

GRID = tuple(10.0**n for n in range(-2, 6))  # scikit-learn's C: rows have a mean square length of 1
UNCHOSEN = 100.0  # where a class has one training image, of which none can be spared
CHUNK = 2**13  # columns at a time
CLASSIFIERS: dict[str, Callable[[float], Any]] = {
    "softmax": lambda c: LogisticRegression(C=c, max_iter=2000),
    # one against all others, squared hinge; for a large C the primal takes ten times as long
    "SVM": lambda c: LinearSVC(C=c, dual=True, random_state=0),
}


class Split(NamedTuple):
    """Which images one fold trains and tests on; int64, no image in both."""

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
    """`per_class` training images of each class, drawn by seed and fold, and up to `test` of the others.

    With more training images of a class those of fewer are among them.
    official: which images are "train" and "test" in
    fold 0; the other folds are drawn from all.  InputError where a class has too few.
    """
    if per_class < 1 or test < 1:
        raise InputError(f"{per_class} training and {test} test images of each class: give at least 1 of each")
    chosen: list[list[NDArray[np.int64]]] = [[], []]
    marked = np.asarray(labels)
    for label in range(max(len(classes), int(marked.max(initial=-1)) + 1)):
        mine = np.random.default_rng([seed, fold, label]).permutation((marked == label).nonzero()[0])
        pools, name = (mine, mine[per_class:]), f" ({classes[label]!r})" if label < len(classes) else ""
        if official is not None and fold == 0:
            given = np.array([official[i] for i in mine], dtype=object)
            pools = mine[given == "train"], mine[given == "test"]
        if len(pools[0]) < per_class or not len(pools[1]):
            raise InputError(
                f"class {label}{name} has {len(pools[0])} images to train on, of which {per_class} are asked for and"
                f" leave {len(pools[1])} to test on; give fewer, or leave the class out"
            )
        chosen[0].append(pools[0][:per_class])
        chosen[1].append(pools[1][-test:])
    return Split(*(np.concatenate(part) for part in chosen))


def standardised(train: ArrayLike, test: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features (n, D) and (m, D), standardised by the training images, as (n, r) and (m, r) with r <= min(n, D).

    Features that do not vary are left out; rows of `train` have a mean square length of 1.
    """
    train, test = np.asanyarray(train), np.asanyarray(test)
    inner, across = np.zeros((len(train), len(train))), np.zeros((len(test), len(train)))
    varying = 0
    kept: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    for first in range(0, train.shape[1], CHUNK):
        rows = np.asarray(train[:, first : first + CHUNK], dtype=np.float32)
        others = np.asarray(test[:, first : first + CHUNK], dtype=np.float32)
        mean, spread = rows.mean(0), rows.std(0)
        there = spread > 1e-6 * np.abs(rows).max(initial=0)
        varying += int(there.sum())
        rows, others = ((x[:, there] - mean[there]) / spread[there] for x in (rows, others))
        if train.shape[1] <= len(train):  # there is nothing to turn
            kept.append((rows, others))
        else:
            inner += rows @ rows.T
            across += others @ rows.T
    if not varying:
        raise InputError("none of the features varies over the training images: nothing can be told apart by them")
    if kept:
        mine, theirs = (np.concatenate(part, 1).astype(np.float64) for part in zip(*kept, strict=True))
        return mine / varying**0.5, theirs / varying**0.5
    lengths, directions = np.linalg.eigh(inner / varying)
    there = lengths > 1e-7 * lengths[-1]
    roots = np.sqrt(lengths[there])
    return directions[:, there] * roots, across @ directions[:, there] / (varying * roots)


def fit(kind: str, rows: NDArray[np.float64], labels: NDArray[np.int64], seed: int = 0) -> Any:
    """A classifier of `CLASSIFIERS` on rows (n, r), as scikit-learn has it: `predict`, `decision_function`, `C`.

    Its C is that of `GRID` with the best mean accuracy over classes on a fourth of the rows of each class (one at
    least), drawn by seed, of those that are equally good the smallest; then it is fitted to all rows.
    """
    if kind not in CLASSIFIERS:
        raise unknown_name("classifier", kind, CLASSIFIERS)
    fewest = np.unique(labels, return_counts=True)[1].min()
    best = UNCHOSEN
    if fewest > 1:
        held = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            mine = np.random.default_rng([seed, int(label)]).permutation((labels == label).nonzero()[0])
            held[mine[: max(1, len(mine) // 4)]] = True
        tried = {
            c: mean_accuracy(_fitted(kind, c, rows[~held], labels[~held]).predict(rows[held]), labels[held])
            for c in GRID
        }
        best = max(tried, key=lambda c: (tried[c], -c))
    return _fitted(kind, best, rows, labels)


def _fitted(
    kind: str, c: float, rows: NDArray[np.float64], labels: NDArray[Any], shares: NDArray[np.float64] | None = None
) -> Any:
    # a second thread waits more than it works on so few rows
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # with next to no regularisation: those are not chosen
        return CLASSIFIERS[kind](c).fit(rows, labels, shares)


def mean_accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """The share of right answers of each class, averaged over the classes that occur in `labels`."""
    right, labels = np.asarray(predicted) == np.asarray(labels), np.asarray(labels)
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def transferred(
    features: NDArray[Any], labels: Sequence[int], part: Split, kinds: Sequence[str] = ("softmax",), seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Of each kind of classifier on frozen features (N, D): its mean accuracy over classes, and the C chosen for it."""
    marked = np.asarray(labels)
    rows, others = standardised(features[part.train], features[part.test])
    found = {}
    for kind in kinds:
        classifier = fit(kind, rows, marked[part.train], seed)
        found[kind] = mean_accuracy(classifier.predict(others), marked[part.test]), float(classifier.C)
    return found


def average_precision(scores: ArrayLike, positive: ArrayLike) -> float:
    """The area under the precision-recall curve, as the devkit of PASCAL VOC has it since 2010.

    Precision at a recall is the best at that recall or a higher one.  Of equal scores the negatives come first, so that
    ties do not pay.  NaN without positives.  Everingham et al. (2010), doi:10.1007/s11263-009-0275-4.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if not positive.any():
        return float("nan")
    hits = positive[np.lexsort((positive, -scores))]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[hits].sum() / hits.sum())


def presence_scores(
    kind: str, c: float, rows: NDArray[np.float64], presence: NDArray[np.int8], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How surely each of `others` (m, r) shows each class (m, C), by a classifier on rows (n, r) that show `presence`.

    kind: "exclusive", the paper's: one softmax over all classes, in which an image that shows several counts as a part
    of an image for each; "each class": a classifier for every class by itself.  presence: (n, C), 1 there, -1 not
    there, 0 left out.  NaN for a class that no training image shows.
    """
    found = np.full((len(others), presence.shape[1]), np.nan)
    if kind == "exclusive":
        images, labels = (presence == 1).nonzero()
        shares = 1 / (presence == 1).sum(1)[images]
        found[:, np.unique(labels)] = _fitted("softmax", c, rows[images], labels, shares).predict_proba(others)
    elif kind == "each class":
        for n, marks in enumerate(presence.T):
            there = marks[told := marks != 0] == 1
            if there.any() and not there.all():
                found[:, n] = _fitted("softmax", c, rows[told], there).decision_function(others)
    else:
        raise unknown_name("classifier of presence", kind, ("exclusive", "each class"))
    return found


def precisions(scores: NDArray[np.float64], presence: NDArray[np.int8]) -> NDArray[np.float64]:
    """The average precision (C,) of each class; images whose mark of it is 0 are left out.  NaN without positives."""
    return np.array(
        [
            np.nan if np.isnan(s).any() else average_precision(s[marks != 0], marks[marks != 0] == 1)
            for s, marks in zip(scores.T, presence.T, strict=True)
        ]
    )


def transferred_presence(
    features: NDArray[Any], presence: NDArray[np.int8], part: Split, kind: str, seed: int = 0
) -> tuple[NDArray[np.float64], float]:
    """The average precision (C,) of a classifier of `presence_scores` on frozen features (N, D), and its C.

    C is that of `GRID` with the best mean on a fourth of the training images, drawn by seed; then it is fitted to all.
    """
    rows, others = standardised(features[part.train], features[part.test])
    marks, order = presence[part.train], np.random.default_rng(seed).permutation(len(part.train))
    held, rest = np.split(order, [max(1, len(order) // 4)])
    tried = {}
    for c in GRID:
        found = precisions(presence_scores(kind, c, rows[rest], marks[rest], rows[held]), marks[held])
        tried[c] = np.nanmean(found) if not np.isnan(found).all() else 0.0
    best = max(tried, key=lambda c: (tried[c], -c))
    return precisions(presence_scores(kind, best, rows, marks, others), presence[part.test]), best


def near_duplicates(images: ArrayLike, others: ArrayLike, threshold: float = 0.95) -> list[tuple[int, int, float]]:
    """Pairs (image, other, correlation) of thumbnails (N, ...) and (M, ...) whose normalised correlation is above.

    The paper removed such images from the sets that it transfers to (section 5.2), and gives no threshold.
    """
    rows = []
    for each in (images, others):
        flat = np.asarray(each, dtype=np.float64).reshape(len(np.asarray(each)), -1)
        flat = flat - flat.mean(1, keepdims=True)
        length = np.linalg.norm(flat, axis=1, keepdims=True)
        rows.append(np.divide(flat, length, out=np.zeros_like(flat), where=length > 0))
    correlation = rows[0] @ rows[1].T
    found = np.argwhere(correlation > threshold)
    return [(int(i), int(j), float(correlation[i, j])) for i, j in found]
