"""From a photograph to what a network sees, and back.

A network's answers mean nothing without the size, channel order, range and mean it was trained with.
A `Preprocessing` holds these as plain values, so they can be saved with the weights, undone for display
(`pixels`), and applied to a batch inside a differentiable computation (`normalise`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zfnet.errors import InputError, unknown_name

Mode = Literal["shortest", "warp"]
Channels = Literal["RGB", "BGR"]
Interpolation = Literal["bilinear", "bicubic"]

_ORIENTATION = 0x0112  # the EXIF tag; its values say how to turn the stored picture upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels: show them as stored, as viewers do
        return None


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB, turned as its EXIF orientation says.

    16-bit greys are scaled to 8 bits. What is transparent becomes white, as a page or a viewer shows it, so
    that the network sees what a person sees. 32-bit or floating-point pixels: InputError.
    """
    image.load()
    turn = _turn(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise InputError("32-bit pixels have no agreed white; save it with 8 or 16 bits a channel")
        image = Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))  # 65535 -> 255
    elif "transparency" in image.info or "A" in image.getbands():
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
        image.info = {}  # the copied EXIF would turn it a second time
    return image


def rgb_tensor(image: Image.Image) -> Tensor:
    """An RGB image as float32 (3, H, W) in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def _image(image: Image.Image | np.ndarray) -> Image.Image:
    if not isinstance(image, np.ndarray):
        return image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"an array {image.shape} of {image.dtype} is no image; give uint8 (H, W, 3)")
    return Image.fromarray(image)


def _is_number(value: object, above: float) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) and value > above


@dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes a network's input; travels with the weights.

    `Preprocessing()` is that of torchvision's ImageNet weights. An image of `size` x `size` already is what
    the network sees, as a rendered scene is: it is only normalised. Every other is resized, then cropped at
    its centre. Resizing is Pillow's, antialiased, with which the published weights were evaluated.
    Bad values: InputError.
    """

    size: int = 224  # side of the square the network sees, pixels
    resize: int | None = 256  # pixels; None: no resizing
    interpolation: Interpolation = "bilinear"  # of resizing
    mode: Mode = "shortest"  # which sides become `resize`: the shortest (keeping proportions), or both
    channels: Channels = "RGB"  # the network's channel order
    scale: float = 1.0  # value of a white pixel before mean and std
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # in the network's channel order and scale
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    # (3, S, S), S from `size` up: subtracted in place of `mean` from images of side S, its middle from those of `size`
    mean_image: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        sides = {"size": self.size} if self.resize is None else {"size": self.size, "resize": self.resize}
        for name, value in sides.items():
            if type(value) is not int or value < 1:
                raise InputError(f"preprocessing {name} is {value!r}; give a positive number of pixels")
        if min(sides.values()) < self.size:
            raise InputError(f"preprocessing resize {self.resize} is less than size {self.size}")
        if self.mode not in get_args(Mode):
            raise unknown_name("preprocessing mode", str(self.mode), get_args(Mode))
        if self.channels not in get_args(Channels):
            raise unknown_name("preprocessing channel order", str(self.channels), get_args(Channels))
        if self.interpolation not in get_args(Interpolation):
            raise unknown_name("preprocessing interpolation", str(self.interpolation), get_args(Interpolation))
        if not _is_number(self.scale, above=0):
            raise InputError(f"preprocessing scale is {self.scale!r}; give a finite number above 0")
        for name, above in (("mean", -math.inf), ("std", 0)):
            values = getattr(self, name)
            if not (
                isinstance(values, (list, tuple))
                and len(values) == 3
                and all(_is_number(value, above) for value in values)
            ):
                wanted = "three finite numbers" + (" above 0" if above == 0 else "")
                raise InputError(f"preprocessing {name} is {values!r}; give {wanted}")
            object.__setattr__(self, name, tuple(map(float, values)))  # JSON has lists; the class is frozen

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        """An image, or RGB uint8 (H, W, 3), as float32 (3, size, size); InputError if it is too small."""
        return self.normalise(rgb_tensor(self.square(upright_rgb(_image(image)))))

    def square(self, image: Image.Image) -> Image.Image:
        """What the network sees of an upright RGB image: resized and cropped, not yet normalised."""
        return image if image.size == (self.size, self.size) else self._crop(self._resize(image))

    def _resize(self, image: Image.Image) -> Image.Image:
        new = self._resized(*image.size)
        return image if new == image.size else image.resize(new, Image.Resampling[self.interpolation.upper()])

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.resize is None:
            return width, height
        short_width, short_height = (width, height) if self.mode == "warp" else (min(width, height),) * 2
        return self.resize * width // short_width, self.resize * height // short_height

    def _crop(self, image: Image.Image) -> Image.Image:
        left, top = self._corner(*image.size)
        return image.crop((left, top, left + self.size, top + self.size))

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        if min(width, height) < self.size:
            raise InputError(f"an image of {width} x {height} pixels is smaller than {self.size}; set resize")
        return round((width - self.size) / 2), round((height - self.size) / 2)

    def box(self, box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
        """Where a box of an image of that size lies in what the network sees, to whole pixels, perhaps beyond its edge.

        Boxes are top, left, bottom, right in pixels, ends exclusive; 0 is the image's edge.
        """
        across, down, left, top = 1.0, 1.0, 0, 0
        if (width, height) != (self.size, self.size):
            new = self._resized(width, height)
            left, top = self._corner(*new)
            across, down = new[0] / width, new[1] / height
        first, last = (round(edge * down) - top for edge in box[::2])
        return first, round(box[1] * across) - left, last, round(box[3] * across) - left

    def normalise(self, rgb: Tensor) -> Tensor:
        """RGB (..., 3, H, W) in 0..1, or uint8, to the network's channels and range; differentiable."""
        if rgb.dtype == torch.uint8:  # in one pass, in place: training does this to every image anew
            values = self.rgb(rgb).float()
            mean, std = self._statistics(values)
            return torch.addcmul(-mean / std, values, self.scale / 255 / std, out=values)
        mean, std = self._statistics(rgb)
        return (self.rgb(rgb) * self.scale - mean) / std

    def pixels(self, x: Tensor) -> Tensor:
        """The inverse of `normalise`: RGB (..., 3, H, W), 0..1 for a photograph, not clamped."""
        mean, std = self._statistics(x)
        return self.rgb((x * std + mean) / self.scale)

    def rgb(self, signal: Tensor) -> Tensor:
        """A signal in input space (..., 3, H, W), such as a projection, as RGB; nothing added."""
        return signal.flip(-3) if self.channels == "BGR" else signal

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not x.is_floating_point() or x.ndim < 3 or x.shape[-3] != 3:
            raise InputError(f"a tensor {tuple(x.shape)} of {x.dtype} is no image; give float (..., 3, H, W)")
        mean, std = x.new_tensor(self.mean)[:, None, None], x.new_tensor(self.std)[:, None, None]
        if self.mean_image is not None and x.shape[-1] == x.shape[-2] in (self.size, self.mean_image.shape[-1]):
            margin = round((self.mean_image.shape[-1] - x.shape[-1]) / 2)
            end = margin + x.shape[-1]
            mean = self.mean_image[:, margin:end, margin:end].to(x)
        return mean, std

    @classmethod
    def of(cls, model: Any) -> "Preprocessing":
        """That which a network has; for one without, its input is RGB in 0..1."""
        return getattr(model, "preprocessing", None) or cls(mean=(0, 0, 0), std=(1, 1, 1))

    @property
    def settings(self) -> dict[str, Any]:
        """All but the mean image, which is a tensor and travels as one."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "mean_image"}

    def to_json(self) -> str:
        """The settings as one line of JSON."""
        return json.dumps(self.settings)

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """The inverse of `to_json`. InputError unless every setting is there, known and valid."""
        try:
            given = json.loads(text)
        except (TypeError, ValueError) as error:
            raise InputError(f"preprocessing is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise InputError(f"preprocessing is {given!r}; it must be a JSON object")
        names = list(cls().settings)
        for name in given:
            if name not in names:
                raise unknown_name("preprocessing setting", name, names)
        given.setdefault("interpolation", "bilinear")  # what older files mean
        if missing := [name for name in names if name not in given]:
            raise InputError(f"preprocessing lacks {', '.join(missing)}")
        return cls(**given)


@dataclass(frozen=True)
class Stored:
    """How training keeps an image: uint8 (3, size, size), to be cropped, mirrored and normalised batch by batch.

    side: the shortest side and the central square of it, from which crops are taken; None: what the network sees.
    """

    preprocessing: Preprocessing
    side: int | None = None

    def __post_init__(self) -> None:
        if self.side is not None and self.side < self.preprocessing.size:
            raise InputError(f"images stored with {self.side} pixels have no crops of {self.preprocessing.size}")

    @property
    def size(self) -> int:
        return self.side or self.preprocessing.size

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        how = self.preprocessing if self.side is None else replace(self.preprocessing, size=self.side, resize=self.side)
        return torch.from_numpy(np.array(how.square(upright_rgb(_image(image))))).permute(2, 0, 1).contiguous()
