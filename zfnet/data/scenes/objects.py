"""The 24 objects, each a list of named parts painted one over the other in its frame.

u runs right and v down, and an object fills the square [-1, 1]^2. Colours come from a palette drawn at random, so that
parts identify an object, and colours do not.
"""

# fmt: off

import math
from collections.abc import Callable

import numpy as np

from zfnet.data.scenes.drawing import (
    Array,
    Colour,
    Frame,
    Pattern,
    Shape,
    blend,
    box,
    capsule,
    cos_sin,
    dim,
    disc,
    ellipse,
    lettering,
    polygon,
    ring,
    step,
    wave,
)

SIDES = (("left", -1), ("right", 1))
BLACK, GREY, WHITE, PINK = (0.05, 0.05, 0.07), (0.35, 0.35, 0.36), (0.97, 0.97, 0.95), (0.85, 0.5, 0.5)


def around(n: int, start: float = 0.0) -> list[tuple[float, float, float]]:
    """n directions clockwise from `start` degrees: angle, cosine, sine."""
    return [(start + 360 * k / n, *cos_sin(start + 360 * k / n)) for k in range(n)]


def grain(much: float) -> Pattern:
    return lambda u, v, n: much * n


def bars(along: float, down: float = 0.0, noise: float = 0.0) -> Pattern:
    """Bands, so many in one local unit."""
    return lambda u, v, n: wave(along * u + down * v + noise * n)


def seams(often: float, much: float = 1.0, noise: float = 0.0) -> Pattern:
    """Thin lines across."""
    return lambda u, v, n: much * step(0.7, 0.95, wave(v * often)) + noise * n


def scallops(often: float) -> Pattern:
    return lambda u, v, n: step(0.1, 0.9, wave(v * often + wave(u * often + 0.5) * 0.5))


def lattice(c: float, s: float) -> Pattern:
    """Bars along the direction (c, s) and across it."""
    return lambda u, v, n: np.maximum(
        step(0.5, 0.8, wave((u * c + v * s) * 8)), step(0.6, 0.9, wave((v * c - u * s) * 8)))


def bricks(u: Array, v: Array, n: Array) -> Array:
    y = v * 8
    x = u * 4 + wave(np.floor(y) * 0.5) * 0.5
    return np.maximum(step(0.75, 0.95, wave(x)), step(0.6, 0.9, wave(y)))


def faded(u: Array, v: Array, n: Array) -> Array:
    return np.clip((u * u + v * v) * 1.1 + 0.3 * n - 0.1, 0, 1)


def hexagon(x: float, y: float, r: float) -> Shape:
    return polygon(*[(x + r * c, y + r * s) for _, c, s in around(6, -90)])


def eye(f: Frame, part: str, x: float, y: float, r: float, pupil: float = 0.55, slit: float = 1.0) -> None:
    f.paint(disc(x, y, r * 1.18), f.palette.ink, part, rise=0.03)
    f.paint(disc(x, y, r), f.palette.paper, part, rise=0.06)
    f.paint(disc(x, y, r * (pupil + 0.25)), f.palette.third, part, rise=0.02)
    f.paint(ellipse(x, y, r * pupil * slit, r * pupil * 1.15), BLACK, part, rise=0.02)
    f.paint(disc(x - 0.3 * r, y - 0.35 * r, 0.22 * r), WHITE, part, rise=0.01)


def dog(f: Frame) -> None:
    p, d = f.palette, f.dice
    long, wide = d(0.4, 0.62), d(0.34, 0.44)
    f.paint(ellipse(0, 0, 0.68, 0.74) | ellipse(0, 0.45, 0.48, 0.45), p.main, "head", coat=f.coat,
            rise=0.35, fresh=True)
    for side, s in SIDES:
        ear = capsule(0.58 * s, -0.55, 0.78 * s, -0.55 + long + 0.2, 0.16, 0.24)
        f.paint(ear, dim(p.second, 0.8), f"ear_{side}", coat=f.coat, over=p.main, rise=0.16, fresh=True)
    f.paint(ellipse(0, -0.3, 0.1, 0.45), p.paper, coat=grain(1), over=p.main, rise=0.0)
    f.paint(ellipse(0, 0.62, 0.13, 0.33), (0.85, 0.35, 0.4), "tongue", rise=0.08)
    muzzle = disc(0, 0.2, 0.26)
    for s in (-1, 1):
        muzzle |= ellipse(0.5 * wide * s, 0.38, 0.75 * wide, 0.3)
    f.paint(muzzle, blend(p.main, p.paper, 0.7), "muzzle", coat=grain(0.4), rise=0.2)
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
        for corners, colour, coat in (([(0.05, -0.45), (0.62, -0.98), (0.8, -0.1)], p.main, f.coat),
                                      ([(0.25, -0.45), (0.58, -0.8), (0.68, -0.3)], PINK, None)):
            points = [(x * s, y) for x, y in corners[::s]]
            f.paint(polygon(*points), colour, f"ear_{side}", coat=coat, rise=0.1)
    f.paint(ellipse(0, 0.12, 0.84, 0.7), p.main, "head", coat=f.coat, rise=0.35, fresh=True)
    for k in (-1, 0, 1):
        f.paint(capsule(0.17 * k, -0.5 + 0.04 * abs(k), 0.12 * k, -0.24, 0.05, 0.015), dim(p.second, 0.6),
                rise=0.03)
    for s in (-1, 1):
        f.paint(ellipse(0.19 * s, 0.48, 0.24, 0.19), blend(p.main, p.paper, 0.75), "muzzle", rise=0.12)
    f.paint(polygon((-0.13, 0.25), (0.13, 0.25), (0, 0.4)).grow(0.02), (0.75, 0.35, 0.4), "nose", rise=0.06)
    f.paint(capsule(0, 0.4, 0, 0.5, 0.018) | (ring(-0.1, 0.49, 0.1, 0.035) | ring(0.1, 0.49, 0.1, 0.035))
            & box(0, 0.58, 0.25, 0.09), p.ink, "mouth", rise=0.02)
    for side, s in SIDES:
        for k in (-1, 0, 1):
            f.paint(capsule(0.3 * s, 0.47 + 0.04 * k, 0.98 * s, 0.45 + 0.16 * k, 0.02, 0.012), WHITE,
                    f"whiskers_{side}")
        eye(f, f"eye_{side}", 0.36 * s, 0.02, 0.19, 0.75, slit)


def owl(f: Frame) -> None:
    p, d = f.palette, f.dice
    for side, s in SIDES:
        f.paint(capsule(0.14 * s, 0.9, 0.3 * s, 0.92, 0.07), (0.8, 0.6, 0.2), f"foot_{side}", rise=0.05)
        f.paint(ellipse(0.3 * s, -0.8, 0.13, 0.3).turn(28 * s, 0.3 * s, -0.8), p.main, f"tuft_{side}",
                coat=f.coat)
    f.paint(ellipse(0, 0.1, 0.66, 0.82), p.main, "body", coat=f.coat, rise=0.35, fresh=True)
    feathers = scallops(d(2.5, 3.5))
    f.paint(ellipse(0, 0.42, 0.44, 0.46), p.paper, "chest", coat=feathers, over=p.second, rise=0.12)
    for side, s in SIDES:
        wing = ellipse(0.6 * s, 0.28, 0.2, 0.55).turn(10 * s, 0.6 * s, 0.28)
        f.paint(wing, dim(p.second, 0.75), f"wing_{side}", coat=feathers, over=p.main, rise=0.14, fresh=True)
        f.paint(disc(0.28 * s, -0.32, 0.34), blend(p.main, p.paper, 0.6), f"eye_{side}", rise=0.08,
                coat=grain(1))
        eye(f, f"eye_{side}", 0.28 * s, -0.32, 0.2, d(0.55, 0.7))
    f.paint(polygon((-0.11, -0.25), (0.11, -0.25), (0, 0.06)).grow(0.02), (0.9, 0.65, 0.2), "beak", rise=0.1)


def face(f: Frame) -> None:
    p, d = f.palette, f.dice
    skin = blend(p.main, (0.9, 0.68, 0.54), 0.6)
    hair = dim(p.second, 0.6)
    low = d(-0.3, 0.6)
    streaks = bars(9, 0, 1)
    f.paint(box(0, (low - 0.6) / 2, 0.72, (low + 1.3) / 2, 0.55 if low < 0.1 else 0.4), hair, "hair",
            coat=streaks,
            over=dim(hair, 1.7), rise=0.2)
    f.paint(box(0, 0.85, 0.22, 0.15, 0.05), dim(skin, 0.8), "neck", rise=0.1)
    for side, s in SIDES:
        f.paint(ellipse(0.62 * s, 0.05, 0.12, 0.18), skin, f"ear_{side}", rise=0.08, fresh=True)
    f.paint(ellipse(0, -0.02, 0.6, 0.6) | ellipse(0, 0.25, 0.5, 0.62), skin, "skin", rise=0.35, fresh=True,
            coat=grain(0.12))
    fringe = ellipse(0, -0.1, 0.66, 0.75) - ellipse(d(-0.25, 0.25), 0.25, 0.72, d(0.55, 0.7))
    f.paint(fringe & box(0, -0.6, 0.8, 0.6), hair, "hair", coat=streaks, over=dim(hair, 1.7), rise=0.1)
    for side, s in SIDES:
        f.paint(capsule(0.14 * s, -0.17, 0.4 * s, -0.17 + d(-0.06, 0.06), 0.035), dim(hair, 0.7),
                f"brow_{side}", rise=0.03)
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
            f.paint(ring(0.27 * s, 0.03, 0.2, 0.035) | capsule(0.07 * s, 0.0, 0, 0.0, 0.02), p.ink,
                    "glasses", rise=0.03)


def fish(f: Frame) -> None:
    p, d = f.palette, f.dice
    fan = bars(1, 6)
    deep = d(0.42, 0.58)
    tail = polygon((0.5, -0.02), (0.98, -0.5), (0.86, 0.0), (0.5, 0.05))
    tail |= polygon((0.5, -0.05), (0.86, 0.0), (0.98, 0.5))
    f.paint(tail, p.third, "tail", coat=fan, rise=0.08)
    f.paint(ellipse(0.0, -deep, 0.4, 0.3).turn(12), p.third, "fin_top", coat=bars(7, 2), rise=0.06)
    f.paint(ellipse(0.15, deep, 0.2, 0.22).turn(-20, 0.15, deep), p.third, "fin_bottom", coat=fan, rise=0.06)
    taper = polygon((-0.1, -deep * 0.98), (0.75, -0.09), (0.75, 0.09), (-0.1, deep * 0.98))
    f.paint(ellipse(-0.15, 0, 0.78, deep) | taper, p.main, "body", coat=f.coat, rise=0.32, fresh=True)
    size = d(8, 10)

    def scales(u: Array, v: Array, n: Array) -> Array:
        x = u * size * 0.75
        odd = wave(np.floor(x) * 0.5) * 0.5
        y = v * size * 0.75 + odd
        du, dv = x - np.floor(x) - 0.85, y - np.floor(y) - 0.5
        return step(0.45, 0.75, np.sqrt(du * du + dv * dv)) * 0.8

    f.paint(ellipse(0.08, 0, 0.52, deep * 0.82), p.main, "scales", coat=scales, over=dim(p.second, 0.7),
            rise=0.03)
    f.paint(ring(-0.75, 0, 0.42, 0.035) & ellipse(-0.15, 0, 0.7, deep * 0.9) & box(-0.3, 0, 0.3, deep),
            p.ink, "gill", rise=0.03)
    f.paint(ellipse(0.05, 0.12, 0.2, 0.12).turn(20, 0.05, 0.12), p.third, "fin_side", coat=fan, rise=0.08)
    f.paint(capsule(-0.92, 0.12, -0.74, 0.14, 0.03), p.ink, "mouth", rise=0.03)
    eye(f, "eye", -0.6, -0.12, 0.13, 0.6)


def butterfly(f: Frame) -> None:
    p, d = f.palette, f.dice
    up, low, spots = d(24, 40), d(-40, -22), d.count(2, 4)
    wings = ("low", 0.4, 0.42, 0.46, 0.34, low + 70), ("high", 0.5, -0.33, 0.56, 0.38, -up)
    for name, x, y, a, b, angle in wings:
        for side, s in SIDES:
            part = f"wing_{name}_{side}"
            turned = angle * s, x * s, y
            f.paint(ellipse(x * s, y, a, b).turn(*turned), p.ink, part, rise=0.06, fresh=True)
            f.paint(ellipse(x * s, y, 0.87 * a, 0.87 * b).turn(*turned), p.main, part, rise=0.05,
                    coat=lambda u, v, n: np.clip(np.abs(u) * 1.3 - 0.2 + 0.4 * n, 0, 1))
            for k in range(3):
                c, t = cos_sin(angle + 24 * (k - 1))
                f.paint(capsule(0.04 * s, y * 0.4, s * (x + 0.4 * c * a), y + 0.4 * t * a, 0.012), p.ink,
                        rise=0.02)
            for k in range(spots):
                c, t = cos_sin(angle + 38 * (k - (spots - 1) / 2))
                at = s * (x + 0.62 * a * c), y + 0.62 * a * t
                f.paint(disc(*at, 0.085), p.paper, rise=0.03)
                f.paint(disc(*at, 0.045), p.third, rise=0.02)
    for side, s in SIDES:
        f.paint(capsule(0, -0.45, 0.22 * s, -0.9, 0.018), p.ink, f"antenna_{side}", rise=0.02)
        f.paint(disc(0.22 * s, -0.9, 0.045), p.ink, f"antenna_{side}", rise=0.03)
    f.paint(capsule(0, -0.3, 0, 0.55, 0.1, 0.05), dim(p.second, 0.4), "body", rise=0.1, fresh=True,
            coat=bars(0, 6))
    f.paint(disc(0, -0.42, 0.11), p.ink, "head", rise=0.1)


def wheel(f: Frame) -> None:
    p, d = f.palette, f.dice
    tyre, thick = d(0.2, 0.3), d(0.035, 0.08)
    rim = 0.93 - tyre
    f.paint(disc(0, 0, 0.9), dim(p.second, 0.35), "disc", rise=0.05, fresh=True)
    for angle, _, _ in around(22, d(0, 16)):
        f.paint(box(0.93, 0, 0.06, 0.07, 0.02).turn(angle), BLACK, "tyre", rise=0.05)
    f.paint(ring(0, 0, 0.95 - tyre / 2, tyre), BLACK, "tyre", rise=0.5 * tyre, fresh=True, coat=grain(0.5),
            over=GREY)
    f.paint(ring(0, 0, rim, 0.11), p.paper, "rim", rise=0.07)
    for k, (_, c, s) in enumerate(around(d.count(5, 9), d(0, 72)), 1):
        f.paint(capsule(0, 0, c * rim, s * rim, 1.5 * thick, thick), blend(p.paper, p.main, 0.3),
                f"spoke_{k}", rise=0.05)
    f.paint(disc(0, 0, 0.1 + thick), p.main, "hub", rise=0.1)
    f.paint(disc(0, 0, 0.06), p.ink, "hub", rise=0.05)


def car(f: Frame) -> None:
    p, d = f.palette, f.dice
    glass = blend(p.ink, (0.6, 0.75, 0.85), 0.75)
    roof, back, spokes = d(-0.55, -0.42), d(0.35, 0.8), d.count(4, 6)
    f.paint(polygon((-0.42, roof), (back - 0.15, roof), (back + 0.05, 0.05), (-0.75, 0.05)).grow(0.04),
            p.main, "cabin", rise=0.15)
    f.paint(box(0, 0.18, 0.96, 0.26, 0.16), p.main, "body", rise=0.22, coat=f.coat,
            over=blend(p.main, p.second, 0.5), fresh=True)
    middle = (back - 0.5) / 2
    top, base = roof + 0.06, -0.04
    f.paint(polygon((-0.4, top), (middle - 0.04, top), (middle - 0.04, base), (-0.62, base)), glass,
            "window_1", rise=0.03)
    f.paint(polygon((middle + 0.04, top), (back - 0.2, top), (back - 0.06, base), (middle + 0.04, base)),
            glass, "window_2", rise=0.03)
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


def petals(f: Frame, n: int, start: float, near: float, far: float, wide: float, tone: Colour,
           first: int = 1) -> None:
    mid, half = (near + far) / 2, (far - near) / 2
    for k, (angle, c, s) in enumerate(around(n, start), first):
        f.paint(ellipse(mid, 0, half, wide).turn(angle), tone, f"petal_{k}", rise=0.1, fresh=True,
                coat=faded, over=f.palette.third)
        f.paint(capsule(near * c, near * s, far * 0.8 * c, far * 0.8 * s, 0.012), dim(tone, 0.6), rise=0.02)


def flower(f: Frame) -> None:
    p, d = f.palette, f.dice
    n, start = d.count(5, 8), d(0, 72)
    petals(f, n, start, 0.12, d(0.88, 0.98), 1.75 / n, p.main)
    f.paint(disc(0, 0, 0.25), p.second, "disk", rise=0.12, coat=lambda u, v, n: wave(u * 9) * wave(v * 9),
            over=p.paper, fresh=True)
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
    bark = bars(8, 0, 1)
    f.paint(capsule(0, -0.1, 0, 0.88, 0.1, 0.17) & box(0, 0.4, 0.3, 0.55), dim(p.second, 0.55), "trunk",
            coat=bark, over=p.ink, rise=0.12)
    for side, s in SIDES:
        f.paint(capsule(0, 0.3, 0.4 * s, -0.15, 0.06, 0.035), dim(p.second, 0.55), f"branch_{side}",
                coat=bark, over=p.ink, rise=0.06)
    clumps = [(0.0, -0.38, 0.4), (0.12, -0.55, 0.3)]
    for _, a, b in around(d.count(7, 9), d(0, 60)):
        clumps.append((a * d(0.4, 0.52), b * d(0.3, 0.4) - 0.38, d(0.24, 0.34)))
    for x, y, r in sorted(clumps, key=lambda clump: -clump[1]):
        f.paint(disc(x, y, r), blend(p.main, p.paper, 0.25 * d(0, 1)), "crown", rise=0.2,
                coat=lambda u, v, n: step(0.25, 0.75, n), over=dim(p.main, 0.55))
    for k in range(d.count(0, 7)):
        f.paint(disc(d(-0.6, 0.6), d(-0.75, -0.05), 0.065), p.third, f"fruit_{k + 1}", rise=0.06)


def house(f: Frame) -> None:
    p, d = f.palette, f.dice
    eave, tall = d(-0.25, -0.1), d(-0.98, -0.8)
    left = d.count(0, 1) * 2 - 1
    f.paint(box(0.5 * left, -0.65, 0.1, 0.3), dim(p.second, 0.7), "chimney", coat=bricks, over=p.ink,
            rise=0.06)
    f.paint(box(0, 0.4, 0.74, 0.54), p.main, "wall", coat=bricks, over=blend(p.main, p.paper, 0.6),
            rise=0.06, fresh=True)
    roof = polygon((-0.96, eave + 0.08), (d(-0.4, -0.02), tall), (d(0.02, 0.4), tall), (0.96, eave + 0.08))
    f.paint(roof, dim(p.second, 0.8), "roof", coat=scallops(5), over=dim(p.second, 0.4), rise=0.08,
            fresh=True)
    f.paint(box(0.34 * left, 0.56, 0.19, 0.38, 0.02), p.paper, "door", rise=0.03)
    f.paint(box(0.34 * left, 0.58, 0.15, 0.36, 0.01), p.third, "door", coat=bars(7, 0, 1),
            over=dim(p.third, 0.6), rise=0.04)
    f.paint(disc(0.25 * left, 0.6, 0.03), p.paper, "door", rise=0.03)
    for k, y in enumerate((0.2, 0.62), 1):
        x = -0.34 * left
        f.paint(box(x, y, 0.2, 0.17), p.paper, f"window_{k}", rise=0.04)
        f.paint(box(x, y, 0.16, 0.13), (0.45, 0.62, 0.75), f"window_{k}", rise=0.02, coat=grain(1),
                over=p.ink)
        f.paint(box(x, y, 0.16, 0.02) | box(x, y, 0.02, 0.13), p.paper, rise=0.02)


def clock(f: Frame) -> None:
    p, d = f.palette, f.dice
    f.paint(disc(0, 0, 0.95), p.main, "rim", coat=f.coat, rise=0.16, fresh=True)
    f.paint(disc(0, 0, 0.78), dim(p.main, 0.5), "rim", rise=0.03)
    f.paint(disc(0, 0, 0.75), p.paper, "dial", coat=grain(0.25), rise=0.04, fresh=True)
    for k, (angle, _, _) in enumerate(around(12, -60), 1):
        long = 0.09 if k % 3 == 0 else 0.05
        f.paint(box(0.64, 0, long, 0.03).turn(angle), p.ink, f"tick_{k}", rise=0.02)
    minutes = d.count(0, 59)
    hours = d.count(0, 11) + minutes / 60
    hands = ("minute", 6 * minutes, 0.58, 0.03), ("hour", 30 * hours, 0.38, 0.05)
    for name, turned, far, r in hands:
        c, s = cos_sin(turned - 90)
        f.paint(capsule(-0.12 * c, -0.12 * s, far * c, far * s, r, r * 0.5), p.ink, f"hand_{name}", rise=0.03)
    f.paint(disc(0, 0, 0.07), p.third, "hub", rise=0.06)


def keyboard(f: Frame) -> None:
    p, d = f.palette, f.dice
    f.paint(box(0, 0, 0.98, 0.55, 0.08), p.main, "case", coat=f.coat, over=blend(p.main, p.second, 0.5),
            rise=0.1, fresh=True)
    cap = p.paper if d(0, 1) < 0.5 else p.ink
    sign = p.ink if cap is p.paper else p.paper
    pitch, dot = 0.206, 0.022
    keys = [(-0.824 + pitch * k + 0.05 * (row - 1), 0.088, row) for row in range(3) for k in range(9)]
    keys += [(-0.8, 0.1, 3), (0.0, 0.62, 3), (0.8, 0.1, 3)]
    for n, (x, half, row) in enumerate(keys, 1):
        y = -0.33 + 0.22 * row
        f.paint(box(x, y, half, 0.092, 0.03), p.third if n == 1 else cap, f"key_{n}", rise=0.05)
        if row < 3:
            f.paint(lettering([d.count(0, 25)], x - 2 * dot, y - 3 * dot, dot), sign, rise=0.0)


def page(f: Frame) -> None:
    p, d = f.palette, f.dice
    f.paint(box(0.03, 0.03, 0.76, 0.96), dim(p.main, 0.6), "sheet_2", rise=0.03)
    paper = blend(p.paper, p.main, d(0, 0.25))
    f.paint(box(-0.02, -0.02, 0.76, 0.96), paper, "sheet_1", coat=grain(0.25), over=dim(paper, 0.8),
            rise=0.03)
    ink = p.ink if d(0, 1) < 0.7 else dim(p.third, 0.6)
    f.paint(lettering([d.count(0, 25) for _ in range(7)], -0.64, -0.9, 0.045), ink, "title", rise=0.0)
    picture = d.count(0, 1) * 2 - 1
    for k in range(7):
        short = k in (1, 2, 3)
        letters = [-1 if d(0, 1) < 0.2 else d.count(0, 25) for _ in range(8 if short else 15)]
        left = -0.02 if short and picture < 0 else -0.66
        f.paint(lettering(letters, left, -0.48 + 0.19 * k, 0.0195 if short else 0.0205), ink,
                f"line_{k + 1}", rise=0.0)
    x = 0.34 * picture - 0.02
    f.paint(box(x, -0.05, 0.27, 0.24), p.second, "picture", coat=f.coat, over=p.third, rise=0.02)
    f.paint(disc(x, -0.05, 0.12), p.main, "picture", rise=0.02)


def honeycomb(f: Frame) -> None:
    p, d = f.palette, f.dice
    r = d(0.165, 0.2)
    cells = [(2 * r * (q + row / 2), 1.732 * r * row) for row in range(-3, 4) for q in range(-5, 6)]
    cells = [(x, y) for x, y in cells if math.sqrt(x * x + y * y) < 0.98 - r]
    for x, y in cells:
        f.paint(hexagon(x, y, r * 1.29), p.main, "wax", coat=f.coat, over=dim(p.main, 0.8), rise=0.05)
    for n, (x, y) in enumerate(cells, 1):
        full = d(0, 1)
        inner = dim(p.main, 0.3) if full < 0.5 else p.third if full < 0.85 else blend(p.main, p.paper, 0.6)
        f.paint(hexagon(x, y, r * 0.92), inner, f"cell_{n}", rise=-0.08 if full < 0.5 else 0.05,
                coat=grain(0.3))
        if 0.5 <= full < 0.85:
            f.paint(ellipse(x - 0.3 * r, y - 0.3 * r, 0.2 * r, 0.12 * r), WHITE, rise=0.01)


def guitar(f: Frame) -> None:
    p, d = f.palette, f.dice
    waist = d(0.2, 0.28)
    wood = bars(5, 0, 0.8)
    f.paint(polygon((-0.1, -0.96), (0.1, -0.96), (0.075, -0.7), (-0.075, -0.7)), dim(p.second, 0.6), "head",
            rise=0.05)
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
    f.paint(capsule(0, -0.1, 0, 0.72, thick * 0.8, thick), p.paper, "stem", coat=bars(9, 0, 1), rise=0.14)
    f.paint(ellipse(0, 0.22, thick * 1.5, 0.09), blend(p.paper, p.main, 0.2), "skirt", coat=bars(12),
            rise=0.05)
    f.paint(ellipse(0, -0.05, 0.86, 0.17), dim(p.paper, 0.7), "gills", coat=bars(14), over=p.ink, rise=0.04,
            fresh=True)
    cap = ellipse(0, -0.06, 0.92, tall + 0.2) & (box(0, -0.56, 1, 0.5) | ellipse(0, -0.08, 0.92, 0.08))
    f.paint(cap, p.main, "cap", coat=grain(0.4), rise=0.28, fresh=True)
    spots = (0, -0.38), (-0.42, -0.26), (0.4, -0.24), (-0.68, -0.14), (0.68, -0.16), (0.2, -0.6), (-0.2, -0.6)
    for k, (x, y) in enumerate(spots):
        r = d(0.06, 0.12)
        f.paint(ellipse(x, y * (tall + 0.2) / 0.82, r, r * 0.8) & cap, WHITE, f"spot_{k + 1}", rise=0.04)


def umbrella(f: Frame) -> None:
    p, d = f.palette, f.dice
    n, tall = d.count(2, 3), d(0.8, 0.92)
    f.paint(capsule(0, -0.9, 0, 0.78, 0.03), dim(p.paper, 0.7), "shaft", rise=0.04)
    hook = ring(0.14, 0.78, 0.14, 0.075) & box(0.14, 0.92, 0.3, 0.14)
    f.paint(hook | capsule(0, 0.66, 0, 0.78, 0.038) | disc(0.28, 0.76, 0.036), p.third, "handle", rise=0.05)
    canopy = box(0, -0.46, 1, 0.51)
    for k in range(2 * n):
        canopy -= ellipse(0.96 * ((k + 0.5) / n - 1), 0.06, 0.43 / n, 0.13)
    for k in range(n):
        for side, s in SIDES:
            panel = ellipse(0, 0.05, 0.96 * (1 - k / n), tall) & box(0.5 * s, -0.4, 0.5, 0.6) & canopy
            f.paint(panel, (p.main, p.second)[k % 2], f"panel_{k + 1}_{side}", coat=grain(0.2), over=p.ink,
                    rise=0.1, fresh=True)


def boat(f: Frame) -> None:
    p, d = f.palette, f.dice
    top, cloth = d(-0.95, -0.82), seams(d(4, 6), 0.5)
    f.paint(capsule(0, top, 0, 0.5, 0.03), dim(p.second, 0.5), "mast", rise=0.04)
    f.paint(polygon((0.06, top + 0.1), (0.75, 0.33), (0.06, 0.33)), p.paper, "sail_main", coat=cloth,
            over=p.ink, rise=0.14)
    f.paint(polygon((-0.06, top + 0.25), (-0.06, 0.33), (-0.68, 0.33)), p.third, "sail_jib", coat=cloth,
            over=p.ink, rise=0.12)
    f.paint(polygon((0, top - 0.02), (0.28, top + 0.05), (0, top + 0.12)), p.second, "flag", rise=0.03)
    hull = polygon((-0.96, 0.44), (0.92, 0.44), (0.66, 0.86), (-0.62, 0.86))
    f.paint(hull.grow(0.02), p.main, "hull", coat=seams(7),
            over=dim(p.main, 0.5), rise=0.14, fresh=True)
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
    f.paint(capsule(0.3, -0.52, 0.48, -0.58, 0.04) | capsule(0.48, -0.58, 0.56, -0.46, 0.045), p.second,
            "handlebar", rise=0.04)
    f.paint(ring(*crank, 0.11, 0.05), p.third, "crank", rise=0.03)
    f.paint(capsule(*crank, crank[0] + 0.1, crank[1] + 0.2, 0.025), p.ink, "crank", rise=0.02)
    f.paint(box(crank[0] + 0.12, crank[1] + 0.21, 0.09, 0.03, 0.01), p.ink, "pedal", rise=0.02)


def windmill(f: Frame) -> None:
    p, d = f.palette, f.dice
    tower = polygon((-0.22, -0.3), (0.22, -0.3), (0.42, 0.94), (-0.42, 0.94))
    f.paint(tower, p.main, "tower", coat=seams(5, 0.6, 0.3),
            rise=0.2, fresh=True)
    f.paint(ellipse(0, -0.32, 0.27, 0.26) & box(0, -0.45, 0.4, 0.18), dim(p.second, 0.7), "cap", rise=0.12,
            fresh=True)
    f.paint(box(0, 0.74, 0.13, 0.2, 0.08), dim(p.third, 0.6), "door", rise=0.04)
    for k, y in enumerate((0.05, 0.38), 1):
        f.paint(box(0, y, 0.08, 0.1, 0.03), p.ink, f"window_{k}", rise=0.03)
    for k, (angle, c, s) in enumerate(around(4, d(15, 75)), 1):
        sail = box(0.46, -0.41, 0.3, 0.09).turn(angle, 0, -0.32)
        f.paint(capsule(0, -0.32, 0.78 * c * 0.85, -0.32 + 0.78 * s * 0.85, 0.03), p.ink, f"sail_{k}",
                rise=0.03)
        f.paint(sail, p.paper, f"sail_{k}", coat=lattice(c, s), over=dim(p.second, 0.5), rise=0.03,
                fresh=True)
    f.paint(disc(0, -0.32, 0.08), p.second, "hub", rise=0.08)


def cup(f: Frame) -> None:
    p, d = f.palette, f.dice
    low, band = d(0.36, 0.52), d(0.0, 0.25)
    f.paint(ellipse(-0.05, 0.78, 0.88, 0.17), p.second, "saucer", rise=0.08)
    f.paint(ellipse(-0.05, 0.74, 0.6, 0.1), dim(p.second, 0.75), "saucer", rise=0.04)
    f.paint(ellipse(0.6, 0.1, 0.34, 0.36) - ellipse(0.6, 0.1, 0.21, 0.23), p.main, "handle", rise=0.08)
    body = polygon((-0.72, -0.4), (0.6, -0.4), (low, 0.72), (-low - 0.1, 0.72))
    body |= ellipse(-0.05, 0.72, low + 0.03, 0.09)
    f.paint(body, p.main, "body", coat=f.coat, rise=0.3, fresh=True)
    f.paint(box(-0.05, 0.2 + band, 0.8, 0.1) & body, p.third, "band", coat=bars(5), over=p.paper, rise=0.02)
    f.paint(ellipse(-0.06, -0.4, 0.67, 0.2), blend(p.main, p.paper, 0.6), "rim", rise=0.04)
    f.paint(ellipse(-0.06, -0.38, 0.57, 0.145), (0.2, 0.11, 0.06), "coffee", coat=grain(0.6),
            over=(0.5, 0.33, 0.2), rise=0.02)
    for k in range(d.count(0, 3)):
        x = -0.3 + 0.24 * k
        bend = x + 0.07, -0.72
        wisp = capsule(x, -0.55, *bend, 0.03, 0.045) | capsule(*bend, x, -0.92, 0.045, 0.015)
        f.paint(wisp, WHITE, f"steam_{k + 1}", rise=0.01)


def ladybird(f: Frame) -> None:
    p, d = f.palette, f.dice
    for side, s in SIDES:
        for k, (y, out) in enumerate(((-0.3, -0.5), (0.1, 0.12), (0.5, 0.72)), 1):
            knee = 0.78 * s, (y + out) / 2
            leg = capsule(0.4 * s, y, *knee, 0.055) | capsule(*knee, 0.92 * s, out + 0.08, 0.045)
            f.paint(leg, p.ink, f"leg_{k}_{side}", rise=0.04)
        f.paint(capsule(0.12 * s, -0.75, 0.32 * s, -0.95, 0.03), p.ink, f"antenna_{side}", rise=0.02)
    f.paint(ellipse(0, -0.6, 0.34, 0.26), BLACK, "head", rise=0.14, fresh=True)
    for side, s in SIDES:
        f.paint(ellipse(0.2 * s, -0.68, 0.08, 0.07), WHITE, f"eye_{side}", rise=0.03)
    spots = d.count(2, 4)
    for side, s in SIDES:
        wing = ellipse(0, 0.18, 0.68, 0.74) & box(0.5 * s, 0.18, 0.5, 0.8)
        f.paint(wing, p.main, f"wing_{side}", coat=grain(0.25), rise=0.3, fresh=True)
        for k in range(spots):
            y = -0.25 + 0.85 * k / (spots - 1)
            f.paint(disc(s * (0.32 + 0.1 * (k % 2)) * (1 - 0.4 * max(y, 0)), y, 0.13), BLACK,
                    f"spot_{k + 1}_{side}", rise=0.03)
    f.paint(capsule(0, -0.42, 0, 0.9, 0.02), BLACK, rise=0.02)


DRAW: dict[str, Callable[[Frame], None]] = {
    draw.__name__: draw
    for draw in (
        dog, cat, owl, face, fish, butterfly, wheel, car, flower, tree, house, clock, keyboard, page,
        honeycomb, guitar,
        sunflower, mushroom, umbrella, boat, bicycle, windmill, cup, ladybird,
    )
}
