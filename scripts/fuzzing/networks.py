"""Random networks with views, steps in place, shared modules and branches, as generated source that is traced.

Of each, the strongest activations of a scan must be those of the plain model, as hooks see them; a projected unit must
be autograd's, whose rectifiers rectify the signal; and units projected by their windows must be those projected by
whole images. A network may be refused instead, by name and in one line.
"""

import contextlib
import copy
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zfnet import Deconvnet, InputError, scan

IMAGES = 3
CLOSE = 1e-8


def case(seed: int, folder: Path) -> str:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    program = Program(rng)
    for module in program.net.modules():
        module.training = rng.random() < 0.3
    return outcome(program, rng)


def source(seed: int) -> str:
    """The network of a seed, to read."""
    torch.manual_seed(seed)
    program = Program(random.Random(seed))
    return f"{program.net}\n{program.source}"


# ---- a network -------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block, with its sum in place or not."""

    def __init__(self, maps: int, rng: random.Random):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(maps, maps, 3, padding=1), nn.Conv2d(maps, maps, 1)
        self.norm, self.relu = random_norm(maps), nn.ReLU(inplace=rng.random() < 0.5)
        self.in_place, self.first = rng.random() < 0.5, rng.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            x = self.relu(x)
        out = self.norm(self.conv2(self.relu(self.conv1(x))))
        if self.in_place:
            out += x
        else:
            out = out + x
        return self.relu(out)


def random_norm(maps: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(maps)
    for tensor in (norm.weight.data, norm.running_var):
        assert tensor is not None
        tensor.uniform_(0.5, 1.5)
    for tensor in (norm.bias.data, norm.running_mean):
        assert tensor is not None
        tensor.normal_(std=0.3)
    return norm


@dataclass
class Program:
    """A module whose forward is generated, line by line; lines that fail on an image are left out."""

    rng: random.Random
    lines: list[str] = field(default_factory=list)
    taps: list[str] = field(default_factory=list)
    net: nn.Module = field(default_factory=nn.Module)

    def __post_init__(self) -> None:
        rng = self.rng
        self.channels, self.size = rng.choice((1, 3, 4)), (rng.randint(6, 11), rng.randint(6, 11))
        self.net.add_module("relu", nn.ReLU(inplace=rng.random() < 0.5))
        self.net.register_buffer("scale", torch.rand(1))
        self.net.double()
        self.values: dict[str, Any] = {
            "self": self.net,
            "torch": torch,
            "F": F,
            "x": torch.randn(2, self.channels, *self.size, dtype=torch.float64),
        }
        self.last = "x"
        self.conv()
        for _ in range(rng.randint(3, 9)):
            self.step()
        self.tap(self.last)
        if rng.random() < 0.3:
            self.classify()
        self.source = "\n    ".join(["def forward(self, x):", *self.lines, f"return {self.last}"])
        scope: dict[str, Any] = {"torch": torch, "F": F}
        exec(self.source, scope)
        self.net.__class__ = type("Net", (nn.Module,), {"forward": scope["forward"]})

    # -- lines

    def new(self) -> str:
        return f"y{len(self.values)}"

    def module(self, module: nn.Module) -> str:
        name = f"m{len(self.net._modules)}"
        self.net.add_module(name, module.double())
        return f"self.{name}"

    def run(self, line: str, then: str) -> bool:
        """Add a line, after which `then` is the last value, if it runs and gives maps."""
        values = {name: v.clone() if isinstance(v, Tensor) else v for name, v in self.values.items()}
        try:
            with torch.no_grad():
                exec("\n".join([*self.lines, line]), values := self.fresh())
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False
        value = values[then]
        if value.ndim != 4 or not 0 < value[0].numel() < 3000 or value.abs().max() > 1e3:
            return False
        self.lines.append(line)
        self.values, self.last = values, then
        return True

    def fresh(self) -> dict[str, Any]:
        self.image = getattr(self, "image", self.values["x"].clone())
        return {"self": copy.copy(self.net).eval(), "torch": torch, "F": F, "x": self.image.clone()}

    def tap(self, name: str) -> None:
        """A layer of its own, whose value hooks can see."""
        tap, after = f"tap{len(self.taps)}", self.new()
        self.net.add_module(tap, nn.Identity())
        if self.run(f"{after} = self.{tap}({name})", after):
            self.taps.append(tap)

    def maps(self) -> list[str]:
        return [
            name for name, v in self.values.items() if isinstance(v, Tensor) and v.ndim == 4 and v.is_floating_point()
        ]

    def some(self) -> str:
        """A value to go on with: mostly the last one, and mostly not the image."""
        names = self.maps()[1:] or ["x"]
        return self.last if self.rng.random() < 0.7 else self.rng.choice(names)

    def step(self) -> None:
        kinds: list[tuple[Callable[[], Any], int]] = [
            (self.conv, 4),
            (self.relu, 5),
            (self.pool, 3),
            (self.join, 4),
            (self.view, 4),
            (self.write, 4),
            (self.again, 2),
            (self.other, 4),
        ]
        choice, _ = self.rng.choices(kinds, [weight for _, weight in kinds])[0]
        choice()
        if self.rng.random() < 0.25:
            self.tap(self.some())

    # -- steps

    def conv(self) -> None:
        rng, v, out = self.rng, self.some(), self.new()
        maps, wanted = self.values[v].shape[1], rng.choice((2, 4, 6))
        groups = rng.choice([g for g in (1, 1, 1, 2, maps) if maps % g == 0 and wanted % g == 0])
        arguments: Any = {
            "kernel_size": rng.choice((1, 2, 3, 3, (1, 3))),
            "stride": rng.choice((1, 1, 1, 2, (2, 1))),
            "padding": rng.choice((0, 1, 1, 2, (0, 1))),
            "dilation": rng.choice((1, 1, 1, 2)),
        }
        mode: Any = {"padding_mode": "reflect"} if rng.random() < 0.05 else {}
        kind: Any = nn.ConvTranspose2d if rng.random() < 0.08 and not mode else nn.Conv2d
        m = self.module(kind(maps, wanted, groups=groups, **arguments, **mode))
        if kind is nn.Conv2d and rng.random() < 0.2:
            shape = ", ".join(f"{name}={value}" for name, value in arguments.items() if name != "kernel_size")
            self.run(f"{out} = F.conv2d({v}, {m}.weight, {m}.bias, groups={groups}, {shape})", out)
        elif self.run(f"{out} = {m}({v})", out) and rng.random() < 0.3:
            norm, after = self.module(random_norm(wanted)), self.new()
            self.run(f"{after} = {norm}({out})", after)

    def relu(self) -> None:
        v, out = self.some(), self.new()
        way = self.rng.choice(
            (
                "self.relu({v})",
                "self.relu({v})",
                "F.relu({v})",
                "F.relu({v}, inplace=True)",
                "F.relu({v}, True)",
                "torch.relu({v})",
                "torch.relu_({v})",
                "{v}.relu()",
                "{v}.relu_()",
                "{v}.clamp(min=0)",
                "{v}.clamp_(min=0)",
                "{v}.clamp_min_(0)",
                "F.relu6({v})",
                "F.hardtanh({v}, 0, 2)",
                "torch.clamp({v}, 0)",
                "F.threshold({v}, 0, 0)",
            )
        ).format(v=v)
        if self.rng.random() < 0.15:
            self.run(way, v)  # of a step in place nothing else is needed
        else:
            self.run(f"{out} = {way}", out)

    def pool(self) -> None:
        rng, v, out = self.rng, self.some(), self.new()
        k, s, p, d = (rng.choice(choices) for choices in ((2, 3), (1, 2), (0, 1), (1, 1, 2)))
        c = rng.random() < 0.5
        way = rng.choice(
            (
                self.module(nn.MaxPool2d(k, s, p, d, ceil_mode=c)) + "({v})",
                f"F.max_pool2d({{v}}, {k}, {s}, {p}, {d}, {c})",
                f"F.max_pool2d({{v}}, {k}, stride={s}, ceil_mode={c})",
                f"torch.max_pool2d({{v}}, {k}, {s}, {p})",
                f"F.max_pool2d({{v}}, {k}, {s}, return_indices=True)[0]",
                self.module(nn.AvgPool2d(k, s, p, c, count_include_pad=rng.random() < 0.5)) + "({v})",
                f"F.avg_pool2d({{v}}, {k}, {s})",
                f"F.adaptive_avg_pool2d({{v}}, {rng.randint(1, 4)})",
                self.module(nn.AdaptiveMaxPool2d(rng.randint(2, 4))) + "({v})",
                "indices",
            )
        ).format(v=v)
        if way == "indices":
            if self.run(f"{out}, i{out} = F.max_pool2d({v}, 2, return_indices=True)", out) and rng.random() < 0.5:
                after = self.new()
                self.run(f"{after} = F.max_unpool2d({out}, i{out}, 2, output_size={v}.shape[-2:])", after)
        else:
            self.run(f"{out} = {way}", out)

    def join(self) -> None:
        rng, v, out = self.rng, self.some(), self.new()
        shape = self.values[v].shape
        w = rng.choice([name for name in self.maps() if self.values[name].shape == shape])
        u = rng.choice([name for name in self.maps() if self.values[name].shape[-2:] == shape[-2:]])
        way = rng.choice(
            (
                "{out} = {v} + {w}",
                "{out} = torch.add({v}, {w})",
                "{out} = {v}.add({w}, alpha=2)",
                "{out} = {v} - {w}",
                "{out} = torch.cat([{v}, {u}], 1)",
                "{out} = torch.cat(({u}, {v}, {v}), dim=1)",
                "{out} = torch.stack([{v}, {w}], 1).flatten(1, 2)",
                "{v} += {w}",
                "{v} -= {w}",
                "{out} = {v}.add_({w})",
                "{v}.add_({w})",
                "{out} = {v} + {v}.mean((2, 3), keepdim=True)",
            )
        ).format(v=v, w=w, u=u, out=out)
        self.run(way, out if way.startswith(f"{out} =") else v)

    def view(self) -> None:
        """A view, or a copy that moves elements; later steps may write to it, or to what it is of."""
        v, out = self.some(), self.new()
        _, maps, rows, columns = self.values[v].shape
        way = self.rng.choice(
            (
                "{out} = {v}[:, : {half}]",
                "{out} = {v}[:, ::2]",
                "{out} = {v}[:, 1:]",
                "{out} = {v}[..., 1:]",
                "{out} = {v}[:, :, ::2, ::2]",
                "{out} = {v}[:, :, 1:-1]",
                "{out}, b{out} = {v}.chunk(2, 1)",
                "b{out}, {out} = torch.chunk({v}, 2, dim=1)",
                "{out}, b{out} = {v}.split({half}, 1)",
                "{out}, b{out} = torch.split({v}, {half}, 1)",
                "{out} = {v}.unbind(1)[0].unsqueeze(1)",
                "{out} = {v}.narrow(1, 0, {half})",
                "{out} = {v}.select(1, 0)[:, None]",
                "{out} = {v}.transpose(2, 3)",
                "{out} = {v}.permute(0, 1, 3, 2).contiguous()",
                "{out} = {v}.movedim(3, 2)",
                "{out} = {v}.view({v}.shape[0], {maps}, -1).view({v}.size(0), {maps}, {rows}, {columns})",
                "{out} = {v}.reshape({v}.size(0), {maps}, {rows}, {columns})",
                "{out} = {v}.flatten(2).unflatten(2, ({rows}, {columns}))",
                "{out} = {v}.detach()",
                "{out} = {v}.data",
                "{out} = {v}[:, :1].expand(-1, 3, -1, -1)",
                "{out} = {v}.as_strided({v}.size(), {v}.stride())",
                "{out} = {v}.contiguous()",
                "{out} = {v}.clone()",
                "{out} = {v}.flip(1)",
                "{out} = {v}.view_as({v})",
            )
        ).format(v=v, out=out, half=max(1, maps // 2), maps=maps, rows=rows, columns=columns)
        self.run(way, out)

    def write(self) -> None:
        """A write into memory that other names may stand for."""
        v = self.some()
        shape = self.values[v].shape
        w = self.rng.choice([name for name in self.maps() if self.values[name].shape == shape])
        line = self.rng.choice(
            (
                "F.relu_({v}[:, :2])",
                "self.relu({v}[:, 1:])",
                "{v}[:, :1].relu_()",
                "self.relu({v}.chunk(2, 1)[0])",
                "{v}.view({v}.shape[0], -1).mul_(2)",
                "{v}.flatten(2).mul_(0.5)",
                "{v}.detach().mul_(2)",
                "{v}.data.mul_(2)",
                "{v}[:, 0].fill_(0.5)",
                "{v}.select(1, 0).zero_()",
                "{v}.narrow(1, 0, 1).mul_(3)",
                "{v}.unbind(1)[0].mul_(2)",
                "{v}.diagonal(dim1=2, dim2=3).zero_()",
                "{v}.transpose(2, 3).add_(1)",
                "{v}[:, 0] = 0",
                "{v}[..., 0] = 0",
                "{v}[:, :2] = {v}[:, :2] * 3",
                "{v}[:, :1] *= 2",
                "{v}[:, 0] += 1",
                "{v}[:, :1] = F.relu({w}[:, :1])",
                "{v}.mul_(0.5)",
                "{v} *= 2",
                "{v}.div_(2)",
                "{v}.copy_({w} * 2)",
                "{v}.zero_()",
                "{v}.fill_(1.0)",
                "{v}.masked_fill_({v} < 0, 0.0)",
                "{v}.index_add_(1, torch.tensor([0]), ({w} * 2)[:, :1])",
                "{v}.index_fill_(1, torch.tensor([0]), 0.0)",
                "torch.mul({v}, 2, out={v})",
                "torch.add({v}, {w}, out={v})",
                "{v}.set_({w}.clone())",
                "{v}.neg_()",
            )
        ).format(v=v, w=w)
        self.run(line, v)

    def again(self) -> None:
        """A module once more."""
        rng, v, out = self.rng, self.some(), self.new()
        m = rng.choice([name for name in self.net._modules if not name.startswith("tap")])
        if rng.random() < 0.4:
            m = self.module(Block(self.values[v].shape[1], rng)).removeprefix("self.")
        self.run(f"{out} = self.{m}({v})", out)

    def other(self) -> None:
        v, out = self.some(), self.new()
        maps = self.values[v].shape[1]
        way = self.rng.choice(
            (
                "{v} * 0.5",
                "{v} / 2",
                "-{v}",
                "2 - {v}",
                "{v} * self.scale",
                "{v} * 2 if {v}.shape[-1] >= 6 else {v} * 3",
                "{v} if {v}.size(1) == 4 else {v} * 0.5",
                "F.dropout({v}, 0.5, training=self.training)",
                self.module(nn.Dropout2d(0.5, inplace=self.rng.random() < 0.5)) + "({v})",
                self.module(random_norm(maps)) + "({v})",
                "F.interpolate({v}, scale_factor=2)",
                "F.pad({v}, (1, 0, 1, 1))",
                "F.pad({v}, (1, 1, 1, 1), mode='reflect')",
                "{v}.mean(1, keepdim=True)",
                "{v}.sum(1, keepdim=True)",
                "F.pixel_unshuffle({v}[:, :, :4, :4], 2)",
                "F.pixel_shuffle({v}, 2)",
                "torch.zeros_like({v}).add_({v})",
                "torch.zeros_like({v}) + {v}",
                "{v}.to(torch.float64)",
                "{v}.flip(3)",
                "torch.roll({v}, 1, 1)",
                "{v}.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)",
                "{v}.repeat(1, 2, 1, 1)",
            )
        ).format(v=v)
        self.run(f"{out} = {way}", out)

    def classify(self) -> None:
        v, out = self.last, self.new()
        m = self.module(nn.Linear(self.values[v][0].numel(), 3))
        ways = f"torch.flatten({v}, 1)", f"{v}.reshape({v}.shape[0], -1)", f"{v}.flatten(1)"
        self.lines.append(f"{out} = {m}({self.rng.choice(ways)})")
        self.last = out


# ---- what must come of it --------------------------------------------------------------------------------------------


def outcome(program: Program, rng: random.Random) -> str:
    net, tap = program.net, rng.choice(program.taps)
    images = torch.randn(IMAGES, program.channels, *program.size, dtype=torch.float64)
    if rng.random() < 0.3:
        images = images.contiguous(memory_format=torch.channels_last)
    if not runs(copy.deepcopy(net), images):  # `view` asks for its elements in order
        images = images.contiguous()
    kept, modes = images.clone(), [module.training for module in net.modules()]
    plain = copy.deepcopy(net).eval()
    try:
        seen = compare_scan(net, plain, images, program.taps)
        result = compare_projections(net, plain, images, tap, units_of(seen[tap], rng))
    except InputError as error:
        line = str(error)
        assert "\n" not in line, f"several lines: {line}"
        result = f"refused: {kind_of(line)}"
    assert torch.equal(images, kept), "the images were changed"
    assert modes == [module.training for module in net.modules()], "the mode was changed"
    return result


def runs(net: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            net.eval()(images.clone())
    except RuntimeError:
        return False
    return True


KINDS = {
    "works in place on memory": "memory read later",
    "no window": "no window",
    "no deconvnet rule": "no rule",
    "cannot be traced": "not traced",
    "than in the model itself": "differs from the model",
    "writes to its input": "hidden write",
    "no layer of": "does not depend on the image",
    "takes another path": "another path for another size",
    "does not depend on the image": "does not depend on the image",
}


def kind_of(line: str) -> str:
    name = next((name for words, name in KINDS.items() if words in line), line)
    operation = re.search(r"no (?:deconvnet rule|window) for (\w+)", line)
    return f"{name} for {operation[1]}" if operation else name


def units_of(maps: Tensor, rng: random.Random) -> list[list[int]]:
    """Some units, of which one is the strongest."""
    strongest = [int(index) for index in torch.unravel_index(maps.argmax(), maps.shape)]
    return [strongest, *([rng.randrange(extent) for extent in maps.shape] for _ in range(3))]


def compare_scan(net: nn.Module, plain: nn.Module, images: Tensor, taps: list[str]) -> dict[str, Tensor]:
    """The taps' activations as hooks see them, which the scan must have found."""
    found = scan(net, images.clone(), taps, k=2, batch_size=2, workers=0, progress=False)
    seen = activations(plain, images, taps)
    for tap, maps in seen.items():
        best = maps.flatten(2).amax(2).sort(0, descending=True).values[:2].T
        assert close(found[tap].value, best), f"the scan of {tap} differs from the plain model"
        image, row, column = found[tap].image, found[tap].row, found[tap].column
        there = maps[image, torch.arange(maps.shape[1])[:, None], row, column]
        assert close(there, best), f"the places of the scan of {tap} differ"
    return seen


def activations(plain: nn.Module, images: Tensor, taps: list[str]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    with hooks(plain, taps, lambda tap, output: seen.__setitem__(tap, output.clone())), torch.no_grad():
        plain(images.clone())
    return seen


@contextlib.contextmanager
def hooks(net: nn.Module, taps: list[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    handles = [
        net.get_submodule(tap).register_forward_hook(lambda module, args, output, tap=tap: see(tap, output))
        for tap in taps
    ]
    yield
    for handle in handles:
        handle.remove()


def compare_projections(net: nn.Module, plain: nn.Module, images: Tensor, tap: str, units: list[list[int]]) -> str:
    deconvnet = Deconvnet(net)
    whole = deconvnet.project_units(images, tap, units, whole=True)
    expected, values = by_autograd(plain, images, tap, units)
    assert close(whole.values, values), "the units' activations differ from the plain model's"
    assert close(whole.projections, expected), "projections of whole images differ from autograd's"
    try:
        windows = deconvnet.project_units(images, tap, units)
    except InputError as error:
        if "no window" not in str(error):
            raise
        return f"equal by whole images; {kind_of(str(error))}"
    assert close(windows.values, values), "the units' activations differ by windows"
    for projection, canvas, box in zip(expected, windows.projections, windows.boxes.tolist(), strict=True):
        assert close(placed(canvas, box, projection.shape), projection), "projections by windows differ from whole ones"
    return "equal"


def placed(canvas: Tensor, box: list[int], shape: torch.Size) -> Tensor:
    """A canvas (C, S, S) at its box in an image of a shape."""
    image, (top, left, bottom, right) = canvas.new_zeros(shape), box
    rows, columns = range(max(top, 0), min(bottom, shape[1])), range(max(left, 0), min(right, shape[2]))
    for row in rows:
        for column in columns:
            image[:, row, column] = canvas[:, row - top, column - left]
    return image


def close(ours: Tensor, expected: Tensor) -> bool:
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return ours.shape == expected.shape and torch.allclose(ours, expected, rtol=0, atol=CLOSE * scale)


# ---- autograd's deconvnet --------------------------------------------------------------------------------------------


def by_autograd(plain: nn.Module, images: Tensor, tap: str, units: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The projections (M, C, H, W) and activations (M,) of units."""
    plain.requires_grad_(False)
    leaf, seen = images.clone().requires_grad_(), []
    with hooks(plain, [tap], lambda name, output: seen.append(output.clone())), Deconvolved():
        plain(leaf.clone())
    projections, values = [], []
    for unit in units:
        value = seen[0][tuple(unit)]
        signal = value.detach()
        if not value.requires_grad:  # it does not depend on the image
            value = value + 0 * leaf.sum()
        (sent,) = torch.autograd.grad(value, leaf, signal, retain_graph=True)
        projections.append(sent[unit[0]])
        values.append(signal)
    return torch.stack(projections), torch.stack(values)


class Rectified(torch.autograd.Function):
    """A rectifier, of which the backward pass rectifies the signal and forgets the forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float | None = None) -> Tensor:
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        return signal.clamp(min=0), None


def rectified(x: Tensor, *args: Any, top: float | None = None, inplace: bool = False, **kwargs: Any) -> Any:
    y: Any = Rectified.apply(x.clone(), top)  # type: ignore[no-untyped-call]
    return x.copy_(y) if inplace else y


def relu(x: Tensor, inplace: bool = False) -> Any:
    return rectified(x, inplace=inplace)


def hardtanh(x: Tensor, min_val: float, max_val: float, inplace: bool = False) -> Any:
    return rectified(x, top=max_val, inplace=inplace)


def pieces(x: Tensor, sizes: list[int], dim: int) -> tuple[Tensor, ...]:
    """Autograd forbids writing to the views that a split gives, but not to these."""
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return tuple(x.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True))


def split(x: Tensor, size: int, dim: int = 0) -> tuple[Tensor, ...]:
    return pieces(x, [min(size, x.shape[dim] - start) for start in range(0, x.shape[dim], size)], dim)


def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    return split(x, -(-x.shape[dim] // chunks), dim)


def unbind(x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    return tuple(x.select(dim, n) for n in range(x.shape[dim]))


def alias(x: Tensor) -> Tensor:
    return x.view_as(x)


REPLACED: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_, F.relu_), lambda x: rectified(x, inplace=True)),
    **dict.fromkeys((Tensor.clamp_, Tensor.clamp_min_), lambda x, *_, **__: rectified(x, inplace=True)),
    **dict.fromkeys((torch.clamp, Tensor.clamp, F.threshold), rectified),
    F.relu6: lambda x, inplace=False: rectified(x, top=6.0, inplace=inplace),
    F.hardtanh: hardtanh,
    **dict.fromkeys((torch.chunk, Tensor.chunk), chunk),
    **dict.fromkeys((torch.split, Tensor.split), split),
    Tensor.unbind: unbind,
    **dict.fromkeys((Tensor.detach, Tensor.data.__get__), alias),  # type: ignore[attr-defined]
}
# they keep their input for the way back, and a later step may overwrite it
KEEP_INPUT = {
    *(F.conv2d, torch.conv2d, F.conv_transpose2d, F.linear, F.batch_norm, F.pad),
    *(F.max_pool2d, torch.max_pool2d, F.max_pool2d_with_indices, F.max_unpool2d),
    *(F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
}


class Deconvolved(TorchFunctionMode):
    """Autograd as the deconvnet: rectifiers rectify the signal."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in KEEP_INPUT:
            args = (args[0].clone(), *args[1:])
        kwargs = dict(kwargs or {})
        out = kwargs.pop("out", None)
        result = REPLACED.get(func, func)(*args, **kwargs)
        return result if out is None else out.copy_(result)
