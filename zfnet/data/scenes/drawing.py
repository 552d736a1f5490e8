"""Shapes, and the canvas and the frame that they are painted on.

A shape is a signed distance, negative inside, so that `0.5 - distance / pixel` is how much of a pixel it
covers. A frame is the square [-1, 1]^2 of one object, turned and sheared onto a canvas. Painting a shape also
raises a height, and light falls on the slopes of the heights: fur, petals and bricks get their relief in one
stroke.

Every machine gets the same pixels. Random numbers come from PCG64 alone, and arrays see only the operations
that IEEE 754 rounds exactly (+ - * / sqrt floor min max); sines are taken of Python numbers and rounded.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Colour = tuple[float, float, float]
Bounds = tuple[float, float, float, float]
Pattern = Callable[[Array, Array, Array], Array]  # u, v, noise -> how much of the second colour, 0..1


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


# ---- shapes ------------------------------------------------------------------------------------------


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
        mu, mv, hu, hv = (
            x + c * mu - s * mv,
            y + s * mu + c * mv,
            abs(c) * hu + abs(s) * hv,
            abs(s) * hu + abs(c) * hv,
        )

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
        length = math.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
        edges.append((x0, y0, (y1 - y0) / length, -(x1 - x0) / length))

    def distance(u: Array, v: Array) -> Array:
        far = [(u - x) * nu + (v - y) * nv for x, y, nu, nv in edges]
        for other in far[1:]:
            np.maximum(far[0], other, out=far[0])
        return far[0]

    across, down = [p[0] for p in points], [p[1] for p in points]
    return Shape((min(across), min(down), max(across), max(down)), distance)


# A to Z, four hexadecimal digits each: five rows of three bits, the top left bit first.
FONT = "2b7d6bae39236b6e79a779a4396b5bed7497126a5bad49275f6d7b6d2b6a6ba42b6b6bad388e74925b6f5b6a5b7d5aad5a9272a7"


def lettering(letters: Sequence[int], x: float, y: float, dot: float) -> Shape:
    """Letters (0 to 25, negative for a space) in a row from (x, y), dots of one side `dot`."""
    bits = np.zeros((7, 4 * len(letters) + 1), dtype=np.float32)
    for n, letter in enumerate(letters):
        if letter >= 0:
            code = int(FONT[4 * letter : 4 * letter + 4], 16)
            for k in range(15):
                bits[1 + k // 3, 1 + 4 * n + k % 3] = code >> (14 - k) & 1
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


# ---- canvas and frame --------------------------------------------------------------------------------


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
        slope = np.clip(slope * (-0.5 * self.unit), -0.9, 0.9)
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
    """Where one object stands on a canvas: its square [-1, 1]^2 turned and sheared, and what it covers."""

    def __init__(
        self,
        canvas: Canvas,
        dice: Dice,
        palette: Palette,
        centre: tuple[float, float],
        scale: float,
        *,
        degrees: float = 0.0,
        shear: float = 0.0,
        stretch: float = 1.0,
        mirror: bool = False,
    ):
        c, s = cos_sin(degrees)
        flip = -1.0 if mirror else 1.0
        wide, tall = scale * stretch * flip, scale / stretch
        self.canvas, self.dice, self.palette, self.mirror, self.scale = canvas, dice, palette, mirror, scale
        self.centre = centre
        self.a, self.b = c * wide, c * shear * wide - s * tall  # x from u, v
        self.c, self.d = s * wide, s * shear * wide + c * tall  # y from u, v
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
        self,
        shape: Shape,
        colour: Colour,
        part: str = "",
        *,
        coat: Pattern | None = None,
        over: Colour | None = None,
        rise: float = 0.12,
        fresh: bool = False,
    ) -> None:
        """Paint a shape over what is there, as a named part or as decoration of the parts it falls on.

        `coat` mixes the colour with `over` (the palette's second colour). The shape bulges by `rise`, on top
        of what lies below it, or `fresh` from the ground.
        """
        at = rows, columns = self.window(shape.bounds)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        u, v = self.u[at], self.v[at]
        inside = -shape.distance(u, v)
        cover = np.clip(0.5 + inside / self.pixel, 0, 1)
        if not part:
            cover = np.minimum(cover, self.cover[at])
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
        """The boxes of the visible parts, in canvas pixels; parts that are hidden or outside are left out."""
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
                    top + int(rows[0]),
                    left + int(columns[0]),
                    top + int(rows[-1]) + 1,
                    left + int(columns[-1]) + 1,
                )
        return found
