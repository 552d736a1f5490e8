"""From a photograph to what a network sees, and back.

A network needs images of the size, channels, range and mean that it was trained with. A `Preprocessing` holds these as
plain values, so they can be saved with the weights, undone for display (`pixels`), and applied to a batch inside a
differentiable computation (`normalise`).
"""

import contextlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from zfnet.errors import InputError, unknown_name
from zfnet.identity import digest

Model = TypeVar("Model", bound=nn.Module)
Mode = Literal["shortest", "warp"]
Colours = Literal["RGB", "BGR", "grey"]
Interpolation = Literal["bilinear", "bicubic"]
Size = tuple[int, int]  # (rows, columns)

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R 601, as in Pillow's mode "L"
MOST_PIXELS = 2**26  # that are resized to be cropped: a strip of 1 x 100,000 pixels would take gigabytes
# what Pillow raises for damaged EXIF, when it reads it and when it writes it back
_BAD_EXIF = (SyntaxError, struct.error, AttributeError, TypeError, ValueError, KeyError, IndexError, OSError)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB, turned as its EXIF orientation says; InputError for 32-bit or floating-point pixels.

    16-bit greys are scaled to 8 bits. Transparent pixels become white, as on a page. Unreadable EXIF is ignored.
    """
    image.load()
    info = image.info
    if image.mode == "RGB" and not info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise InputError("32-bit pixels have no agreed white; save it with 8 or 16 bits a channel")
        image = Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))  # 65535 -> 255
    elif "transparency" in info or "A" in image.getbands():
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    upright = image.convert("RGB")
    upright.info = dict(info)
    with contextlib.suppress(*_BAD_EXIF):
        ImageOps.exif_transpose(upright, in_place=True)  # turned before anything is written back
    upright.info = {}  # EXIF left behind would turn it a second time
    return upright


def rgb_tensor(image: Image.Image) -> Tensor:
    """An RGB image as float32 (3, H, W) in 0..1."""
    return _bytes(image).float().div_(255)


def _bytes(image: Image.Image) -> Tensor:
    """An 8-bit image as uint8 (channels, H, W)."""
    planes = torch.from_numpy(np.array(image)).reshape(image.height, image.width, len(image.getbands()))
    return planes.permute(2, 0, 1).contiguous()


def _is_number(value: object, above: float) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) and value > above


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input; it is saved with the weights.

    `Preprocessing()` is that of torchvision's ImageNet weights. An image of `size` already is what the network sees,
    as a rendered scene is: it is only normalised. Every other is resized, then cropped at its centre. Resizing is
    Pillow's, antialiased, with which the published weights were evaluated.

    Args:
        size: what the network sees, in pixels: the side of a square, or (rows, columns).
        resize: length in pixels to which the shortest side is resized; None: no resizing.
        interpolation: of resizing.
        mode: "shortest" keeps proportions; "warp" resizes both sides to `resize`.
        channels: the network's: "RGB", "BGR", "grey" (one: the ITU-R 601 luma of a photograph), or a number N. Images
            of N channels are arrays (H, W, N) or tensors (N, H, W).
        scale: value of a white pixel before mean and std.
        mean, std: a number for each of the network's channels, in its scale; one number serves all channels. For grey,
            three numbers are those of red, green and blue, and their luma is used.
        mean_image: (channels, rows, columns), subtracted in place of `mean` from images of that size; its middle is
            from images of `size`.
        display: which of the network's channels are shown as red, green and blue; None: the first three, or fewer
            with the last repeated.

    Raises:
        InputError: for a value that makes no sense.
    """

    size: int | Size = 224
    resize: int | None = 256
    interpolation: Interpolation = "bilinear"
    mode: Mode = "shortest"
    channels: Colours | int = "RGB"
    scale: float = 1.0
    mean: float | Sequence[float] = (0.485, 0.456, 0.406)
    std: float | Sequence[float] = (0.229, 0.224, 0.225)
    mean_image: Tensor | None = field(default=None, compare=False, repr=False)
    display: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        def check(valid: bool, name: str, advice: str) -> None:
            if not valid:
                raise InputError(f"preprocessing {name} is {getattr(self, name)!r}; give {advice}")

        def is_count(value: object) -> bool:
            return type(value) is int and value > 0

        sides = self.size if isinstance(self.size, (list, tuple)) else (self.size, self.size)
        check(len(sides) == 2 and all(map(is_count, sides)), "size", "pixels, or rows and columns")
        object.__setattr__(self, "size", sides[0] if sides[0] == sides[1] else tuple(sides))
        check(self.resize is None or is_count(self.resize), "resize", "a positive number of pixels")
        least = max(sides) if self.mode == "warp" else min(sides)
        if self.resize is not None and self.resize < least:
            raise InputError(f"preprocessing resize {self.resize} is less than size {least}")
        for name, choices in (("mode", Mode), ("channels", Colours), ("interpolation", Interpolation)):
            value, names = getattr(self, name), list(get_args(choices))
            if value not in names and not (name == "channels" and is_count(value)):
                raise unknown_name(f"preprocessing {name}", str(value), names + ["a number"] * (name == "channels"))
        check(_is_number(self.scale, above=0), "scale", "a finite number above 0")
        for name, above in (("mean", -math.inf), ("std", 0)):
            object.__setattr__(self, name, self._for_each_channel(name, above))
        if self.display is not None:
            last = self.channel_count - 1
            listed = isinstance(self.display, (list, tuple)) and len(self.display) == 3
            listed = listed and all(type(n) is int and 0 <= n <= last for n in self.display)
            check(listed, "display", f"three channels from 0 to {last}")
            object.__setattr__(self, "display", tuple(self.display))

    def _for_each_channel(self, name: str, above: float) -> tuple[float, ...]:
        values = getattr(self, name)
        numbers = tuple(values) if isinstance(values, (list, tuple)) else (values,)
        if not all(_is_number(value, above) for value in numbers):
            raise InputError(f"preprocessing {name} is {values!r}; give finite numbers{' above 0' * (above == 0)}")
        if self.channels == "grey" and len(numbers) == 3:
            return (sum(part * value for part, value in zip(LUMA, numbers, strict=True)),)
        if len(numbers) not in (1, self.channel_count):
            raise InputError(
                f"preprocessing {name} is {values!r}; give {self.channel_count} numbers, one for each channel, or one"
            )
        return tuple(map(float, numbers * (self.channel_count // len(numbers))))

    @property
    def channel_count(self) -> int:
        """How many channels the network reads."""
        return {"RGB": 3, "BGR": 3, "grey": 1}.get(str(self.channels)) or int(self.channels)

    @property
    def image_size(self) -> Size:
        """The size of what the network sees, (rows, columns) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(self, image: Image.Image | np.ndarray[Any, Any] | Tensor) -> Tensor:
        """An image as what the network sees: float32 (channels, rows, columns).

        It is a photograph of any mode, an array of bytes (H, W, channels), or a tensor (channels, H, W) of bytes or of
        floats in 0..1. Three channels are RGB where the network reads RGB, BGR or grey. InputError for an image that
        is too small, or has other channels.
        """
        planes = self.cropped(image)
        return self.normalise(planes if planes.is_floating_point() else planes.float() / 255)

    def cropped(self, image: Image.Image | np.ndarray[Any, Any] | Tensor) -> Tensor:
        """What the network sees of an image as for a call, not yet normalised: (channels, rows, columns).

        Bytes, or floats in 0..1; a photograph for a BGR network gives RGB.
        """
        if isinstance(image, Image.Image):
            if isinstance(self.channels, int):
                raise InputError(f"photographs have no {self.channels} channels; give arrays (H, W, {self.channels})")
            upright = upright_rgb(image)
            return _bytes(self._seen(upright.convert("L") if self.channels == "grey" else upright))
        array = isinstance(image, np.ndarray)
        planes = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0) if array and image.ndim == 3 else image
        valid = planes.ndim == 3 and len(planes) in self._countable
        dtypes = (torch.uint8,) if array else (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
        if not isinstance(planes, Tensor) or not valid or planes.dtype not in dtypes:
            count = self.channel_count
            raise InputError(
                f"an array {tuple(image.shape)} of {image.dtype} is not an image of {count} channels; "
                f"give uint8 (H, W, {count}), or a tensor ({count}, H, W)"
            )
        images = [Image.fromarray(plane.numpy()) for plane in self._mixed(planes.cpu())]
        return torch.stack([torch.from_numpy(np.array(self._seen(plane))) for plane in images])

    @property
    def _countable(self) -> tuple[int, ...]:
        """How many channels an image may have."""
        return (1, 3) if self.channels == "grey" else (self.channel_count,)

    def _mixed(self, image: Tensor) -> Tensor:
        """Grey for a grey network, of RGB (..., 3, H, W); any other image as it is."""
        if self.channels != "grey" or image.shape[-3] == 1:
            return image
        red, green, blue = image.unbind(-3)
        if image.dtype == torch.uint8:  # Pillow's rounding
            mix = (red.int() * 19595 + green.int() * 38470 + blue.int() * 7471 + 0x8000) >> 16
            return mix.to(torch.uint8).unsqueeze(-3)
        return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(-3)

    def _seen(self, image: Image.Image) -> Image.Image:
        """Prepare an image for the network: resize, then crop."""
        new, (rows, columns) = self._resized(*image.size), self.image_size
        left, top = self._corner(*new)
        box = left, top, left + columns, top + rows
        if new == image.size:
            return image.crop(box)
        interpolation = Image.Resampling[self.interpolation.upper()]
        if new[0] * new[1] <= MOST_PIXELS:
            return image.resize(new, interpolation).crop(box)
        # of a long image only the part that is seen, which has the same pixels but for rounding
        across, down = image.width / new[0], image.height / new[1]
        right, bottom = min(box[2] * across, image.width), min(box[3] * down, image.height)
        return image.resize((columns, rows), interpolation, (left * across, top * down, right, bottom))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) that an image of this width and height is resized to."""
        if self.resize is None or (height, width) == self.image_size:
            return width, height
        short_width, short_height = (width, height) if self.mode == "warp" else (min(width, height),) * 2
        return self.resize * width // short_width, self.resize * height // short_height

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        """Where the central crop begins: left and top."""
        rows, columns = self.image_size
        if height < rows or width < columns:
            seen = str(rows) if rows == columns else f"{columns} x {rows}"
            advice = "set resize" if self.resize is None else "raise resize"
            raise InputError(f"an image of {width} x {height} pixels is smaller than {seen}; {advice}")
        return round((width - columns) / 2), round((height - rows) / 2)

    def box(self, box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
        """Where a box of an image lies in what the network sees, to whole pixels, perhaps beyond its edge.

        Args:
            box: top, left, bottom, right in pixels of the image, ends exclusive; 0 is the image's edge.
            width, height: of the image, in pixels.
        """
        new = self._resized(width, height)
        left, top = self._corner(*new)
        across, down = new[0] / width, new[1] / height
        first, last = (round(edge * down) - top for edge in box[::2])
        return first, round(box[1] * across) - left, last, round(box[3] * across) - left

    def normalise(self, image: Tensor) -> Tensor:
        """An image (..., channels, H, W) in 0..1, or uint8, in the network's channels and range; differentiable.

        Three channels are RGB where the network reads RGB, BGR or grey.
        """
        known = image.ndim >= 3 and image.shape[-3] in self._countable
        arranged = self.arranged(image) if known else image  # which its statistics refuse
        if image.dtype != torch.uint8:
            mean, std = self._statistics(arranged)
            return (arranged * self.scale - mean) / std
        values = arranged.float()
        mean, std = self._statistics(values)
        # in one pass, in place: training does this to every image anew
        return torch.addcmul(-mean / std, values, self.scale / 255 / std, out=values)

    def arranged(self, image: Tensor) -> Tensor:
        """An image (..., 3, H, W), RGB, in the network's channels, its range unchanged; of other channels, as it is."""
        return image.flip(-3) if self.channels == "BGR" else self._mixed(image)

    def pixels(self, x: Tensor) -> Tensor:
        """The inverse of `normalise`, as RGB (..., 3, H, W): 0..1 for a photograph, not clamped.

        Grey is shown in all three channels, and of other channels those that `display` names.
        """
        mean, std = self._statistics(x)
        return self.rgb((x * std + mean) / self.scale)

    def rgb(self, signal: Tensor) -> Tensor:
        """A signal in input space (..., channels, H, W), such as a projection, as RGB; nothing added."""
        last = self.channel_count - 1
        shown = self.display or ((2, 1, 0) if self.channels == "BGR" else (0, min(1, last), min(2, last)))
        return signal if shown == (0, 1, 2) and last == 2 else signal[..., list(shown), :, :]

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not x.is_floating_point() or x.ndim < 3 or x.shape[-3] != self.channel_count:
            shape = f"(..., {self.channel_count}, H, W)"
            raise InputError(f"a tensor {tuple(x.shape)} of {x.dtype} is not an image; give float {shape}")
        # without waiting for a GPU, as new_tensor would
        mean, std = (
            torch.tensor(values, dtype=x.dtype).to(x.device, non_blocking=True)[:, None, None]
            for values in (self.mean, self.std)
        )
        if self.mean_image is not None and tuple(x.shape[-2:]) in (self.image_size, self.mean_image.shape[-2:]):
            rows, columns = x.shape[-2:]
            top, left = round((self.mean_image.shape[-2] - rows) / 2), round((self.mean_image.shape[-1] - columns) / 2)
            mean = self.mean_image[:, top : top + rows, left : left + columns].to(x, non_blocking=True)
        return mean, std

    @classmethod
    def of(cls, model: nn.Module) -> "Preprocessing":
        """The preprocessing of a network; for one without, its input is in 0..1."""
        own = getattr(model, "preprocessing", None)
        if own is not None:
            return own  # type: ignore[no-any-return]
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        channels: Colours | int = "RGB" if first is None or first.in_channels == 3 else first.in_channels
        return cls(channels=channels, mean=0, std=1)

    def attach(self, model: Model) -> Model:
        """Make it the preprocessing of a network, `model.preprocessing`; return the network."""
        model.preprocessing = self  # type: ignore[assignment]
        return model

    def identity(self) -> str:
        """A digest of all settings and the mean image."""
        return digest("preprocessing", self.settings, self.mean_image)

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
            settings = json.loads(text)
        except (TypeError, ValueError) as error:
            raise InputError(f"preprocessing is not JSON: {error}") from None
        if not isinstance(settings, dict):
            raise InputError(f"preprocessing is {settings!r}; it must be a JSON object")
        older: dict[str, Any] = {"interpolation": "bilinear", "display": None}  # what older files mean
        settings, names = older | settings, list(cls().settings)
        if unknown := [name for name in settings if name not in names]:
            raise unknown_name("preprocessing setting", unknown[0], names)
        if missing := [name for name in names if name not in settings]:
            raise InputError(f"preprocessing lacks {', '.join(missing)}")
        return cls(**settings)


@dataclass(frozen=True)
class Stored:
    """How training stores an image: uint8 (channels, rows, columns), cropped, mirrored and normalised batch by batch.

    `side` is the side in pixels of the central square from which crops are taken; None: what the network sees.
    """

    preprocessing: Preprocessing
    side: int | None = None

    def __post_init__(self) -> None:
        if self.side is not None and self.side < max(self.preprocessing.image_size):
            raise InputError(
                f"cannot take crops of {self.preprocessing.size} pixels from images stored with {self.side}"
            )

    @property
    def size(self) -> int | Size:
        return self.side or self.preprocessing.size

    def identity(self) -> str:
        """A digest of the side, all settings and the mean image."""
        return digest("stored", self.side, self.preprocessing.identity())

    def __call__(self, image: Image.Image | np.ndarray[Any, Any] | Tensor) -> Tensor:
        how = self.preprocessing if self.side is None else replace(self.preprocessing, size=self.side, resize=self.side)
        planes = how.cropped(image)
        return planes if planes.dtype == torch.uint8 else (planes * 255).round().clamp(0, 255).to(torch.uint8)
