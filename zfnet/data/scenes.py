"""Rendered pictures of 24 kinds of objects, whose class, mask and parts are known because we drew them.

An object is a list of shapes painted one over the other in its own frame, where it fills the square [-1, 1]^2. A shape is a
signed distance: negative inside, so that `0.5 - distance / pixel` is how much of a pixel it covers. Each shape also
raises a height, and light falls on the slopes of the heights: fur, petals and bricks get their relief in one stroke.

The same index and seed give the same picture on every machine, and at every size the same scene. Random numbers come
from PCG64 alone, and pixels see only the operations that IEEE 754 rounds exactly (+ - * / sqrt floor min max); a sine
or a cosine is taken of a Python number and rounded.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from zfnet.errors import InputError, unknown

Array = np.ndarray
Colour = tuple[float, float, float]
Bounds = tuple[float, float, float, float]
Pattern = Callable[[Array, Array, Array], Array]  # u, v, noise -> how much of the second colour, 0..1


class Scene(NamedTuple):
    """A picture and the truth about it: part boxes are top, left, bottom, right in pixels, ends exclusive."""

    image: Array  # (H, W, 3) uint8, RGB
    label: int  # index into the classes asked for
    mask: Array  # (H, W) bool, the object
    parts: dict[str, tuple[int, int, int, int]]


# ---- chance, colour, fields ------------------------------------------------------------------------------------------


class Dice:
    """Random numbers that are the same everywhere."""

    def __init__(self, *key: int):
        self.bits = np.random.Generator(np.random.PCG64(key))

    def __call__(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.bits.random())

    def count(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.bits.integers(low, high + 1))

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.count(0, len(items) - 1)]

    def table(self, rows: int, columns: int) -> Array:
        return self.bits.random((rows, columns), dtype=np.float32)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    steps = ((n + hue * 6) % 6 for n in (5, 3, 1))
    red, green, blue = (value - value * saturation * max(0.0, min(k, 4 - k, 1.0)) for k in steps)
    return red, green, blue


def blend(a: Colour, b: Colour, t: float) -> Colour:
    return a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), a[2] + t * (b[2] - a[2])


def dim(colour: Colour, factor: float) -> Colour:
    return blend((0.0, 0.0, 0.0), colour, factor)


def planes(colour: Colour) -> Array:
    return np.array(colour, dtype=np.float32)[:, None, None]


def cos_sin(degrees: float) -> tuple[float, float]:
    angle = math.radians(degrees)
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def wave(t: Array) -> Array:
    """A triangle of period 1: 1 at the whole numbers, 0 half-way."""
    return np.abs(2 * (t - np.floor(t)) - 1)


def step(low: float, high: float, t: Array) -> Array:
    """From 0 at low to 1 at high, smoothly."""
    s = np.clip((t - low) / (high - low), 0, 1)
    return s * s * (3 - 2 * s)


def between(table: Array, x: Array, y: Array) -> Array:
    """The table's values at the grid of columns x (W,) and rows y (H,), interpolated smoothly; it repeats."""
    rows, columns = table.shape
    left, top = np.floor(x), np.floor(y)
    i, j = left.astype(np.int64), top.astype(np.int64)
    fx, fy = x - left, (y - top)[:, None]
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    upper, lower = table[j % rows], table[(j + 1) % rows]
    lines = upper + fy * (lower - upper)
    start, end = lines[:, i % columns], lines[:, (i + 1) % columns]
    return start + fx * (end - start)


# ---- shapes ----------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """A signed distance in local units, and the left, top, right, bottom that it stays within."""

    bounds: Bounds
    distance: Callable[[Array, Array], Array]

    def __or__(self, other: "Shape") -> "Shape":
        (a, b, c, d), (p, q, r, s) = self.bounds, other.bounds
        both = min(a, p), min(b, q), max(c, r), max(d, s)
        return Shape(both, lambda u, v: np.minimum(self.distance(u, v), other.distance(u, v)))

    def __and__(self, other: "Shape") -> "Shape":
        (a, b, c, d), (p, q, r, s) = self.bounds, other.bounds
        both = max(a, p), max(b, q), min(c, r), min(d, s)
        return Shape(both, lambda u, v: np.maximum(self.distance(u, v), other.distance(u, v)))

    def __sub__(self, other: "Shape") -> "Shape":
        return Shape(self.bounds, lambda u, v: np.maximum(self.distance(u, v), -other.distance(u, v)))

    def grow(self, by: float) -> "Shape":
        a, b, c, d = self.bounds
        return Shape((a - by, b - by, c + by, d + by), lambda u, v: self.distance(u, v) - by)

    def turn(self, degrees: float, x: float = 0.0, y: float = 0.0) -> "Shape":
        """The shape turned clockwise about (x, y)."""
        c, s = cos_sin(degrees)
        a, b, p, q = self.bounds
        mu, mv, hu, hv = (a + p) / 2 - x, (b + q) / 2 - y, (p - a) / 2, (q - b) / 2
        mu, mv, hu, hv = x + c * mu - s * mv, y + s * mu + c * mv, abs(c) * hu + abs(s) * hv, abs(s) * hu + abs(c) * hv

        def distance(u: Array, v: Array) -> Array:
            du, dv = u - x, v - y
            return self.distance(c * du + s * dv + x, c * dv - s * du + y)

        return Shape((mu - hu, mv - hv, mu + hu, mv + hv), distance)


def disc(x: float, y: float, r: float) -> Shape:
    def distance(u: Array, v: Array) -> Array:
        du, dv = u - x, v - y
        return np.sqrt(du * du + dv * dv) - r

    return Shape((x - r, y - r, x + r, y + r), distance)


def ring(x: float, y: float, r: float, width: float) -> Shape:
    return disc(x, y, r + width / 2) - disc(x, y, r - width / 2)


def ellipse(x: float, y: float, a: float, b: float) -> Shape:
    def distance(u: Array, v: Array) -> Array:
        du, dv = (u - x) / a, (v - y) / b
        k = np.sqrt(du * du + dv * dv)
        du, dv = du / a, dv / b
        return k * (k - 1) / np.maximum(np.sqrt(du * du + dv * dv), 1e-3)

    return Shape((x - a, y - b, x + a, y + b), distance)


def capsule(x0: float, y0: float, x1: float, y1: float, r0: float, r1: float | None = None) -> Shape:
    """A line from (x0, y0) to (x1, y1) as thick as r0 at one end and r1 at the other."""
    r1 = r0 if r1 is None else r1
    bu, bv, slope = x1 - x0, y1 - y0, r1 - r0
    length2 = max(bu * bu + bv * bv, 1e-6)

    def distance(u: Array, v: Array) -> Array:
        du, dv = u - x0, v - y0
        t = np.clip((du * bu + dv * bv) / length2, 0, 1)
        du, dv = du - t * bu, dv - t * bv
        return np.sqrt(du * du + dv * dv) - (r0 + t * slope)

    r = max(r0, r1)
    return Shape((min(x0, x1) - r, min(y0, y1) - r, max(x0, x1) + r, max(y0, y1) + r), distance)


def box(x: float, y: float, a: float, b: float, round_: float = 0.0) -> Shape:
    """A rectangle of half-sides a and b."""

    def distance(u: Array, v: Array) -> Array:
        du, dv = np.abs(u - x) - (a - round_), np.abs(v - y) - (b - round_)
        ou, ov = np.maximum(du, 0), np.maximum(dv, 0)
        return np.sqrt(ou * ou + ov * ov) + np.minimum(np.maximum(du, dv), 0) - round_

    return Shape((x - a, y - b, x + a, y + b), distance)


def polygon(*points: tuple[float, float]) -> Shape:
    """A convex polygon, its corners clockwise on the screen."""
    edges = []
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        length = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
        edges.append((x0, y0, (y1 - y0) / length, -(x1 - x0) / length))

    def distance(u: Array, v: Array) -> Array:
        far = [(u - x) * nu + (v - y) * nv for x, y, nu, nv in edges]
        for other in far[1:]:
            np.maximum(far[0], other, out=far[0])
        return far[0]

    across, down = [p[0] for p in points], [p[1] for p in points]
    return Shape((min(across), min(down), max(across), max(down)), distance)


# A to Z, five rows of three bits, the top left bit first.
FONT = [int(code, 16) for code in ("2b7d 6bae 3923 6b6e 79a7 79a4 396b 5bed 7497 126a 5bad 4927 5f6d 7b6d 2b6a 6ba4 "
                                   "2b6b 6bad 388e 7492 5b6f 5b6a 5b7d 5aad 5a92 72a7").split()]  # fmt: skip


def lettering(letters: Sequence[int], x: float, y: float, dot: float) -> Shape:
    """Letters (indices into FONT, negative for a space) in a row from (x, y), dots of one side `dot`."""
    bits = np.zeros((7, 4 * len(letters) + 1), dtype=np.float32)
    for n, letter in enumerate(letters):
        if letter >= 0:
            for k in range(15):
                bits[1 + k // 3, 1 + 4 * n + k % 3] = FONT[letter] >> (14 - k) & 1
    rows, columns = bits.shape
    flat = bits.ravel()

    def distance(u: Array, v: Array) -> Array:
        p = np.clip((u - x) / dot, 0, columns - 1.001)
        q = np.clip((v - y) / dot, 0, rows - 1.001)
        i, j = np.floor(p), np.floor(q)
        p, q = p - i, q - j
        at = (j * columns + i).astype(np.int64)
        upper = flat[at] + p * (flat[at + 1] - flat[at])
        lower = flat[at + columns] + p * (flat[at + columns + 1] - flat[at + columns])
        return (0.4 - upper - q * (lower - upper)) * dot

    return Shape((x, y, x + dot * (columns - 1), y + dot * (rows - 1)), distance)


# ---- canvas and frame ------------------------------------------------------------------------------------------------


class Canvas:
    """Colours (3, H, W) and heights (H, W) over x, y, in which the shorter side runs from -0.5 to 0.5."""

    def __init__(self, rows: int, columns: int):
        self.rows, self.columns, self.unit = rows, columns, min(rows, columns)
        self.x = (np.arange(columns, dtype=np.float32) + (0.5 - columns / 2)) / self.unit
        self.y = (np.arange(rows, dtype=np.float32) + (0.5 - rows / 2)) / self.unit
        self.rgb = np.zeros((3, rows, columns), dtype=np.float32)
        self.height = np.zeros((rows, columns), dtype=np.float32)

    def noise(self, dice: Dice, cell: float, aspect: float = 1.0) -> Array:
        """Random values 0..1 (H, W) that change over `cell`; what is finer than a pixel fades to grey."""
        grid = between(dice.table(64, 64), self.x / (cell * aspect) + 1000, self.y / cell + 1000)
        return 0.5 + (grid - 0.5) * min(1.0, 0.5 * min(cell, cell * aspect) * self.unit)

    def fill(self, a: Colour, b: Colour, t: Array) -> None:
        self.rgb[:] = planes(a) + (planes(b) - planes(a)) * t

    def emboss(self, light: tuple[float, float], strength: float, gloss: float) -> None:
        """Light the slopes of the heights and flatten them."""
        slope = np.zeros_like(self.height)
        slope[:, 1:-1] = (self.height[:, :-2] - self.height[:, 2:]) * light[0]
        slope[1:-1] += (self.height[:-2] - self.height[2:]) * light[1]
        slope = np.clip(slope * (-0.5 * self.unit), -1, 1)
        self.rgb *= 1 + strength * slope
        if gloss:
            self.rgb += gloss * np.maximum(slope - 0.4, 0)
        self.height[:] = 0


class Palette(NamedTuple):
    main: Colour
    second: Colour
    third: Colour
    ink: Colour
    paper: Colour


class Frame:
    """Where one object stands on a canvas: its square [-1, 1]^2 turned, sheared, mirrored; what it covers there."""

    def __init__(
        self, canvas: Canvas, dice: Dice, palette: Palette, centre: tuple[float, float], scale: float,
        *, degrees: float = 0.0, shear: float = 0.0, stretch: float = 1.0, mirror: bool = False,
    ):  # fmt: skip
        c, s = cos_sin(degrees)
        flip = -1.0 if mirror else 1.0
        wide, tall = scale * stretch * flip, scale / stretch
        self.canvas, self.dice, self.palette, self.mirror, self.scale = canvas, dice, palette, mirror, scale
        self.centre = centre
        self.a, self.b, self.c, self.d = c * wide, c * shear * wide - s * tall, s * wide, s * shear * wide + c * tall
        self.rows, self.columns = slice(0, canvas.rows), slice(0, canvas.columns)
        self.rows, self.columns = self.window((-1.15, -1.15, 1.15, 1.15))
        x, y = canvas.x[self.columns] - centre[0], (canvas.y[self.rows] - centre[1])[:, None]
        det = self.a * self.d - self.b * self.c
        self.pixel = 1 / (canvas.unit * math.sqrt(abs(det)))
        self.u = x * (self.d / det) - y * (self.b / det)
        self.v = y * (self.a / det) - x * (self.c / det)
        self.rgb = canvas.rgb[:, self.rows, self.columns]
        self.height = canvas.height[self.rows, self.columns]
        self.cover = np.zeros_like(self.u)
        self.owner = np.zeros(self.u.shape, dtype=np.uint8)
        self.parts: dict[str, list[tuple[slice, slice]]] = {}
        self.noise = canvas.noise(dice, 0.09 * scale)[self.rows, self.columns]
        self.patches = canvas.noise(dice, 0.45 * scale)[self.rows, self.columns]
        self.coat = self.make_coat()

    def make_coat(self) -> Pattern:
        """The object's own texture, which says nothing of its class."""
        c, s = cos_sin(self.dice(0, 180))
        often, edge = self.dice(1.5, 3.5), self.dice(0.4, 0.6)
        kind = self.dice.count(0, 4)
        if kind == 0:
            return lambda u, v, n: n
        if kind == 1:
            return lambda u, v, n: step(0.35, 0.65, wave((u * c + v * s) * often + 0.5 * n))
        if kind == 2:
            return lambda u, v, n: step(0.4, 0.6, wave(u * often) * wave(v * often) * 2 - 0.3 + 0.3 * n)
        if kind == 3:
            return lambda u, v, n: np.clip(0.5 + edge * (u * c + v * s) + 0.4 * (n - 0.5), 0, 1)
        return lambda u, v, n: 0.3 * n

    def window(self, bounds: Bounds) -> tuple[slice, slice]:
        """The rows and columns, counted from the frame's own, that local bounds reach into."""
        left, top, right, bottom = bounds
        u, v, hu, hv = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
        x, hx = self.centre[0] + self.a * u + self.b * v, abs(self.a) * hu + abs(self.b) * hv
        y, hy = self.centre[1] + self.c * u + self.d * v, abs(self.c) * hu + abs(self.d) * hv
        canvas, out = self.canvas, []
        for at, half, length, own in ((y, hy, canvas.rows, self.rows), (x, hx, canvas.columns, self.columns)):
            first = math.floor((at - half) * canvas.unit + length / 2) - 1
            last = math.ceil((at + half) * canvas.unit + length / 2) + 1
            first, last = min(max(first, own.start), own.stop), min(max(last, own.start), own.stop)
            out.append(slice(first - own.start, last - own.start))
        return out[0], out[1]

    def paint(
        self, shape: Shape, colour: Colour, part: str = "",
        *, coat: Pattern | None = None, over: Colour | None = None, rise: float = 0.12, fresh: bool = False,
    ) -> None:  # fmt: skip
        """Paint a shape over what is there, as a named part or as decoration of whatever it falls on.

        `coat` mixes the colour with `over` (the palette's second colour). The shape bulges by `rise`, on top of
        what lies below it, or `fresh` from the ground.
        """
        at = rows, columns = self.window(shape.bounds)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        u, v = self.u[at], self.v[at]
        inside = -shape.distance(u, v)
        cover = np.clip(0.5 + inside / self.pixel, 0, 1)
        t = np.clip(inside / (rise if rise > 0.03 else 0.03), 0, 1)
        profile = t * (2 - t)
        tone = planes(colour)
        if coat is not None:
            tone = tone + (planes(over or self.palette.second) - tone) * coat(u, v, self.noise[at])
        rgb, height = self.rgb[:, rows, columns], self.height[at]
        rgb += cover * (tone * (0.72 + 0.28 * profile) - rgb)
        if fresh:
            height *= 1 - cover
        height += (0.7 * rise * self.scale) * profile
        if coat is not None:
            height += (0.03 * self.scale) * cover * self.noise[at]
        np.maximum(self.cover[at], cover, out=self.cover[at])
        if part:
            seen = self.parts.setdefault(part, [])
            seen.append(at)
            self.owner[at][cover >= 0.5] = list(self.parts).index(part) + 1

    def boxes(self) -> dict[str, tuple[int, int, int, int]]:
        """Where each part can be seen, in canvas pixels; a part wholly hidden or outside is left out."""
        found = {}
        swap = {"left": "right", "right": "left"} if self.mirror else {}
        for n, (name, seen) in enumerate(self.parts.items(), 1):
            top, left = min(r.start for r, _ in seen), min(c.start for _, c in seen)
            bottom, right = max(r.stop for r, _ in seen), max(c.stop for _, c in seen)
            mine = self.owner[top:bottom, left:right] == n
            rows, columns = np.flatnonzero(mine.any(1)), np.flatnonzero(mine.any(0))
            if len(rows):
                top, left = top + self.rows.start, left + self.columns.start
                stem, _, side = name.rpartition("_")
                name = f"{stem}_{swap[side]}" if side in swap else name
                found[name] = (
                    top + int(rows[0]), left + int(columns[0]), top + int(rows[-1]) + 1, left + int(columns[-1]) + 1
                )  # fmt: skip
        return found


# ---- objects ---------------------------------------------------------------------------------------------------------

SIDES = (("left", -1), ("right", 1))
BLACK, WHITE = (0.05, 0.05, 0.07), (0.97, 0.97, 0.95)


def around(n: int, start: float = 0.0) -> list[tuple[float, float, float]]:
    """n directions clockwise from `start` degrees: angle, cosine, sine."""
    return [(start + 360 * k / n, *cos_sin(start + 360 * k / n)) for k in range(n)]


def eye(f: Frame, part: str, x: float, y: float, r: float, pupil: float = 0.55, slit: float = 1.0) -> None:
    f.paint(disc(x, y, r * 1.18), f.palette.ink, part, rise=0.03)
    f.paint(disc(x, y, r), f.palette.paper, part, rise=0.06)
    f.paint(disc(x, y, r * (pupil + 0.25)), f.palette.third, part, rise=0.02)
    f.paint(ellipse(x, y, r * pupil * slit, r * pupil * 1.15), BLACK, part, rise=0.02)
    f.paint(disc(x - 0.3 * r, y - 0.35 * r, 0.22 * r), WHITE, part, rise=0.01)


def dog(f: Frame) -> None:
    p, d = f.palette, f.dice
    long, wide = d(0.4, 0.62), d(0.34, 0.44)
    f.paint(ellipse(0, 0, 0.68, 0.74) | ellipse(0, 0.45, 0.48, 0.45), p.main, "head", coat=f.coat, rise=0.35, fresh=True)
    for side, s in SIDES:
        ear = capsule(0.58 * s, -0.55, 0.78 * s, -0.55 + long + 0.2, 0.16, 0.24)
        f.paint(ear, dim(p.second, 0.8), f"ear_{side}", coat=f.coat, over=p.main, rise=0.16, fresh=True)
    f.paint(ellipse(0, -0.3, 0.1, 0.45), p.paper, coat=lambda u, v, n: n, over=p.main, rise=0.05)
    f.paint(ellipse(0, 0.62, 0.13, 0.33), (0.85, 0.35, 0.4), "tongue", rise=0.08)
    muzzle = ellipse(-wide / 2, 0.38, wide * 0.75, 0.3) | ellipse(wide / 2, 0.38, wide * 0.75, 0.3) | disc(0, 0.2, 0.26)
    f.paint(muzzle, blend(p.main, p.paper, 0.7), "muzzle", coat=lambda u, v, n: 0.4 * n, rise=0.2)
    f.paint(capsule(0, 0.2, 0, 0.6, 0.022), p.ink, rise=0.02)
    f.paint(ellipse(0, 0.13, 0.19, 0.14), BLACK, "nose", rise=0.12)
    f.paint(ellipse(-0.06, 0.08, 0.06, 0.03), (0.6, 0.6, 0.62), "nose", rise=0.02)
    for side, s in SIDES:
        eye(f, f"eye_{side}", 0.31 * s, -0.2, 0.12, 0.7)
        for k in range(3):
            f.paint(disc(s * (0.16 + 0.09 * k), 0.4 + 0.06 * (k % 2), 0.02), p.ink, rise=0.01)


def cat(f: Frame) -> None:
    p, d = f.palette, f.dice
    slit = d(0.25, 0.6)
    for side, s in SIDES:
        outer, inner = [(0.05, -0.45), (0.62, -0.98), (0.8, -0.1)], [(0.25, -0.45), (0.58, -0.8), (0.68, -0.3)]
        for shape, colour in ((outer, p.main), (inner, (0.85, 0.55, 0.55))):
            points = [(x * s, y) for x, y in (shape if s > 0 else shape[::-1])]
            f.paint(polygon(*points), colour, f"ear_{side}", coat=f.coat if shape is outer else None, rise=0.1)
    f.paint(ellipse(0, 0.12, 0.84, 0.7), p.main, "head", coat=f.coat, rise=0.35, fresh=True)
    for k in (-1, 0, 1):
        f.paint(capsule(0.17 * k, -0.5 + 0.04 * abs(k), 0.12 * k, -0.24, 0.05, 0.015), dim(p.second, 0.6), rise=0.03)
    for s in (-1, 1):
        f.paint(ellipse(0.19 * s, 0.48, 0.24, 0.19), blend(p.main, p.paper, 0.75), "muzzle", rise=0.12)
    f.paint(polygon((-0.13, 0.25), (0.13, 0.25), (0, 0.4)).grow(0.02), (0.75, 0.35, 0.4), "nose", rise=0.06)
    f.paint(capsule(0, 0.4, 0, 0.5, 0.018) | (ring(-0.1, 0.49, 0.1, 0.035) | ring(0.1, 0.49, 0.1, 0.035))
            & box(0, 0.58, 0.25, 0.09), p.ink, "mouth", rise=0.02)  # fmt: skip
    for side, s in SIDES:
        for k in (-1, 0, 1):
            f.paint(capsule(0.3 * s, 0.47 + 0.04 * k, 0.98 * s, 0.45 + 0.16 * k, 0.016, 0.008), WHITE, f"whiskers_{side}")
        eye(f, f"eye_{side}", 0.36 * s, 0.02, 0.19, 0.75, slit)


def owl(f: Frame) -> None:
    p, d = f.palette, f.dice
    for side, s in SIDES:
        f.paint(capsule(0.14 * s, 0.9, 0.3 * s, 0.92, 0.07), (0.8, 0.6, 0.2), f"foot_{side}", rise=0.05)
        f.paint(ellipse(0.3 * s, -0.8, 0.13, 0.3).turn(28 * s, 0.3 * s, -0.8), p.main, f"tuft_{side}", coat=f.coat)
    f.paint(ellipse(0, 0.1, 0.66, 0.82), p.main, "body", coat=f.coat, rise=0.35, fresh=True)
    size = d(5, 7)
    scallop = lambda u, v, n: step(0.1, 0.9, wave(v * size / 2 + wave(u * size / 2 + 0.5) * 0.5))  # noqa: E731
    f.paint(ellipse(0, 0.42, 0.44, 0.46), p.paper, "chest", coat=scallop, over=p.second, rise=0.12)
    for side, s in SIDES:
        wing = ellipse(0.6 * s, 0.28, 0.2, 0.55).turn(10 * s, 0.6 * s, 0.28)
        f.paint(wing, dim(p.second, 0.75), f"wing_{side}", coat=scallop, over=p.main, rise=0.14, fresh=True)
        f.paint(disc(0.28 * s, -0.32, 0.34), blend(p.main, p.paper, 0.6), f"eye_{side}", rise=0.08,
                coat=lambda u, v, n: n)  # fmt: skip
        eye(f, f"eye_{side}", 0.28 * s, -0.32, 0.2, d(0.55, 0.7))
    f.paint(polygon((-0.11, -0.25), (0.11, -0.25), (0, 0.06)).grow(0.02), (0.9, 0.65, 0.2), "beak", rise=0.1)


def face(f: Frame) -> None:
    p, d = f.palette, f.dice
    skin = blend(p.main, (0.9, 0.68, 0.54), 0.6)
    hair = dim(p.second, 0.6)
    low = d(-0.3, 0.6)
    streaks = lambda u, v, n: wave(u * 9 + n)  # noqa: E731
    f.paint(box(0, (low - 0.6) / 2, 0.72, (low + 1.3) / 2, 0.55 if low < 0.1 else 0.4), hair, "hair", coat=streaks,
            over=dim(hair, 1.7), rise=0.2)  # fmt: skip
    f.paint(box(0, 0.85, 0.22, 0.15, 0.05), dim(skin, 0.8), "neck", rise=0.1)
    for side, s in SIDES:
        f.paint(ellipse(0.62 * s, 0.05, 0.12, 0.18), skin, f"ear_{side}", rise=0.08, fresh=True)
    f.paint(ellipse(0, -0.02, 0.6, 0.6) | ellipse(0, 0.25, 0.5, 0.62), skin, "skin", rise=0.35, fresh=True,
            coat=lambda u, v, n: 0.12 * n)  # fmt: skip
    fringe = ellipse(0, -0.1, 0.66, 0.75) - ellipse(d(-0.25, 0.25), 0.25, 0.72, d(0.55, 0.7))
    f.paint(fringe & box(0, -0.6, 0.8, 0.6), hair, "hair", coat=streaks, over=dim(hair, 1.7), rise=0.1)
    for side, s in SIDES:
        f.paint(capsule(0.14 * s, -0.17, 0.4 * s, -0.17 + d(-0.06, 0.06), 0.035), dim(hair, 0.7), f"brow_{side}", rise=0.03)
        f.paint(ellipse(0.27 * s, 0.03, 0.15, 0.09), WHITE, f"eye_{side}", rise=0.04)
        f.paint(disc(0.27 * s, 0.03, 0.085), p.third, f"eye_{side}", rise=0.02)
        f.paint(disc(0.27 * s, 0.03, 0.045), BLACK, f"eye_{side}", rise=0.01)
        f.paint(disc(0.24 * s, 0.0, 0.02), WHITE, f"eye_{side}", rise=0.01)
    f.paint(capsule(0, 0.02, 0, 0.3, 0.035, 0.09), dim(skin, 0.97), "nose", rise=0.12)
    smile, wide = d(0.35, 0.55), d(0.2, 0.28)
    mouth = disc(0, 0.56 - smile / 2, smile / 2 + 0.07) - disc(0, 0.46 - smile / 2, smile / 2 + 0.09)
    f.paint(mouth & box(0, 0.56, wide, 0.12), (0.72, 0.25, 0.28), "mouth", rise=0.04)
    if d(0, 1) < 0.3:
        for s in (-1, 1):
            f.paint(ring(0.27 * s, 0.03, 0.2, 0.035) | capsule(0.07 * s, 0.0, 0, 0.0, 0.02), p.ink, "glasses", rise=0.03)


def fish(f: Frame) -> None:
    p, d = f.palette, f.dice
    fan = lambda u, v, n: wave(v * 6 + u)  # noqa: E731
    deep = d(0.42, 0.58)
    f.paint(polygon((0.5, -0.02), (0.98, -0.5), (0.86, 0.0), (0.5, 0.05)) | polygon((0.5, -0.05), (0.86, 0.0), (0.98, 0.5)),
            p.third, "tail", coat=fan, rise=0.08)  # fmt: skip
    f.paint(ellipse(0.0, -deep, 0.4, 0.3).turn(12), p.third, "fin_top", coat=lambda u, v, n: wave(u * 7 + v * 2), rise=0.06)
    f.paint(ellipse(0.15, deep, 0.2, 0.22).turn(-20, 0.15, deep), p.third, "fin_bottom", coat=fan, rise=0.06)
    body = ellipse(-0.15, 0, 0.78, deep) | polygon((-0.1, -deep * 0.98), (0.75, -0.09), (0.75, 0.09), (-0.1, deep * 0.98))
    f.paint(body, p.main, "body", coat=f.coat, rise=0.32, fresh=True)
    size = d(8, 10)

    def scales(u: Array, v: Array, n: Array) -> Array:
        x = u * size * 0.75
        odd = wave(np.floor(x) * 0.5) * 0.5
        y = v * size * 0.75 + odd
        du, dv = x - np.floor(x) - 0.85, y - np.floor(y) - 0.5
        return step(0.45, 0.75, np.sqrt(du * du + dv * dv)) * 0.8

    f.paint(ellipse(0.08, 0, 0.52, deep * 0.82), p.main, "scales", coat=scales, over=dim(p.second, 0.7), rise=0.03)
    f.paint(ring(-0.75, 0, 0.42, 0.035) & ellipse(-0.15, 0, 0.7, deep * 0.9) & box(-0.3, 0, 0.3, deep), p.ink, "gill", rise=0.03)
    f.paint(ellipse(0.05, 0.12, 0.2, 0.12).turn(20, 0.05, 0.12), p.third, "fin_side", coat=fan, rise=0.08)
    f.paint(capsule(-0.92, 0.12, -0.74, 0.14, 0.03), p.ink, "mouth", rise=0.03)
    eye(f, "eye", -0.6, -0.12, 0.13, 0.6)


def butterfly(f: Frame) -> None:
    p, d = f.palette, f.dice
    up, low, spots = d(24, 40), d(-40, -22), d.count(2, 4)
    for name, x, y, a, b, angle in (("low", 0.4, 0.42, 0.46, 0.34, low + 70), ("high", 0.5, -0.33, 0.56, 0.38, -up)):
        for side, s in SIDES:
            part = f"wing_{name}_{side}"
            wing = lambda k, s=s: ellipse(x * s, y, a * k, b * k).turn(angle * s, x * s, y)  # noqa: B023, E731
            f.paint(wing(1.0), p.ink, part, rise=0.06, fresh=True)
            f.paint(wing(0.87), p.main, part, rise=0.05, coat=lambda u, v, n: np.clip(np.abs(u) * 1.3 - 0.2 + 0.4 * n, 0, 1))
            for k in range(3):
                c, t = cos_sin(angle + 24 * (k - 1))
                f.paint(capsule(0.04 * s, y * 0.4, s * (x + 0.4 * c * a), y + 0.4 * t * a, 0.012), p.ink, rise=0.02)
            for k in range(spots):
                c, t = cos_sin(angle + 38 * (k - (spots - 1) / 2))
                at = s * (x + 0.62 * a * c), y + 0.62 * a * t
                f.paint(disc(*at, 0.085), p.paper, rise=0.03)
                f.paint(disc(*at, 0.045), p.third, rise=0.02)
    for side, s in SIDES:
        f.paint(capsule(0, -0.45, 0.22 * s, -0.9, 0.018), p.ink, f"antenna_{side}", rise=0.02)
        f.paint(disc(0.22 * s, -0.9, 0.045), p.ink, f"antenna_{side}", rise=0.03)
    f.paint(capsule(0, -0.3, 0, 0.55, 0.1, 0.05), dim(p.second, 0.4), "body", rise=0.1, fresh=True,
            coat=lambda u, v, n: wave(v * 6))  # fmt: skip
    f.paint(disc(0, -0.42, 0.11), p.ink, "head", rise=0.1)


def spoked(f: Frame, part: str, x: float, y: float, r: float, tyre: float, spokes: int, start: float, thick: float) -> None:
    """A wheel: `tyre` and `thick` are fractions of its radius r."""
    p = f.palette
    f.paint(ring(x, y, r * (1 - tyre / 2), r * tyre), BLACK, part and f"{part}tyre", rise=0.5 * tyre * r, fresh=True,
            coat=lambda u, v, n: 0.5 * n, over=(0.35, 0.35, 0.36))  # fmt: skip
    rim = r * (1 - tyre)
    f.paint(ring(x, y, rim - r * 0.06, r * 0.12), p.paper, part and f"{part}rim", rise=0.08 * r)
    for k, (_, c, s) in enumerate(around(spokes, start), 1):
        bar = capsule(x, y, x + c * (rim - r * 0.08), y + s * (rim - r * 0.08), r * thick * 1.5, r * thick)
        f.paint(bar, blend(p.paper, p.main, 0.3), part and f"{part}spoke_{k}", rise=0.05 * r)
    f.paint(disc(x, y, r * (0.1 + thick)), p.main, part and f"{part}hub", rise=0.1 * r)
    f.paint(disc(x, y, r * 0.06), p.ink, rise=0.05 * r)


def wheel(f: Frame) -> None:
    d = f.dice
    spokes = d.count(5, 9)
    f.paint(disc(0, 0, 0.9), dim(f.palette.second, 0.35), "disc", rise=0.05, fresh=True)
    for _, c, s in around(22, d(0, 16)):
        f.paint(box(0.93 * c, 0.93 * s, 0.075, 0.075, 0.02), BLACK, rise=0.05)
    spoked(f, " ".strip(), 0, 0, 0.95, d(0.2, 0.3), spokes, d(0, 72), d(0.035, 0.08))


def car(f: Frame) -> None:
    p, d = f.palette, f.dice
    glass = blend(p.ink, (0.6, 0.75, 0.85), 0.75)
    roof, back, spokes = d(-0.55, -0.42), d(0.35, 0.8), d.count(4, 6)
    f.paint(polygon((-0.42, roof), (back - 0.15, roof), (back + 0.05, 0.05), (-0.75, 0.05)).grow(0.04), p.main, "cabin", rise=0.15)
    f.paint(box(0, 0.18, 0.96, 0.26, 0.16), p.main, "body", rise=0.22, coat=f.coat, over=blend(p.main, p.second, 0.5), fresh=True)
    middle = (back - 0.5) / 2
    top, base = roof + 0.06, -0.04
    f.paint(polygon((-0.4, top), (middle - 0.04, top), (middle - 0.04, base), (-0.62, base)), glass, "window_1", rise=0.03)
    f.paint(polygon((middle + 0.04, top), (back - 0.2, top), (back - 0.06, base), (middle + 0.04, base)), glass, "window_2", rise=0.03)
    for x in (middle, back - 0.02):
        f.paint(capsule(x, 0.0, x, 0.36, 0.012), dim(p.main, 0.4), rise=0.02)
    f.paint(capsule(middle + 0.08, 0.1, middle + 0.18, 0.1, 0.022), p.paper, "handle", rise=0.03)
    f.paint(ellipse(-0.88, 0.12, 0.07, 0.09), (1.0, 0.95, 0.7), "headlight", rise=0.05)
    f.paint(box(0.91, 0.1, 0.04, 0.08, 0.02), (0.8, 0.12, 0.1), "taillight", rise=0.04)
    f.paint(box(0, 0.4, 0.94, 0.045, 0.04), dim(p.ink, 0.9), "bumper", rise=0.04)
    for k, x in enumerate((-0.55, 0.56), 1):
        f.paint(disc(x, 0.4, 0.28), BLACK, rise=0.02, fresh=True)
        f.paint(disc(x, 0.42, 0.24), dim(p.ink, 0.6), f"wheel_{k}", rise=0.08, fresh=True)
        f.paint(disc(x, 0.42, 0.14), p.paper, f"wheel_{k}", rise=0.05)
        for _, c, s in around(spokes, 20):
            f.paint(disc(x + 0.085 * c, 0.42 + 0.085 * s, 0.028), p.ink, rise=0.01)


def petals(f: Frame, n: int, start: float, near: float, far: float, wide: float, colour: Colour, first: int = 1) -> None:
    mid, half = (near + far) / 2, (far - near) / 2
    vein = lambda u, v, n: np.clip((u * u + v * v) * 1.1 + 0.3 * n - 0.1, 0, 1)  # noqa: E731
    for k, (angle, c, s) in enumerate(around(n, start), first):
        leaf = ellipse(mid * c, mid * s, half, wide).turn(0) if n == 0 else ellipse(mid, 0, half, wide).turn(angle)
        f.paint(leaf, colour, f"petal_{k}", coat=vein, over=f.palette.third, rise=0.1, fresh=True)
        f.paint(capsule(near * c, near * s, far * 0.8 * c, far * 0.8 * s, 0.012), dim(colour, 0.6), rise=0.02)


def flower(f: Frame) -> None:
    p, d = f.palette, f.dice
    n, start = d.count(5, 8), d(0, 72)
    petals(f, n, start, 0.12, d(0.88, 0.98), 1.75 / n, p.main)
    f.paint(disc(0, 0, 0.25), p.second, "disk", rise=0.12, coat=lambda u, v, n: wave(u * 9) * wave(v * 9), over=p.paper, fresh=True)
    for _, c, s in around(10, start):
        f.paint(disc(0.25 * c, 0.25 * s, 0.045), blend(p.second, p.paper, 0.6), "disk", rise=0.04)


def sunflower(f: Frame) -> None:
    p, d = f.palette, f.dice
    n, start = d.count(15, 19), d(0, 24)
    petals(f, n, start + 180 / n, 0.4, 0.94, 0.12, dim(p.main, 0.75))
    petals(f, n, start, 0.38, 0.86, 0.11, p.main, n + 1)
    f.paint(disc(0, 0, 0.52), dim(p.second, 0.35), "disk", rise=0.16, fresh=True)
    for k in range(1, 56):
        c, s = cos_sin(137.508 * k)
        r = 0.064 * math.sqrt(k)
        f.paint(disc(r * c, r * s, 0.028 + 0.012 * r), blend(p.second, p.paper, 0.2 + 0.5 * r), rise=0.03)


def tree(f: Frame) -> None:
    p, d = f.palette, f.dice
    bark = lambda u, v, n: wave(u * 8 + n)  # noqa: E731
    f.paint(capsule(0, -0.1, 0, 0.88, 0.1, 0.17) & box(0, 0.4, 0.3, 0.55), dim(p.second, 0.55), "trunk", coat=bark, over=p.ink, rise=0.12)
    for side, s in SIDES:
        f.paint(capsule(0, 0.3, 0.4 * s, -0.15, 0.06, 0.035), dim(p.second, 0.55), f"branch_{side}", coat=bark, over=p.ink, rise=0.06)
    leafy = lambda u, v, n: step(0.25, 0.75, n)  # noqa: E731
    clumps = [(c * d(0.4, 0.52), s * d(0.3, 0.4) - 0.38, d(0.24, 0.34)) for _, c, s in around(d.count(7, 9), d(0, 60))]
    for x, y, r in sorted([*clumps, (0, -0.38, 0.4), (0.12, -0.55, 0.3)], key=lambda c: -c[1]):
        f.paint(disc(x, y, r), blend(p.main, p.paper, 0.25 * d(0, 1)), "crown", coat=leafy, over=dim(p.main, 0.55), rise=0.2)
    for k in range(d.count(0, 7)):
        f.paint(disc(d(-0.6, 0.6), d(-0.75, -0.05), 0.065), p.third, f"fruit_{k + 1}", rise=0.06)


def house(f: Frame) -> None:
    p, d = f.palette, f.dice
    eave, tall = d(-0.25, -0.1), d(-0.98, -0.8)
    left = d.count(0, 1) * 2 - 1

    def bricks(u: Array, v: Array, n: Array) -> Array:
        y = v * 8
        x = u * 4 + wave(np.floor(y) * 0.5) * 0.5
        return np.maximum(step(0.75, 0.95, wave(x)), step(0.6, 0.9, wave(y)))

    tiles = lambda u, v, n: step(0.3, 0.9, wave(v * 6 + 0.3 * wave(u * 8)))  # noqa: E731
    f.paint(box(0.5 * left, -0.65, 0.1, 0.3), dim(p.second, 0.7), "chimney", coat=bricks, over=p.ink, rise=0.06)
    f.paint(box(0, 0.4, 0.74, 0.54), p.main, "wall", coat=bricks, over=blend(p.main, p.paper, 0.6), rise=0.06, fresh=True)
    f.paint(polygon((-0.96, eave + 0.08), (-0.4 * d(0, 1), tall), (0.4 * d(0, 1), tall), (0.96, eave + 0.08)), dim(p.second, 0.8),
            "roof", coat=tiles, over=dim(p.second, 0.4), rise=0.08, fresh=True)  # fmt: skip
    f.paint(box(0.34 * left, 0.56, 0.19, 0.38, 0.02), p.paper, "door", rise=0.03)
    f.paint(box(0.34 * left, 0.58, 0.15, 0.36, 0.01), p.third, "door", coat=lambda u, v, n: wave(u * 7 + n), over=dim(p.third, 0.6), rise=0.04)
    f.paint(disc(0.25 * left, 0.6, 0.03), p.paper, "door", rise=0.03)
    for k, y in enumerate((0.2, 0.62), 1):
        x = -0.34 * left
        f.paint(box(x, y, 0.2, 0.17), p.paper, f"window_{k}", rise=0.04)
        f.paint(box(x, y, 0.16, 0.13), (0.45, 0.62, 0.75), f"window_{k}", rise=0.02, coat=lambda u, v, n: n, over=p.ink)
        f.paint(box(x, y, 0.16, 0.02) | box(x, y, 0.02, 0.13), p.paper, rise=0.02)


def clock(f: Frame) -> None:
    p, d = f.palette, f.dice
    f.paint(disc(0, 0, 0.95), p.main, "rim", coat=f.coat, rise=0.16, fresh=True)
    f.paint(disc(0, 0, 0.78), dim(p.main, 0.5), "rim", rise=0.03)
    f.paint(disc(0, 0, 0.75), p.paper, "dial", coat=lambda u, v, n: 0.25 * n, rise=0.04, fresh=True)
    for k, (angle, c, s) in enumerate(around(12, -60), 1):
        long = 0.09 if k % 3 == 0 else 0.05
        f.paint(box(0.64, 0, long, 0.03).turn(angle), p.ink, f"tick_{k}", rise=0.02)
    minutes = d.count(0, 59)
    for name, angle, far, r in (("minute", 6 * minutes, 0.58, 0.03), ("hour", 30 * d.count(0, 11) + minutes / 2, 0.38, 0.05)):
        c, s = cos_sin(angle - 90)
        f.paint(capsule(-0.12 * c, -0.12 * s, far * c, far * s, r, r * 0.5), p.ink, f"hand_{name}", rise=0.03)
    f.paint(disc(0, 0, 0.07), p.third, "hub", rise=0.06)


def keyboard(f: Frame) -> None:
    p, d = f.palette, f.dice
    f.paint(box(0, 0, 0.98, 0.55, 0.08), p.main, "case", coat=f.coat, over=blend(p.main, p.second, 0.5), rise=0.1, fresh=True)
    cap = p.paper if d(0, 1) < 0.5 else p.ink
    sign = p.ink if cap is p.paper else p.paper
    pitch, dot = 0.206, 0.022
    n = 0
    for row in range(4):
        keys = [(-0.824 + pitch * k + 0.05 * (row - 1), 0.088) for k in range(9 if row < 3 else 2)]
        y = -0.36 + 0.22 * row + 0.03
        if row == 3:
            keys = [(-0.8, 0.1), (0, 0.62), (0.8, 0.1)]
        for x, half in keys:
            n += 1
            special = half < 0.1 and row == 0 and x < -0.8
            f.paint(box(x, y, half, 0.092, 0.03), p.third if special else cap, f"key_{n}", rise=0.05)
            if row < 3:
                f.paint(lettering([d.count(0, 25)], x - 2 * dot, y - 3 * dot, dot), sign, rise=0.0)


def page(f: Frame) -> None:
    p, d = f.palette, f.dice
    f.paint(box(0.03, 0.03, 0.76, 0.96), dim(p.main, 0.6), "sheet_2", rise=0.03)
    paper = blend(p.paper, p.main, d(0, 0.25))
    f.paint(box(-0.02, -0.02, 0.76, 0.96), paper, "sheet_1", coat=lambda u, v, n: 0.25 * n, over=dim(paper, 0.8), rise=0.03)
    words = lambda n: [-1 if d(0, 1) < 0.2 else d.count(0, 25) for _ in range(n)]  # noqa: E731
    ink = p.ink if d(0, 1) < 0.7 else dim(p.third, 0.6)
    f.paint(lettering([d.count(0, 25) for _ in range(7)], -0.64, -0.9, 0.045), ink, "title", rise=0.0)
    picture = d.count(0, 1) * 2 - 1
    for k in range(7):
        short = k in (1, 2, 3)
        left = -0.02 if short and picture < 0 else -0.66
        f.paint(lettering(words(8 if short else 15), left, -0.48 + 0.19 * k, 0.0205 * (1.0 if not short else 0.95)), ink,
                f"line_{k + 1}", rise=0.0)  # fmt: skip
    x = 0.34 * picture - 0.02
    f.paint(box(x, -0.05, 0.27, 0.24), p.second, "picture", coat=f.coat, over=p.third, rise=0.02)
    f.paint(disc(x, -0.05, 0.12), p.main, "picture", rise=0.02)


def honeycomb(f: Frame) -> None:
    p, d = f.palette, f.dice
    r = d(0.21, 0.25)
    corners = [(round(1.1547 * c, 6), round(1.1547 * s, 6)) for _, c, s in around(6, -90)]
    hexagon = lambda x, y, k: polygon(*[(x + k * a, y + k * b) for a, b in corners])  # noqa: E731
    n = 0
    cells = [(2 * r * (q + row / 2), 1.732 * r * row) for row in range(-3, 4) for q in range(-5, 6)]
    cells = [(x, y) for x, y in cells if x * x + y * y < (0.98 - r) ** 2]
    for x, y in cells:
        f.paint(hexagon(x, y, r * 1.12), p.main, "wax", coat=f.coat, over=dim(p.main, 0.8), rise=0.05)
    for x, y in cells:
        n += 1
        full = d(0, 1)
        inner = dim(p.main, 0.3) if full < 0.5 else p.third if full < 0.85 else blend(p.main, p.paper, 0.6)
        f.paint(hexagon(x, y, r * 0.8), inner, f"cell_{n}", rise=-0.08 if full < 0.5 else 0.05,
                coat=lambda u, v, n: 0.3 * n)  # fmt: skip
        if 0.5 <= full < 0.85:
            f.paint(ellipse(x - 0.3 * r, y - 0.3 * r, 0.2 * r, 0.12 * r), WHITE, rise=0.01)


def guitar(f: Frame) -> None:
    p, d = f.palette, f.dice
    waist = d(0.2, 0.28)
    wood = lambda u, v, n: wave(u * 5 + n * 0.8)  # noqa: E731
    f.paint(polygon((-0.1, -0.96), (0.1, -0.96), (0.075, -0.7), (-0.075, -0.7)), dim(p.second, 0.6), "head", rise=0.05)
    for k in range(6):
        s, y = k % 2 * 2 - 1, -0.93 + 0.08 * (k // 2)
        f.paint(disc(0.14 * s, y, 0.035), p.paper, f"peg_{k + 1}", rise=0.04)
    body = ellipse(0, 0.6, 0.44, 0.37) | ellipse(0, 0.13, 0.34, 0.28) | box(0, 0.33, waist + 0.08, 0.2)
    f.paint(body.grow(0.02), dim(p.main, 0.45), "body", rise=0.05, fresh=True)
    f.paint(body.grow(-0.025), p.main, "body", coat=wood, over=dim(p.main, 0.7), rise=0.08)
    f.paint(disc(0, 0.22, 0.17), p.paper, "hole", rise=0.02)
    f.paint(disc(0, 0.22, 0.13), BLACK, "hole", rise=0.02)
    f.paint(box(0, 0.64, 0.2, 0.045, 0.02), p.ink, "bridge", rise=0.04)
    f.paint(box(0, -0.33, 0.065, 0.4), dim(p.second, 0.4), "neck", rise=0.06, fresh=True)
    for k in range(7):
        f.paint(box(0, -0.68 + 0.1 * k, 0.065, 0.01), p.paper, rise=0.01)
    for k in (-1, 0, 1):
        f.paint(capsule(0.035 * k, -0.72, 0.05 * k, 0.64, 0.007), WHITE, rise=0.0)


def mushroom(f: Frame) -> None:
    p, d = f.palette, f.dice
    tall, thick = d(0.5, 0.75), d(0.16, 0.26)
    f.paint(capsule(0, -0.1, 0, 0.72, thick * 0.8, thick), p.paper, "stem", coat=lambda u, v, n: 0.6 * wave(u * 9 + n), rise=0.14)
    f.paint(ellipse(0, 0.22, thick * 1.5, 0.09), blend(p.paper, p.main, 0.2), "skirt", coat=lambda u, v, n: wave(u * 12), rise=0.05)
    f.paint(ellipse(0, -0.05, 0.86, 0.17), dim(p.paper, 0.7), "gills", coat=lambda u, v, n: wave(u * 14), over=p.ink, rise=0.04, fresh=True)
    cap = ellipse(0, -0.06, 0.92, tall + 0.2) & (box(0, -0.56, 1, 0.5) | ellipse(0, -0.08, 0.92, 0.08))
    f.paint(cap, p.main, "cap", coat=lambda u, v, n: 0.4 * n, rise=0.28, fresh=True)
    for k, (x, y) in enumerate([(0.0, -0.38), (-0.42, -0.26), (0.4, -0.24), (-0.68, -0.14), (0.68, -0.16), (0.2, -0.62), (-0.22, -0.64)]):
        r = d(0.06, 0.12)
        f.paint(ellipse(x, y * (tall + 0.2) / 0.82, r, r * 0.8) & cap, WHITE, f"spot_{k + 1}", rise=0.04)


def umbrella(f: Frame) -> None:
    p, d = f.palette, f.dice
    n, tall = d.count(4, 6), d(0.8, 0.92)
    f.paint(capsule(0, -0.9, 0, 0.78, 0.03), dim(p.paper, 0.7), "shaft", rise=0.04)
    hook = ring(0.14, 0.78, 0.14, 0.075) & box(0.14, 0.92, 0.3, 0.14)
    f.paint(hook | capsule(0, 0.66, 0, 0.78, 0.038) | disc(0.28, 0.76, 0.036), p.third, "handle", rise=0.05)
    wide = 0.96 / n
    canopy = ellipse(0, 0.05, 0.96, tall) & box(0, -0.46, 1, 0.51)
    for k in range(n):
        canopy = canopy - ellipse(-0.96 + wide * (2 * k + 1), 0.06, wide * 0.9, 0.13)
    for k in range(n):
        low, high = (abs(1 - 2 * (k + e) / n) * (1 if 2 * (k + e) >= n else -1) for e in (0, 1))
        parts = ellipse(0, 0.05, 0.96 * max(abs(low), 1e-3), tall), ellipse(0, 0.05, 0.96 * max(abs(high), 1e-3), tall)
        panel = canopy
        if low < 0:
            panel = panel & (parts[0] & box(-0.48, -0.4, 0.5, 0.6) | box(0.5, -0.4, 0.5, 0.6))
        else:
            panel = (panel - parts[0]) & box(0.48, -0.4, 0.5, 0.6)
        if high > 0:
            panel = panel & (parts[1] | box(-0.5, -0.4, 0.5, 0.6))
        else:
            panel = panel & box(-0.48, -0.4, 0.5, 0.6) - parts[1] if high < 0 else panel & box(-0.5, -0.4, 0.5, 0.6)
        f.paint(panel, (p.main, p.second)[k % 2], f"panel_{k + 1}", coat=lambda u, v, n: 0.2 * n, over=p.ink, rise=0.1, fresh=True)


def boat(f: Frame) -> None:
    p, d = f.palette, f.dice
    top, seams = d(-0.95, -0.82), d(4, 6)
    cloth = lambda u, v, n: 0.5 * step(0.8, 1.0, wave(v * seams))  # noqa: E731
    f.paint(capsule(0, top, 0, 0.5, 0.03), dim(p.second, 0.5), "mast", rise=0.04)
    f.paint(polygon((0.06, top + 0.1), (0.75, 0.33), (0.06, 0.33)), p.paper, "sail_main", coat=cloth, over=p.ink, rise=0.14)
    f.paint(polygon((-0.06, top + 0.25), (-0.06, 0.33), (-0.68, 0.33)), p.third, "sail_jib", coat=cloth, over=p.ink, rise=0.12)
    f.paint(polygon((0, top - 0.02), (0.28, top + 0.05), (0, top + 0.12)), p.second, "flag", rise=0.03)
    hull = polygon((-0.96, 0.44), (0.92, 0.44), (0.66, 0.86), (-0.62, 0.86))
    f.paint(hull.grow(0.02), p.main, "hull", coat=lambda u, v, n: step(0.7, 0.9, wave(v * 7)), over=dim(p.main, 0.5), rise=0.14, fresh=True)
    f.paint(box(-0.02, 0.46, 0.95, 0.05, 0.03), p.second, "deck", rise=0.04)
    for k in range(3):
        f.paint(disc(-0.4 + 0.4 * k, 0.62, 0.085), p.paper, f"porthole_{k + 1}", rise=0.04)
        f.paint(disc(-0.4 + 0.4 * k, 0.62, 0.055), p.ink, f"porthole_{k + 1}", rise=0.02)


def bicycle(f: Frame) -> None:
    p, d = f.palette, f.dice
    r, start = d(0.38, 0.42), d(0, 40)
    back, front, crank, seat, head = (-0.54, 0.4), (0.54, 0.4), (-0.1, 0.42), (-0.26, -0.32), (0.36, -0.3)
    for name, (x, y) in (("back", back), ("front", front)):
        for _, c, s in around(10, start):
            f.paint(capsule(x, y, x + r * c, y + r * s, 0.012), p.paper, f"wheel_{name}", rise=0.01)
        f.paint(ring(x, y, r, 0.085), p.ink, f"wheel_{name}", rise=0.05)
        f.paint(ring(x, y, r - 0.06, 0.03), p.paper, f"wheel_{name}", rise=0.02)
        f.paint(disc(x, y, 0.05), p.paper, f"wheel_{name}", rise=0.03)
    for a, b in ((back, crank), (back, seat), (crank, seat), (crank, head), (seat, head), (head, front)):
        f.paint(capsule(*a, *b, 0.042), p.main, "frame", rise=0.05)
    f.paint(capsule(*seat, -0.3, -0.46, 0.03), p.paper, "saddle", rise=0.03)
    f.paint(capsule(-0.46, -0.5, -0.12, -0.48, 0.085, 0.05), p.second, "saddle", rise=0.06)
    f.paint(capsule(*head, 0.3, -0.52, 0.03), p.paper, "handlebar", rise=0.03)
    f.paint(capsule(0.3, -0.52, 0.48, -0.58, 0.04) | capsule(0.48, -0.58, 0.56, -0.46, 0.045), p.second, "handlebar", rise=0.04)
    f.paint(ring(*crank, 0.11, 0.05), p.third, "crank", rise=0.03)
    f.paint(capsule(*crank, crank[0] + 0.1, crank[1] + 0.2, 0.025), p.ink, "crank", rise=0.02)
    f.paint(box(crank[0] + 0.12, crank[1] + 0.21, 0.09, 0.03, 0.01), p.ink, "pedal", rise=0.02)


def windmill(f: Frame) -> None:
    p, d = f.palette, f.dice
    tower = polygon((-0.22, -0.3), (0.22, -0.3), (0.42, 0.94), (-0.42, 0.94))
    f.paint(tower, p.main, "tower", coat=lambda u, v, n: step(0.6, 0.9, wave(v * 5)) * 0.6 + 0.3 * n, rise=0.2, fresh=True)
    f.paint(ellipse(0, -0.32, 0.27, 0.26) & box(0, -0.45, 0.4, 0.18), dim(p.second, 0.7), "cap", rise=0.12, fresh=True)
    f.paint(box(0, 0.74, 0.13, 0.2, 0.08), dim(p.third, 0.6), "door", rise=0.04)
    for k, y in enumerate((0.05, 0.38), 1):
        f.paint(box(0, y, 0.08, 0.1, 0.03), p.ink, f"window_{k}", rise=0.03)
    lattice = lambda c, s: lambda u, v, n: np.maximum(  # noqa: E731
        step(0.5, 0.8, wave((u * c + (v + 0.32) * s) * 8)), step(0.6, 0.9, wave(((v + 0.32) * c - u * s) * 8))
    )
    for k, (angle, c, s) in enumerate(around(4, d(15, 75)), 1):
        sail = box(0.46, -0.41, 0.3, 0.09).turn(angle, 0, -0.32)
        f.paint(capsule(0, -0.32, 0.78 * c * 0.85, -0.32 + 0.78 * s * 0.85, 0.03), p.ink, f"sail_{k}", rise=0.03)
        f.paint(sail, p.paper, f"sail_{k}", coat=lattice(c, s), over=dim(p.second, 0.5), rise=0.03, fresh=True)
    f.paint(disc(0, -0.32, 0.08), p.second, "hub", rise=0.08)


def cup(f: Frame) -> None:
    p, d = f.palette, f.dice
    low, band = d(0.36, 0.52), d(0.0, 0.25)
    f.paint(ellipse(-0.05, 0.78, 0.88, 0.17), p.second, "saucer", rise=0.08)
    f.paint(ellipse(-0.05, 0.74, 0.6, 0.1), dim(p.second, 0.75), "saucer", rise=0.04)
    f.paint(ellipse(0.6, 0.1, 0.34, 0.36) - ellipse(0.6, 0.1, 0.21, 0.23), p.main, "handle", rise=0.08)
    body = polygon((-0.72, -0.4), (0.6, -0.4), (low, 0.72), (-low - 0.1, 0.72)) | ellipse(-0.05, 0.72, low + 0.03, 0.09)
    f.paint(body, p.main, "body", coat=f.coat, rise=0.3, fresh=True)
    f.paint(box(-0.05, 0.2 + band, 0.8, 0.1) & body, p.third, "band", coat=lambda u, v, n: step(0.3, 0.7, wave(u * 5)), over=p.paper, rise=0.02)
    f.paint(ellipse(-0.06, -0.4, 0.67, 0.2), blend(p.main, p.paper, 0.6), "rim", rise=0.04)
    f.paint(ellipse(-0.06, -0.38, 0.57, 0.145), (0.2, 0.11, 0.06), "coffee", coat=lambda u, v, n: 0.6 * n, over=(0.5, 0.33, 0.2), rise=0.02)
    for k in range(d.count(0, 3)):
        x = -0.3 + 0.24 * k
        f.paint(capsule(x, -0.55, x + 0.07, -0.72, 0.03, 0.045) | capsule(x + 0.07, -0.72, x, -0.92, 0.045, 0.015), WHITE,
                f"steam_{k + 1}", rise=0.01)  # fmt: skip


def ladybird(f: Frame) -> None:
    p, d = f.palette, f.dice
    for side, s in SIDES:
        for k, (y, out) in enumerate(((-0.3, -0.5), (0.1, 0.12), (0.5, 0.72)), 1):
            f.paint(capsule(0.4 * s, y, 0.78 * s, (y + out) / 2, 0.055) | capsule(0.78 * s, (y + out) / 2, 0.92 * s, out + 0.08, 0.045),
                    p.ink, f"leg_{k}_{side}", rise=0.04)  # fmt: skip
        f.paint(capsule(0.12 * s, -0.75, 0.32 * s, -0.95, 0.03), p.ink, f"antenna_{side}", rise=0.02)
    f.paint(ellipse(0, -0.6, 0.34, 0.26), BLACK, "head", rise=0.14, fresh=True)
    for side, s in SIDES:
        f.paint(ellipse(0.2 * s, -0.68, 0.08, 0.07), WHITE, f"eye_{side}", rise=0.03)
    spots = d.count(2, 4)
    for side, s in SIDES:
        wing = ellipse(0, 0.18, 0.68, 0.74) & box(0.5 * s, 0.18, 0.5, 0.8)
        f.paint(wing, p.main, f"wing_{side}", coat=lambda u, v, n: 0.25 * n, rise=0.3, fresh=True)
        for k in range(spots):
            y = -0.25 + 0.85 * k / (spots - 1)
            f.paint(disc(s * (0.32 + 0.1 * (k % 2)) * (1 - 0.4 * max(y, 0)), y, 0.13), BLACK, f"spot_{k + 1}_{side}", rise=0.03)
    f.paint(capsule(0, -0.42, 0, 0.9, 0.02), BLACK, rise=0.02)


DRAW: dict[str, Callable[[Frame], None]] = {
    draw.__name__: draw
    for draw in (
        dog, cat, owl, face, fish, butterfly, wheel, car, flower, tree, house, clock, keyboard, page, honeycomb, guitar,
        sunflower, mushroom, umbrella, boat, bicycle, windmill, cup, ladybird,
    )
}  # fmt: skip

CLASSES: tuple[str, ...] = tuple(DRAW)
BASE, HELD_OUT = CLASSES[:16], CLASSES[16:]


# ---- grounds: what lies behind, whatever the class -------------------------------------------------------------------


def tilted(c: Canvas, dice: Dice, often: float) -> tuple[Array, Array]:
    """Coordinates (H, W) along and across a random direction, `often` periods a side."""
    k, s = cos_sin(dice(0, 180))
    x, y = c.x, c.y[:, None]
    return (x * k + y * s) * often + dice(0, 1), (y * k - x * s) * often + dice(0, 1)


def meadow(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    blades = 0.6 * c.noise(d, 0.045, 0.2) + 0.4 * c.noise(d, 0.02, 0.5)
    c.fill(dim(a, 0.5), b, step(0.15, 0.9, 0.6 * blades + 0.4 * c.noise(d, 0.3)))
    c.height += 0.02 * blades


def plaster(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    rough = 0.5 * c.noise(d, 0.25) + 0.3 * c.noise(d, 0.09) + 0.2 * c.noise(d, 0.03)
    c.fill(a, b, step(0.2, 0.8, rough))
    c.height += 0.03 * rough


def stripes(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    p, _ = tilted(c, d, d(4, 12))
    t = wave(p + d(0, 1) * c.noise(d, 0.3))
    c.fill(a, b, step(0.35, 0.65, t))
    c.height += 0.008 * t


def checks(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    p, q = tilted(c, d, d(2, 6))
    s, t = (2 * step(0.46, 0.54, wave(r)) - 1 for r in (p, q))
    c.fill(a, b, 0.5 + 0.5 * s * t)


def bricks(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    p, q = tilted(c, d, d(3, 5))
    q = 2 * q
    row = np.floor(q)
    p = p + 0.5 * (row - 2 * np.floor(row / 2))
    joint = np.maximum(step(0.84, 0.94, wave(p)), step(0.7, 0.88, wave(q)))
    tones = d.table(16, 16)
    tone = tones[row.astype(np.int64) % 16, np.floor(p).astype(np.int64) % 16]
    grain = c.noise(d, 0.02)
    c.fill(a, dim(a, 0.55), 0.6 * tone + 0.4 * grain)
    c.rgb += joint * (planes(b) - c.rgb)
    c.height += 0.02 * (1 - joint) + 0.006 * grain


def pebbles(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    p, q = tilted(c, d, d(7, 13))
    row = np.floor(q)
    p = p + 0.5 * (row - 2 * np.floor(row / 2))
    j, i = row.astype(np.int64) % 32, np.floor(p).astype(np.int64) % 32
    tone, size = d.table(32, 32)[j, i], d.table(32, 32)[j, i]
    du, dv = (p - np.floor(p) - 0.5) * (1 + 0.3 * tone), q - row - 0.5
    far = np.sqrt(du * du + dv * dv) / (0.36 + 0.14 * size)
    stone = np.clip(1 - far * far, 0, 1)
    c.fill(a, b, tone)
    c.rgb *= 0.35 + 0.65 * step(0.0, 0.3, stone) - 0.15 * c.noise(d, 0.015)
    c.height += 0.05 * np.sqrt(stone)


def wood(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    along = d(0, 1) < 0.5
    grain = c.noise(d, 0.04, 10) if along else c.noise(d, 0.5, 0.08)
    across = (c.y[:, None] if along else c.x) * d(3, 6) + d(0, 1)
    plank, seam = np.floor(across), step(0.93, 0.98, wave(across))
    tone = wave(plank * 0.37)
    c.fill(a, dim(a, 0.55), 0.6 * wave(grain * 4 + tone) + 0.4 * tone)
    c.rgb *= 1 - 0.7 * seam
    c.height += 0.01 * grain - 0.015 * seam


def horizon(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    y, level = c.y[:, None], d(-0.15, 0.25)
    sky = np.clip((level - y) * 1.4, 0, 1) + 0.3 * (c.noise(d, 0.14, 2.5) - 0.5)
    c.fill(blend(b, (1.0, 1.0, 1.0), 0.6), b, np.clip(sky, 0, 1))
    bumps = c.noise(d, 0.3, 2) * 0.25
    land = step(0.0, 0.015, y - level + bumps)
    near = c.noise(d, 0.03, 3) * 0.6 + c.noise(d, 0.012, 2) * 0.4
    soil = planes(a) * (0.55 + 0.7 * near * np.clip(0.4 + y - level, 0, 1))
    c.rgb += land * (soil - c.rgb)
    c.height += 0.015 * land * near


def water(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    swell = wave(c.y[:, None] * d(5, 9) + 1.2 * c.noise(d, 0.12, 3) + 0.3 * c.noise(d, 0.03, 2))
    c.fill(a, b, swell)
    c.height += 0.03 * swell


def dots(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    p, q = tilted(c, d, d(4, 9))
    du, dv = p - np.floor(p) - 0.5, q - np.floor(q) - 0.5
    t = step(-0.06, 0.06, d(0.2, 0.36) - np.sqrt(du * du + dv * dv))
    c.fill(a, b, t)
    c.height += 0.006 * t


def studio(c: Canvas, d: Dice, a: Colour, b: Colour) -> None:
    x, y = c.x - d(-0.3, 0.3), c.y[:, None] - d(-0.3, 0.3)
    c.fill(a, dim(b, 0.6), np.clip(np.sqrt(x * x + y * y) * d(0.8, 1.6) + 0.1 * c.noise(d, 0.02), 0, 1))


GROUNDS = (meadow, plaster, stripes, checks, bricks, pebbles, wood, horizon, water, dots, studio)


def clutter(f: Frame) -> None:
    """A thing of no class: one to three shapes."""
    p, d = f.palette, f.dice
    for n in range(d.count(1, 3)):
        x, y, r = (0.0, 0.0, d(0.6, 0.95)) if n == 0 else (d(-0.5, 0.5), d(-0.5, 0.5), d(0.2, 0.4))
        shape = d.pick((
            disc(x, y, r), ellipse(x, y, r, 0.5 * r), box(x, y, r, 0.7 * r, 0.2 * r), ring(x, y, 0.7 * r, 0.3 * r),
            capsule(x - 0.7 * r, y, x + 0.7 * r, y, 0.2 * r), polygon((x - r, y + 0.6 * r), (x, y - 0.8 * r), (x + r, y + 0.6 * r)),
        ))  # fmt: skip
        f.paint(shape, (p.main, p.third, p.paper)[n], coat=f.coat, rise=0.2)


# ---- scenes ----------------------------------------------------------------------------------------------------------

SPLITS = ("train", "val")


def make_palette(d: Dice, behind: float) -> Palette:
    """Colours of one object: any hue, a brightness that stands off from `behind`, the brightness of the ground."""
    hue = d(0, 1)
    value = d(0.3, 0.95)
    if abs(value - behind) < 0.2:
        value = behind + 0.3 if behind < 0.55 else behind - 0.3
    main = hsv(hue, d(0.25, 0.9), value)
    second = hsv(hue + d(0.08, 0.92), d(0.2, 0.85), 1.25 - value if value > 0.6 else d(0.6, 0.95))
    return Palette(
        main, second, hsv(d(0, 1), d(0.5, 0.95), d(0.6, 0.95)), hsv(hue, 0.4, d(0.08, 0.2)),
        hsv(d(0, 1), d(0, 0.15), d(0.86, 0.98)),
    )  # fmt: skip


def soft_shadow(canvas: Canvas, frame: Frame, dx: float, dy: float) -> Array:
    """The object's cover (H, W), displaced and blurred."""
    n = 40
    grid = np.zeros((n, n), dtype=np.float32)
    at = (np.arange(n, dtype=np.float32) + 0.5 - n / 2) / n * 1.25
    rows = np.floor(at * canvas.unit + canvas.rows / 2).astype(np.int64) - frame.rows.start
    columns = np.floor(at * canvas.unit + canvas.columns / 2).astype(np.int64) - frame.columns.start
    high, wide = frame.cover.shape
    r, c = (rows >= 0) & (rows < high), (columns >= 0) & (columns < wide)
    grid[np.ix_(r, c)] = frame.cover[np.ix_(rows[r], columns[c])]
    for _ in range(2):
        grid[1:-1] = 0.25 * grid[:-2] + 0.5 * grid[1:-1] + 0.25 * grid[2:]
        grid[:, 1:-1] = 0.25 * grid[:, :-2] + 0.5 * grid[:, 1:-1] + 0.25 * grid[:, 2:]
    grid[0] = grid[-1] = grid[:, 0] = grid[:, -1] = 0
    x = np.clip((canvas.x - dx) * (n / 1.25) + (n / 2 - 0.5), 0, n - 1.01)
    y = np.clip((canvas.y - dy) * (n / 1.25) + (n / 2 - 0.5), 0, n - 1.01)
    return between(grid, x, y)


def render(
    index: int, size: int | tuple[int, int] = 224, *, seed: int = 0, classes: Sequence[str] = BASE, split: str = "train",
) -> Scene:  # fmt: skip
    """Scene number `index` of a split; `size` in pixels, one number or (rows, columns). The classes take turns.

    Raises InputError for a size below 16, a negative index or seed, an unknown class or split.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if min(rows, columns) < 16:
        raise InputError(f"a scene of {rows} x {columns} pixels is too small; 16 is the least")
    if index < 0 or seed < 0:
        raise InputError(f"index and seed count from 0; got index {index}, seed {seed}")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if not classes:
        raise InputError(f"no classes to draw; there is: {', '.join(CLASSES)}")
    label = index % len(classes)
    if classes[label] not in DRAW:
        raise unknown("class", classes[label], CLASSES)

    d = Dice(seed, SPLITS.index(split), index)
    canvas = Canvas(rows, columns)
    c, s = cos_sin(d(200, 340))
    light, strength, gloss = (c, s), d(0.3, 0.6), d.pick((0.0, 0.0, 0.4, 0.8))
    behind = d(0.25, 0.9)
    hue = d(0, 1)
    ground = [hsv(hue + d(-0.12, 0.12), d(0.05, 0.55), min(1.0, behind * k)) for k in (0.8, 1.2)]
    d.pick(GROUNDS)(canvas, d, *ground[:: d.pick((1, -1))])
    for _ in range(d.count(0, 6)):
        at = d(-0.5, 0.5), d(-0.5, 0.5)
        clutter(Frame(canvas, d, make_palette(d, d(0, 1)), at, d(0.04, 0.13), degrees=d(0, 360), stretch=d(0.8, 1.25)))
    canvas.emboss(light, strength, 0.0)

    scale = d(0.2, 0.4)
    free = 0.5 - 0.85 * scale
    frame = Frame(
        canvas, d, make_palette(d, behind), (d(-free, free), d(-free, free)), scale, degrees=d(-25, 25),
        shear=d(-0.15, 0.15), stretch=d(0.9, 1.1), mirror=d(0, 1) < 0.5,
    )  # fmt: skip
    DRAW[classes[label]](frame)
    canvas.emboss(light, strength, gloss)

    reach = d(0.02, 0.08)
    lit = 1 - d(0.35, 0.7) * soft_shadow(canvas, frame, -reach * c, -reach * s)
    lit[frame.rows, frame.columns] += frame.cover * (1 - lit[frame.rows, frame.columns])
    x, y = canvas.x, canvas.y[:, None]
    lit *= 1 + d(0, 0.5) * (x * c + y * s)
    lit *= 1.05 - d(0.1, 0.8) * (x * x + y * y)
    image = canvas.rgb
    image *= lit * (planes((1 + d(-0.08, 0.08), 1.0, 1 + d(-0.08, 0.08))) * d(0.85, 1.15))
    contrast = d(0.75, 1.15)
    image *= contrast
    image += 0.5 - 0.5 * contrast + d(-0.05, 0.05)
    blur = d(0, 0.2)
    for axis in (1, 2):
        ahead = np.moveaxis(image, axis, 0)
        ahead[1:-1] += blur * (ahead[:-2] + ahead[2:] - 2 * ahead[1:-1])
    grain = d(0.0, 0.06)
    image += grain * (d.table(rows, columns) + d.table(rows, columns) - 1)
    pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)

    mask = np.zeros((rows, columns), dtype=bool)
    mask[frame.rows, frame.columns] = frame.cover >= 0.5
    return Scene(np.ascontiguousarray(pixels.transpose(1, 2, 0)), label, mask, frame.boxes())


class Scenes(torch.utils.data.Dataset):
    """A dataset of rendered scenes, made when asked for: (image, label) like torchvision's.

    `split` is "train" or "val", whose scenes differ; `classes` is "base", "held_out" or "all"; `transform` is given
    the image as (H, W, 3) uint8, and without one images are (3, H, W) float32 in 0..1.
    Raises InputError for an unknown split or classes, a count below 1, a size below 16.
    """

    def __init__(
        self, split: str = "train", count: int = 4000, *, size: int | tuple[int, int] = 224, seed: int = 0,
        classes: str = "base", transform: Callable[[Array], Any] | None = None,
    ):  # fmt: skip
        subsets = {"base": BASE, "held_out": HELD_OUT, "all": CLASSES}
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if classes not in subsets:
            raise unknown("classes", classes, subsets)
        if count < 1:
            raise InputError(f"a dataset of {count} scenes; count is at least 1")
        self.split, self.count, self.size, self.seed = split, count, size, seed
        self.classes, self.transform = subsets[classes], transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Any, int]:
        scene = self.scene(i)
        if self.transform is not None:
            return self.transform(scene.image), scene.label
        return torch.from_numpy(scene.image).permute(2, 0, 1).contiguous().float() / 255, scene.label

    @property
    def labels(self) -> list[int]:
        return [i % len(self.classes) for i in range(self.count)]

    def scene(self, i: int) -> Scene:
        """Scene i with its mask and parts; IndexError beyond the end."""
        return render(self.index(i), self.size, seed=self.seed, classes=self.classes, split=self.split)

    def file(self, i: int) -> str:
        """A name for scene i: scenes/train/000123."""
        return f"scenes/{self.split}/{self.index(i):06d}"

    def index(self, i: int) -> int:
        if not -self.count <= i < self.count:
            raise IndexError(f"scene {i} of {self.count}")
        return i % self.count
