"""The judge: a second, independent network that measures the similarity of parts of images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError
from zfnet.graph import Graph
from zfnet.layers import spread
from zfnet.recording import activations
from zfnet.rendering import resized

SIZE = (64, 64)  # pixels: the size of all parts of images
DREAMSIM, LARGE, BATCH = "dreamsim", (224, 224), 32  # its name, the size of its images, and how many at once
DEEPEST = 3  # of the judge's layers, which describe them


def cut(pictures: Tensor, boxes: Tensor, size: tuple[int, int] = SIZE) -> Tensor:
    """Cut boxes (M, 4: top, left, bottom, right) from pictures (M, C, H, W), resized to one size: (M, C, *size)."""
    parts = pictures.new_empty(*pictures.shape[:2], *size)
    for part, picture, (top, left, bottom, right) in zip(parts, pictures, boxes.tolist(), strict=True):
        part[:] = resized(picture[None, :, top:bottom, left:right], size)[0]
    return parts


class Judge:
    """Describes parts of images by the maps of a network's deepest layers, averaged over what is shown.

    Args:
        model: the second network, with its preprocessing.
        source: how the images of the first network were normalised.
    """

    def __init__(self, model: nn.Module, source: Preprocessing):
        self.model, self.graph, self.source = model, Graph(model), source
        self.layers = spread(self.graph, SIZE)[-DEEPEST:]

    def describe(self, parts: Tensor, shown: Tensor | None = None) -> Tensor:
        """Describe parts (M, C, *SIZE), visible where `shown` (M, *SIZE) is 1 and grey where it is 0: (M, D)."""
        images = Preprocessing.of(self.model).normalise(self.pixels(parts, shown))
        maps = activations(self.graph, images, self.layers).values()
        return torch.cat([pooled(of_layer, shown) for of_layer in maps], 1)

    def pixels(self, parts: Tensor, shown: Tensor | None) -> Tensor:
        """The visible pixels, in 0..1 and three channels; grey is the mean colour of the first network's images."""
        seen = parts if shown is None else parts * shown[:, None].to(parts)
        return self.source.pixels(seen).expand(-1, 3, -1, -1)


class DreamSim(Judge):
    """Describes parts of images by DreamSim's embeddings: Fu et al. (2023), arXiv:2306.09344.

    The package downloads its weights. Raises InputError if it is not installed.

    Args:
        source: how the images of the first network were normalised.
        device: of its network.
    """

    def __init__(self, source: Preprocessing, device: torch.device):
        try:
            from dreamsim import dreamsim
        except ImportError:
            raise InputError(f"judge={DREAMSIM} needs a package of that name: pip install dreamsim") from None
        model, _ = dreamsim(pretrained=True, device=str(device))
        self.model, self.source, self.embed = model, source, model.embed

    def describe(self, parts: Tensor, shown: Tensor | None = None) -> Tensor:
        images = self.pixels(parts, shown).split(BATCH)
        with torch.inference_mode():
            return torch.cat([self.embed(resized(some, LARGE).clamp(0, 1)) for some in images])


def pooled(maps: Tensor, shown: Tensor | None) -> Tensor:
    """The means of maps (M, D, h, w) over what is shown (M, H, W), from 0 to 1, or all of it; (M, D) as they are."""
    if maps.ndim != 4:
        return maps
    weights = maps.new_ones(len(maps), *SIZE) if shown is None else shown.to(maps)
    weights = F.adaptive_avg_pool2d(weights[:, None], (maps.shape[2], maps.shape[3]))
    total = weights.sum((2, 3)).clamp(min=torch.finfo(weights.dtype).tiny)
    return (maps * weights).sum((2, 3)) / total


def standardised(descriptions: Tensor, *others: Tensor) -> list[Tensor]:
    """Standardise descriptions (M, D), and others, by the mean and deviation of the first, feature by feature.

    Features that do not vary become 0.
    """
    mean, deviation = descriptions.mean(0), descriptions.std(0)
    varies = deviation > 0
    return [torch.where(varies, (of - mean) / deviation.where(varies, 1.0), 0.0) for of in (descriptions, *others)]
