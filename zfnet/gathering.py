"""Statistics of every map in a scan: how often it fires, how strongly, and on images of which class.

All of it is made of one number for each image and map, the maximum of the map in the image, and before the clip where
the layer clips. The statistics add up exactly, in any order: counts, sums in whole units of 2**-24, and the maxima of a
few images that are drawn beforehand. So they do not depend on batches, shards or interruptions.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zfnet.data.images import Images
from zfnet.errors import InputError

SAMPLED = 512  # images, of which every map's maximum is kept
OCTAVES = 20  # of bins, on either side of 1
UNIT = 2**24  # of the sums: each counts 1 / UNIT
MOST_CLASSES = 2**16  # larger labels are not numbers of classes
_AT_ONCE = 512  # images whose maxima are counted together


def _edges() -> Tensor:
    octaves = 2.0 ** torch.arange(-OCTAVES, OCTAVES)[:, None]
    above = torch.cat([(octaves * torch.tensor([1, 1.25, 1.5, 1.75])).flatten(), torch.tensor([2.0**OCTAVES])])
    infinite = torch.tensor([torch.inf])
    return torch.cat([-infinite, -above.flip(0), above, infinite])


EDGES = _edges()  # (B + 1,) float32: bin i counts the values v with EDGES[i] < v <= EDGES[i + 1]
BINS = len(EDGES) - 1  # four an octave from 2**-20 to 2**20, as many below 0, one around 0, and one beyond each end


class Statistics(NamedTuple):
    """Of the C maps of one layer, over the maximum of each map in each image, before the clip where the layer clips.

    K is the number of classes, S that of the sampled images.

    Attributes:
        fires: (C,) int64: images in which the maximum is above 0.
        histogram: (C, BINS) int32: images by their maximum; bins as in EDGES.
        sums: (C, K + 1) int64: sums of the maxima by class in units of 1 / UNIT; last: of images without label.
        maxima: (C, S) float32: of the sampled images; -inf where one could not be read, or is of another part.
        places: (C, S) int32: where they are, row * columns + column; -1 where there is none.
    """

    fires: Tensor
    histogram: Tensor
    sums: Tensor
    maxima: Tensor
    places: Tensor

    @classmethod
    def none(cls, maps: int, classes: int, sampled: int, device: torch.device | str = "cpu") -> "Statistics":
        """The statistics of no image."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            zeros(maps),
            zeros(maps, BINS, dtype=torch.int32),
            zeros(maps, classes + 1),
            torch.full((maps, sampled), -torch.inf, device=device),
            zeros(maps, sampled, dtype=torch.int32) - 1,
        )

    def to(self, device: torch.device | str) -> "Statistics":
        return Statistics(*(column.to(device) for column in self))

    def merge(self, other: "Statistics") -> "Statistics":
        """The statistics of both; exact for disjoint parts of a dataset, in any order."""
        if len(self.fires) != len(other.fires) or self.maxima.shape != other.maxima.shape:
            shapes = " and ".join(
                f"{len(one.fires)} maps, {one.maxima.shape[1]} sampled images" for one in (self, other)
            )
            raise InputError(f"cannot merge statistics of {shapes}; scan parts of one dataset with one network")
        classes = max(self.sums.shape[1], other.sums.shape[1]) - 1
        return Statistics(
            self.fires + other.fires,
            self.histogram + other.histogram,
            widened(self.sums, classes) + widened(other.sums, classes),
            torch.maximum(self.maxima, other.maxima),
            torch.maximum(self.places, other.places),
        )


def sample(images: int) -> Tensor:
    """The images of a dataset of that many whose maxima are kept: (S,) int64, ascending; all, where there are few.

    They depend on nothing else, so that every part of a scan knows them beforehand.
    """
    if images <= SAMPLED:
        return torch.arange(images)
    numbers: set[int] = set()
    for number in itertools.count():
        numbers.add(int.from_bytes(blake2b(f"{images} {number}".encode(), digest_size=16).digest(), "big") % images)
        if len(numbers) == SAMPLED:
            break
    return torch.tensor(sorted(numbers))


def widened(counts: Tensor, classes: int) -> Tensor:
    """Counts (..., K + 1) by class for as many classes or more; the last column stays the last."""
    extra = classes + 1 - counts.shape[-1]
    if extra <= 0:
        return counts
    return torch.cat([counts[..., :-1], counts.new_zeros(*counts.shape[:-1], extra), counts[..., -1:]], -1)


def classes_of(images: Images) -> int:
    """How many classes a dataset is known to have before its items are read; those read may show more."""
    labelled = max(images.labels, default=-1) + 1 if images.labels else 0
    return max(len(images.classes), min(labelled, MOST_CLASSES))


class Maxima(NamedTuple):
    """The maxima of one batch of N images in the maps of a layer, of which n images are sampled."""

    values: Tensor  # (N, C) float32
    places: Tensor  # (n, C) int32


class Part(NamedTuple):
    """The maxima of one batch, by layer."""

    index: Tensor  # type: ignore[assignment]  # (N,): which images
    labels: Tensor  # (N,): -1 where there is none
    maxima: Mapping[str, Maxima]  # by layer


class Gathering(NamedTuple):
    """The statistics so far. They are never changed in place: an interrupt leaves all of a batch or none of it."""

    statistics: Mapping[str, Statistics]
    class_images: Tensor  # (K + 1,) int64: images by label; last: without one
    sampled: Tensor  # (S,)
    images: int  # of the whole dataset
    waiting: tuple[Part, ...] = ()  # batches that are not counted yet

    @classmethod
    def none(cls, images: Images) -> "Gathering":
        """The statistics of a dataset before its first batch."""
        return cls({}, torch.zeros(classes_of(images) + 1, dtype=torch.int64), sample(len(images)), len(images))

    def with_part(self, part: Part) -> "Gathering":
        """The statistics with one more batch."""
        gathering = self._replace(waiting=(*self.waiting, part))
        return gathering.counted() if sum(len(part.index) for part in gathering.waiting) >= _AT_ONCE else gathering

    def counted(self) -> "Gathering":
        """The statistics with every waiting batch counted."""
        if not self.waiting:
            return self
        index, labels = (torch.cat([getattr(part, name) for part in self.waiting]) for name in ("index", "labels"))
        classes = max(len(self.class_images) - 1, int(labels.max()) + 1)
        if classes > MOST_CLASSES:
            image = int(index[labels.argmax()])
            raise InputError(
                f"the label of item {image} is {classes - 1}; statistics by class take labels below {MOST_CLASSES}"
            )
        column = labels.where(labels >= 0, classes)
        images = widened(self.class_images, classes) + torch.bincount(column, minlength=classes + 1)
        statistics = {}
        for layer in self.waiting[0].maxima:
            parts = [part.maxima[layer] for part in self.waiting]
            values, places = torch.cat([part.values for part in parts]), torch.cat([part.places for part in parts])
            self._check(layer, values, index)
            previous = self.statistics.get(layer)
            if previous is None:
                previous = Statistics.none(values.shape[1], classes, len(self.sampled), values.device)
            statistics[layer] = counted(previous, values, column, classes, self.columns(index), places)
        return self._replace(statistics=statistics, class_images=images, waiting=())

    def columns(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Which of these images are sampled, and their columns among the sampled ones."""
        if not len(self.sampled):
            return index[:0], index[:0]
        columns = torch.searchsorted(self.sampled, index).clamp(max=len(self.sampled) - 1)
        rows = (self.sampled[columns] == index).nonzero().flatten()
        return rows, columns[rows]

    def content(self) -> dict[str, Any]:
        """The content of a file of state."""
        counted = self.counted()
        statistics = {layer: [column.cpu() for column in one] for layer, one in counted.statistics.items()}
        return {"statistics": statistics, "class_images": counted.class_images}

    def of(self, content: Any, maps: Mapping[str, int], images: int, device: torch.device) -> "Gathering":
        """The statistics in the content of a file of state.

        ValueError, or another error of Python, if no scan that began like this one could have written the content.

        Args:
            content: what `content()` gave.
            maps: how many maps each layer has.
            images: how many images were read.
            device: for the statistics.
        """
        class_images, statistics = content["class_images"], content["statistics"]
        is_vector = type(class_images) is Tensor and class_images.dtype == torch.int64 and class_images.ndim == 1
        classes = len(class_images) - 1
        valid = is_vector and len(self.class_images) - 1 <= classes <= MOST_CLASSES and set(statistics) == set(maps)
        valid = valid and bool((class_images >= 0).all()) and int(class_images.sum()) == images
        valid = valid and all(
            are_statistics(one, maps[layer], classes, len(self.sampled), images) for layer, one in statistics.items()
        )
        if not valid or set(content) != {"statistics", "class_images"}:
            raise ValueError("not the content of a gathering")
        loaded = {layer: Statistics(*one).to(device) for layer, one in statistics.items()}
        return self._replace(statistics=loaded, class_images=class_images)

    def _check(self, layer: str, values: Tensor, index: Tensor) -> None:
        """Raises InputError for values whose sum over all images might not fit in 64 bits."""
        limit = 2**63 / UNIT / 2 / max(self.images, 1)
        if len(values) and values.shape[1] and not values.abs().max() < limit:
            image = int(index[int((values.abs() >= limit).any(1).nonzero()[0])])
            raise InputError(
                f"{layer} gives {values.abs().max():.3g} on image {image}; of {self.images} images, values below "
                f"{limit:.3g} can be added: scan without statistics, or a part of the data"
            )


def counted(
    previous: Statistics, values: Tensor, column: Tensor, classes: int, sampled: tuple[Tensor, Tensor], places: Tensor
) -> Statistics:
    """Statistics with the maxima of more images.

    Args:
        previous: the statistics so far, which are not changed.
        values: (N, C) float32.
        column: (N,) of the sums, for each image.
        classes: how many there are.
        sampled: which of the images are sampled, (n,), and their columns, (n,).
        places: (n, C) int32, of the sampled.
    """
    values = values.T.contiguous()  # (C, N): the values of a map are neighbours in memory
    histogram, sums = previous.histogram.clone(), widened(previous.sums, classes).clone()
    histogram.scatter_add_(1, bins(values), histogram.new_ones(1, 1).expand(values.shape))
    sums.scatter_add_(1, column.to(values.device).expand(values.shape), (values * UNIT).round().long())
    rows, columns = (entries.to(values.device) for entries in sampled)
    maxima, positions = previous.maxima.clone(), previous.places.clone()
    maxima[:, columns], positions[:, columns] = values[:, rows], places.T
    return Statistics(previous.fires + (values > 0).sum(1), histogram, sums, maxima, positions)


def bins(values: Tensor) -> Tensor:
    """The bin of each value, float32 and finite, in int64: how many finite edges are below it.

    Floats of one sign are ordered as their bits are when these are read as whole numbers, in which the edges are evenly
    spaced.
    """
    distance = 2**21  # of two edges: bits of a mantissa after its first two
    first = int(EDGES[BINS // 2 + 1].view(torch.int32))  # the smallest edge above 0
    edges = BINS // 2
    bits = values.contiguous().view(torch.int32)
    order = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits).clamp(-first - edges * distance, first + edges * distance)
    below_zero = (edges - 1 + ((order + first + distance - 1) >> 21)).clamp(0, edges)
    above_zero = ((order - first + distance - 1) >> 21).clamp(0, edges)
    return (below_zero + above_zero).long()


def are_statistics(columns: Sequence[Any], maps: int, classes: int, sampled: int, images: int) -> bool:
    """Whether these tensors can be the statistics of that many maps, classes, sampled images and images read."""
    template = Statistics.none(maps, classes, sampled, "meta")
    fits = len(columns) == len(template) and all(
        type(one) is Tensor and one.layout == torch.strided and (one.shape, one.dtype) == (other.shape, other.dtype)
        for one, other in zip(columns, template, strict=True)
    )
    if not fits:
        return False
    statistics = Statistics(*columns)
    counts = bool((statistics.histogram >= 0).all() and (statistics.histogram.sum(1) == images).all())
    fires = bool((statistics.fires >= 0).all() and (statistics.fires <= images).all())
    return counts and fires and not statistics.maxima.isnan().any() and bool((statistics.places >= -1).all())


def merged(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts."""
    first, *others = parts
    for other in others:
        first = first.merge(other)
    return first
