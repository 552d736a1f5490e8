"""How a scene is drawn: a ground, clutter lying on it, one object above or several of different classes, and light."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zfnet.data.scenes.drawing import (
    Array,
    Canvas,
    Colour,
    Dice,
    Frame,
    Palette,
    between,
    blend,
    box,
    capsule,
    cos_sin,
    dim,
    disc,
    ellipse,
    hsv,
    planes,
    polygon,
    ring,
    step,
    wave,
)
from zfnet.data.scenes.objects import DRAW
from zfnet.errors import InputError, unknown_name

CLASSES: tuple[str, ...] = tuple(DRAW)
BASE, HELD_OUT = CLASSES[:16], CLASSES[16:]
SPLITS = ("train", "val")
WRITTEN = ("clock", "keyboard", "page")  # never seen in a mirror
VERSION = 1  # of the pixels: count on when any scene changes


class Scene(NamedTuple):
    """A picture and the truth about it: part boxes are top, left, bottom, right in pixels, ends exclusive.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        label: index into the classes asked for; of several objects the first one's.
        mask: (H, W) bool, the object, or what others leave to be seen of the first.
        parts: the boxes of the object's parts.
        objects: the mask of each object by its label, in the order in which they were laid.
    """

    image: Array
    label: int
    mask: Array
    parts: dict[str, tuple[int, int, int, int]]
    objects: dict[int, Array]


# ---- grounds ---------------------------------------------------


def tilted(c: Canvas, dice: Dice, often: float, most: float = 90) -> tuple[Array, Array]:
    """Coordinates (H, W) along and across a random direction, `often` periods a side."""
    k, s = cos_sin(dice(-most, most))
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
    p, q = tilted(c, d, d(3, 5), 25)
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
    tone, size, left, up = (d.table(32, 32)[j, i] for _ in range(4))
    r = 0.3 + 0.18 * size
    du = (p - np.floor(p) - 0.5) * (1 + 0.4 * tone) + (left - 0.5) * (1 - 2 * r)
    dv = q - row - 0.5 + (up - 0.5) * (1 - 2 * r)
    far = np.sqrt(du * du + dv * dv) / r
    stone = np.clip(1 - far * far, 0, 1)
    c.fill(a, b, tone)
    c.rgb *= 0.35 + 0.65 * step(0.0, 0.3, stone) - 0.15 * c.noise(d, 0.015)
    c.height += 0.05 * np.sqrt(stone)


def wood(c: Canvas, d: Dice, a: Colour, _: Colour) -> None:
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
        shape = d.pick(
            (
                disc(x, y, r),
                ellipse(x, y, r, 0.5 * r),
                box(x, y, r, 0.7 * r, 0.2 * r),
                ring(x, y, 0.7 * r, 0.3 * r),
                capsule(x - 0.7 * r, y, x + 0.7 * r, y, 0.2 * r),
                polygon((x - r, y + 0.6 * r), (x, y - 0.8 * r), (x + r, y + 0.6 * r)),
            )
        )
        f.paint(shape, (p.main, p.third, p.paper)[n], "thing", coat=f.coat, rise=0.2, fresh=n == 0)


# ---- scenes ------------------------------------------------------------------------------------------


def any_hue(d: Dice) -> float:
    """Warm hues and blues more often than greens and violets."""
    warm, green, blue, violet = (-0.04, 0.17), (0.17, 0.45), (0.45, 0.68), (0.68, 0.96)
    return d(*d.pick((warm, warm, warm, green, blue, blue, violet)))


def make_palette(d: Dice, behind: float) -> Palette:
    """Colours of one object: any hue, a brightness that stands off from that of the ground, `behind`."""
    hue = any_hue(d)
    value = d(0.4, 1.0)
    if abs(value - behind) < 0.2:
        value = behind + 0.3 if behind < 0.55 else behind - 0.3
    main = hsv(hue, d(0.25, 0.9), value)
    second = hsv(any_hue(d), d(0.2, 0.85), 1.25 - value if value > 0.6 else d(0.6, 0.95))
    return Palette(
        main,
        second,
        hsv(any_hue(d), d(0.5, 0.95), d(0.65, 1.0)),
        hsv(hue, 0.4, d(0.08, 0.2)),
        hsv(d(0, 1), d(0, 0.15), d(0.86, 0.98)),
    )


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


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else size
    if min(rows, columns) < 16:
        raise InputError(f"a scene of {rows} x {columns} pixels is too small; 16 is the least")
    return rows, columns


def lay_ground(canvas: Canvas, d: Dice, brightness: float) -> None:
    """Paint one of the grounds, and up to six things of no class on it."""
    hue = any_hue(d)
    colours = [hsv(hue + d(-0.1, 0.1), d(0.05, 0.6), min(1.0, brightness * k)) for k in (0.78, 1.22)]
    d.pick(GROUNDS)(canvas, d, *colours[:: d.pick((1, -1))])
    for _ in range(d.count(0, 6)):
        palette, centre, scale = make_palette(d, d(0, 1)), (d(-0.5, 0.5), d(-0.5, 0.5)), d(0.05, 0.17)
        clutter(Frame(canvas, d, palette, centre, scale, degrees=d(0, 360), stretch=d(0.8, 1.25)))


def pose_object(
    canvas: Canvas, d: Dice, own: Dice, palette: Palette, mirror: bool, neighbours: Sequence[Frame] = ()
) -> Frame:
    """A frame in random pose, most of which lies within the canvas; the object rolls its `own` dice.

    Beside neighbours it is smaller, and stands at the one of several random points that is farthest from them.
    """
    scale = d(0.18, 0.26 if neighbours else 0.4)
    free = 0.5 - 0.75 * scale
    centres = [(d(-free, free), d(-free, free)) for _ in range(24 if neighbours else 1)]
    centre = max(centres, key=lambda c: min((math.dist(c, o.centre) - o.scale for o in neighbours), default=0))
    pose = {"degrees": d(-25, 25), "shear": d(-0.15, 0.15), "stretch": d(0.9, 1.1)}
    return Frame(canvas, own, palette, centre, scale, mirror=mirror, **pose)


def expose(canvas: Canvas, frames: Sequence[Frame], d: Dice, light: tuple[float, float]) -> Array:
    """The photograph (H, W, 3) uint8: shadows, falling light, vignette, contrast, blur and grain."""
    (c, s), reach = light, d(0.02, 0.08)
    dark, lit = d(0.35, 0.7), np.ones((canvas.rows, canvas.columns), dtype=np.float32)
    for frame in frames:
        lit *= 1 - dark * soft_shadow(canvas, frame, -reach * c, -reach * s)
        ground = lit[frame.rows, frame.columns]
        ground += frame.cover * (1 - ground)  # the shadow falls on what lies behind the object
    x, y = canvas.x, canvas.y[:, None]
    lit *= 1 + d(0, 0.45) * (x * c + y * s)
    lit *= 1.05 - d(0.1, 0.6) * (x * x + y * y)
    image = canvas.rgb * lit * planes(dim((1 + d(-0.08, 0.08), 1.0, 1 + d(-0.08, 0.08)), d(0.95, 1.3)))
    contrast = d(0.75, 1.15)
    image = image * contrast + (0.5 - 0.5 * contrast + d(-0.05, 0.05))
    blur = d(0, 0.2)
    for lines in (image.transpose(1, 0, 2), image.transpose(2, 0, 1)):
        lines[1:-1] += blur * (lines[:-2] + lines[2:] - 2 * lines[1:-1])
    grain = d(0, 0.06)
    image += grain * (d.table(canvas.rows, canvas.columns) + d.table(canvas.rows, canvas.columns) - 1)
    pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def render(
    index: int,
    size: int | tuple[int, int] = 224,
    *,
    seed: int = 0,
    classes: Sequence[str] = BASE,
    split: str = "train",
    objects: int = 1,
) -> Scene:
    """Scene number `index` of a split, whose classes take turns.

    Args:
        index: from 0.
        size: pixels, one number or (rows, columns).
        seed: another one gives another scene.
        classes: names, of CLASSES.
        split: "train" or "val".
        objects: the most there are in a scene; each is of another class.

    Raises:
        InputError: for a size below 16, a negative index or seed, an unknown class or split.
    """
    rows, columns = sides(size)
    if index < 0 or seed < 0:
        raise InputError(f"index and seed count from 0; got index {index}, seed {seed}")
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    if not classes:
        raise InputError(f"no classes to draw; available: {', '.join(CLASSES)}")
    labels = labels_of(index, seed=seed, classes=len(classes), split=split, objects=objects)
    for label in labels:
        if classes[label] not in DRAW:
            raise unknown_name("class", classes[label], CLASSES)

    streams = (0, 1, 3, *range(4, 3 + len(labels)))
    d, own, poses, *more = (Dice(seed, SPLITS.index(split), index, k) for k in streams)
    canvas = Canvas(rows, columns)
    light, relief, gloss = cos_sin(d(200, 340)), d(0.3, 0.6), d.pick((0.0, 0.0, 0.4, 0.8))
    brightness = d(0.3, 0.9)
    lay_ground(canvas, d, brightness)
    canvas.emboss(light, relief, 0.0)
    frames: list[Frame] = []
    masks: dict[int, Array] = {}
    for label, pose, shape in zip(labels, (d, *[poses] * len(more)), (own, *more), strict=True):
        name = classes[label]
        palette, mirror = make_palette(pose, brightness), pose(0, 1) < 0.5 and name not in WRITTEN
        frames.append(frame := pose_object(canvas, pose, shape, palette, mirror, frames))
        DRAW[name](frame)
        canvas.emboss(light, relief, gloss)
        mask = np.zeros((rows, columns), dtype=bool)
        mask[frame.rows, frame.columns] = frame.cover >= 0.5
        masks = {before: seen & ~mask for before, seen in masks.items()} | {label: mask}
    return Scene(expose(canvas, frames, d, light), labels[0], masks[labels[0]], frames[0].boxes(), masks)


def labels_of(index: int, *, seed: int, classes: int, split: str, objects: int) -> list[int]:
    """The classes of a scene's objects, by number, without drawing it."""
    if not 1 <= objects <= classes:
        raise InputError(f"{objects} objects of different classes; give 1 to {classes}")
    d, labels = Dice(seed, SPLITS.index(split), index, 2), [index % classes]
    for _ in range(d.count(1, objects) - 1):
        labels.append(d.pick([label for label in range(classes) if label not in labels]))
    return labels
