"""The images that an atlas shows, read as few times as memory allows."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from zfnet.checks import Pair
from zfnet.data.batches import Batches, _cores, _start_method
from zfnet.data.images import Images, read_item
from zfnet.errors import InputError

MEMORY = 2**28  # bytes of images that are kept, as they will be needed again
_AT_ONCE = 8  # images in a batch that is read
_FEW = 48  # images, below which other processes are not worth their start


class Reader:
    """Images by index, in groups, of which those that are needed most often are kept.

    Args:
        images: the dataset.
        uses: how often each of its images will be needed.
        image_size: rows and columns that all of them must have.
        channels: that they have.
        workers: processes that read; see `Batches`.
        memory: bytes of what is kept; 0: MEMORY.
    """

    def __init__(
        self,
        images: Images,
        uses: Mapping[int, int],
        image_size: Pair,
        channels: int,
        workers: int | None,
        memory: int = 0,
    ):
        self.images, self.workers, self.image_size = images, workers, image_size
        self.labels: dict[int, int] = {}
        self._kept: dict[int, Tensor] = {}
        most = (memory or MEMORY) // max(1, 4 * channels * image_size[0] * image_size[1])
        ordered = sorted(uses.items(), key=lambda use: (-use[1], use[0]))
        self._wanted = {image for image, count in ordered[:most] if count > 1}

    def label(self, image: int) -> int:
        """The label of an image, -1 where it has none."""
        if image not in self.labels:
            known = self.images.labels
            self.labels[image] = read_item(self.images, image)[1] if known is None else known[image]
        return self.labels[image]

    def groups(self, groups: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """The images (n, C, H, W) of each group; a group may begin with the image that ended the one before."""
        missing, before = [], -1
        for group in groups:
            missing += [image for image in group if image not in self._kept and image != before]
            before = group[-1] if group else before
        stream, last = self._read(missing), {-1: torch.empty(0)}
        for group in groups:
            tensors = []
            for image in group:
                if image in self._kept:
                    tensors.append(self._kept[image])
                elif image in last:
                    tensors.append(last[image])
                else:
                    found, tensor = next(stream)
                    assert found == image
                    last = {image: tensor}
                    if image in self._wanted:  # a copy: what a worker sends lies in memory that is shared, and scarce
                        self._kept[image] = tensor.clone()
                    tensors.append(tensor)
            yield torch.stack(tensors)

    def _read(self, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        workers = self.workers
        if workers is None and len(indices) >= _FEW and _start_method() == "fork":
            workers = min(_cores(), 8)
        batches = Batches(self.images, _AT_ONCE, indices=torch.tensor(indices), workers=workers)
        for batch in batches:
            if batches.broken:
                raise InputError(f"{batches.broken[0]}; it was scanned, and cannot be read again")
            if tuple(batch.images.shape[-2:]) != self.image_size:
                sizes = " and ".join(
                    f"{rows} x {columns}" for rows, columns in (self.image_size, batch.images.shape[-2:])
                )
                name = self.images.name(int(batch.index[0]))
                raise InputError(f"the images are of {sizes} pixels ({name}); an atlas needs one size")
            self.labels.update(zip(batch.index.tolist(), batch.labels.tolist(), strict=True))
            yield from zip(batch.index.tolist(), batch.images, strict=True)
        if batches.broken:
            raise InputError(f"{batches.broken[0]}; it was scanned, and cannot be read again")
