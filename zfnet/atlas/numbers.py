"""The numbers of every map in an atlas: how strong, how often, for which classes, and what feeds it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zfnet.atlas.layers import Layer
from zfnet.atlas.links import Links
from zfnet.atlas.panels import QUANTILES, Examples, Panels
from zfnet.atlas.writing import exact, rounded
from zfnet.gathering import UNIT, Statistics
from zfnet.winners import TopActivations

CLASSES = 5  # of those that a map answers most strongly, how many are named


@dataclass
class Numbers:
    """The numbers of a layer's maps.

    Args:
        layer: which.
        top: its winners.
        statistics: of its maxima.
        images: how many images were read.
        class_images: (K + 1,) of each class; last: without one.
        label: of an image.
        weight, readers: which maps feed its maps most, and which read them most.
    """

    layer: Layer
    top: TopActivations
    statistics: Statistics
    images: int
    class_images: Tensor
    label: Callable[[int], int]
    weight: Links
    readers: Links

    def __post_init__(self) -> None:
        classes = len(self.class_images) - 1
        count = self.class_images[:classes].double()
        sums = self.statistics.sums.double() / UNIT
        self._known = (count > 0).nonzero().flatten()
        self._means = sums[:, : self.statistics.sums.shape[1] - 1][:, self._known] / count[self._known]
        self._mean = sums.sum(1) / max(1, self.images)
        self.dead = self.statistics.fires == 0

    def selectivity(self, number: int) -> float | None:
        """The class selectivity index: the largest mean of a class less the mean of the others, over their sum.

        None with fewer than two classes, and where means are below 0. Morcos et al. (2018), arXiv:1803.06959.
        """
        means = self._means[number]
        if len(means) < 2:
            return None
        largest = float(means.max())
        others = (float(means.sum()) - largest) / (len(means) - 1)
        if others < 0 or largest + others <= 0:
            return None
        return (largest - others) / (largest + others)

    def preferred(self, number: int) -> list[tuple[int, float]]:
        """The classes with the largest means, and these; of equals, the first."""
        if self.dead[number]:
            return []
        means = self._means[number]
        order = means.argsort(descending=True, stable=True)[:CLASSES].tolist()
        return [(int(self._known[n]), float(means[n])) for n in order]

    def won(self, number: int) -> list[int]:
        """The ranks at which there is a winner: above 0."""
        positive = (self.top.image[number] >= 0) & (self.top.unclipped[number] > 0)
        return positive.nonzero().flatten().tolist()

    def shares(self, number: int) -> dict[int, float]:
        """The share of each class among the winners."""
        labels = [self.label(int(self.top.image[number, rank])) for rank in self.won(number)]
        return {label: labels.count(label) / len(labels) for label in sorted({*labels})}

    def column(self, number: int, focus: Sequence[float]) -> dict[str, Any]:
        """A map's entry in each of the columns."""
        preferred, shares, ranks = self.preferred(number), self.shares(number), self.won(number)
        kept = [focus[rank] for rank in ranks]
        return {
            "map": number,
            "strength": exact(float(self.top.unclipped[number, 0])) if ranks else 0,
            "fires": rounded(int(self.statistics.fires[number]) / max(1, self.images)),
            "selectivity": _rounded(self.selectivity(number)),
            "class": preferred[0][0] if preferred else -1,
            "agree": rounded(shares.get(preferred[0][0], 0.0)) if preferred and ranks else None,
            "focus": rounded(sum(kept) / len(kept)) if kept else None,
            "dead": bool(self.dead[number]),
        }

    def entry(self, n: int, number: int, shown: Examples, panels: Panels) -> dict[str, Any]:
        """The entry of a map; `n` is its row in the examples and panels."""
        top, ranks = self.top, self.won(number)
        images = [int(top.image[number, rank]) for rank in ranks]
        shares, histogram = self.shares(number), self.statistics.histogram[number]
        entry: dict[str, Any] = {
            "map": number,
            "value": [exact(float(top.value[number, rank])) for rank in ranks],
            "image": images,
            "row": [int(top.row[number, rank]) for rank in ranks],
            "column": [int(top.column[number, rank]) for rank in ranks],
            "label": [self.label(image) for image in images],
            "box": [panels.boxes[n, rank].tolist() for rank in ranks],
            "bins": [[b, int(histogram[b])] for b in histogram.nonzero().flatten().tolist()],
            "fires": rounded(int(self.statistics.fires[number]) / max(1, self.images)),
            "mean": rounded(float(self._mean[number])),
            "classes": [[c, rounded(mean), rounded(shares.get(c, 0.0))] for c, mean in self.preferred(number)],
            "selectivity": _rounded(self.selectivity(number)),
            "focus": [rounded(float(panels.focus[n, rank])) for rank in ranks],
            "area": [rounded(float(panels.area[n, rank])) for rank in ranks],
            "examples": self._examples(n, shown, panels),
            "weight": _links(self.weight, number),
            "signal": _links(panels.signal, n),
            "readers": _links(self.readers, number),
            "steps": panels.steps[n].tolist() if ranks else [],
        }
        if self.layer.clipped:
            entry["unclipped"] = [exact(float(top.unclipped[number, rank])) for rank in ranks]
        return entry

    def _examples(self, n: int, shown: Examples, panels: Panels) -> list[dict[str, Any]]:
        counts = []
        for place, quantile in enumerate(QUANTILES):
            value, image, row, column = (entries[n, place].item() for entries in shown)
            if image >= 0:
                box = panels.example_boxes[n, place].tolist()
                counts.append(
                    {
                        "quantile": quantile,
                        "value": exact(value),
                        "image": int(image),
                        "row": int(row),
                        "column": int(column),
                        "box": box,
                        "label": self.label(int(image)),
                    }
                )
        return counts


def _rounded(value: float | None) -> float | int | None:
    return None if value is None else rounded(value)


def _links(links: Links, number: int) -> list[list[Any]]:
    return [[layer, m, rounded(weight)] for layer, m, weight in links.of(number)]
