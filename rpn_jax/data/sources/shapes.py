"""Drawn scenes: simple objects on textured backgrounds, a data set without files.

A scene is drawn when it is read, as a pure function of (seed, split, index). Its layout is made
without drawing, so the records of a whole split are cheap. Outlines are polygons on whole pixels,
filled without anti-aliasing: the box of an outline's points is the box of its pixels.
"""

import colorsys
import math
import zlib
from typing import NamedTuple

import cv2
import numpy as np

from rpn_jax.data.records import Kind, Source, record_of
from rpn_jax.errors import InputError

SCALES = 1 / 8, 1 / 2  # geometric mean of a box's sides over the canvas side, log-uniform
LONGEST = 2 / 3  # of the canvas side, for the longer side of a box
ELONGATION = 2.2  # the most an outline is drawn out, before it is turned
HIDDEN = 0.5  # at most this share of a box lies under the boxes of later objects
PLACEMENTS = 8  # positions that are tried, then the scene does without the object
MOST = 8  # objects of a scene
EMPTY = 0.03  # of scenes have nothing to find
FAINT = 0.03  # of objects are difficult, and hardly to be seen
# Distances of an object's mean colour to its surroundings: Euclidean, in RGB of 0 to 255.
CONTRAST = 48  # at least; textures and the rim take a little from it
FAINT_CONTRAST = 8, 14
FADE = 0.3  # an object keeps this share of its colour's distance, or more
# Hues of the objects relative to the background's; a scene takes one row.
HUES = (0.5, 0.42, 0.58), (1 / 3, 2 / 3, 0.5), (0.09, -0.09, 0.5), (0.12, 0.25, 0.62)


class Figure(NamedTuple):
    """One object of a scene: its pixels, whatever is painted over them later."""

    contours: tuple[np.ndarray, ...]  # [n, 2] int32 (x, y) of pixels; the first is the outer one
    box: tuple[int, int, int, int]  # (x0, y0, x1, y1), pixels, half open
    kind: int  # Kind.OBJECT or Kind.DIFFICULT


def shapes(split, *, count, size, seed=0) -> Source:
    """Returns a split of `count` drawn scenes; read() may be called from several threads.

    split is any name: scenes of two names have nothing in common, and a longer split begins with
    the scenes of a shorter one. size is the side of the square canvas in pixels. Raises InputError
    where a number is too small.
    """
    for keyword, value, bound in (('count', count, 1), ('size', size, 32), ('seed', seed, 0)):
        if value < bound:
            raise InputError(f'{keyword} {value}: drawn scenes need at least {bound}')

    def record(index):
        figures = layout(split, index, size=size, seed=seed)
        boxes, kind = [figure.box for figure in figures], [figure.kind for figure in figures]
        return record_of(f'shapes/{split}/{index:06d}', (size, size), boxes, kind)

    def read(position):
        index = range(count)[position]
        figures = layout(split, index, size=size, seed=seed)
        return draw(figures, size, _random(seed, split, index, stream=2))

    return Source(f'shapes/{split}', [record(index) for index in range(count)], read)


def _random(seed, split, index, stream):
    return np.random.default_rng((seed, zlib.crc32(split.encode()), index, stream))


def _arc(points, radius=1, start=0, end=2 * math.pi):
    angles = np.linspace(start, end, points, endpoint=False)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


_LEFT = math.pi / 2, 3 * math.pi / 2
_CROSS = [(3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1)]  # and the same turned by 180 degrees
FORMS = (  # contours around the origin; two are filled even-odd
    [_arc(48)],  # ellipse
    [_arc(4, start=math.pi / 4, end=9 * math.pi / 4)],  # rectangle
    [_arc(3)],  # triangle
    [_arc(10, np.tile((1, 0.45), 5))],  # star
    [np.concatenate([_CROSS, np.negative(_CROSS)]) / 3],  # cross
    [_arc(48), _arc(48, 0.55)],  # ring
    [np.concatenate([_arc(24, 1, *_LEFT), _arc(24, 1, *_LEFT[::-1]) * (0.4, 1)])],  # crescent
)


def layout(split, index, *, size, seed=0) -> list[Figure]:
    """Returns the objects of a scene, without drawing; later ones cover earlier ones."""
    random = _random(seed, split, index, stream=1)
    if random.random() < EMPTY:
        return []
    figures, hidden = [], []
    for draws in random.random((random.integers(1, MOST + 1), 5 + 2 * PLACEMENTS)).tolist():
        contours, width, height = _outline(*draws[:4], size)
        for across, down in zip(draws[5::2], draws[6::2], strict=True):
            x, y = int(across * (size - width + 1)), int(down * (size - height + 1))
            box = x, y, x + width, y + height
            covered = [_covered(figure.box, box) for figure in figures]
            # A sum, as if no two later boxes overlapped: never less than what is hidden.
            covered = [old + new for old, new in zip(hidden, covered, strict=True)]
            if max(covered, default=0) <= HIDDEN:
                contours = tuple(contour + np.array((x, y), np.int32) for contour in contours)
                kind = Kind.DIFFICULT if draws[4] < FAINT else Kind.OBJECT
                figures.append(Figure(contours, box, kind))
                hidden = [*covered, 0]
                break
    return figures


def _outline(form, scale, stretch, turn, size):
    """Returns (contours that begin at pixel (0, 0), width, height) of uniform numbers."""
    stretch = ELONGATION ** (stretch - 0.5)
    cosine, sine = math.cos(2 * np.pi * turn), math.sin(2 * np.pi * turn)
    matrix = np.array([(stretch * cosine, stretch * sine), (-sine / stretch, cosine / stretch)])
    contours = [contour @ matrix for contour in FORMS[int(form * len(FORMS))]]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    width, height = (high - low).tolist()
    side = size * SCALES[0] * (SCALES[1] / SCALES[0]) ** scale
    zoom = min(side / math.sqrt(width * height), LONGEST * size / max(width, height))
    zoom *= 1 - 1 / side  # points are centres of pixels: the last one lies 1 before the box's end
    contours = [np.rint((contour - low) * zoom).astype(np.int32) for contour in contours]
    width, height = (contours[0].max(axis=0) + 1).tolist()
    return contours, width, height


def _covered(box, other):
    """Returns the share of `box` that `other` covers."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0) * max(height, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


def mask(figure, window) -> np.ndarray:
    """Returns a figure's pixels in a window (x0, y0, x1, y1): uint8 [height, width], 0 or 255."""
    x0, y0, x1, y1 = window
    canvas = np.zeros((y1 - y0, x1 - x0), np.uint8)
    return cv2.fillPoly(canvas, figure.contours, 255, offset=(-x0, -y0))


def draw(figures, size, random) -> np.ndarray:
    """Returns the picture of a background and the figures, in order: uint8 [size, size, 3] RGB."""
    hue, hues = random.random(), HUES[random.integers(len(HUES))]
    shadow = random.uniform(0, 0.5)
    canvas = _background(size, hue, random).astype(np.float32)
    for figure in figures:
        tint = hue + hues[random.integers(len(hues))] + random.uniform(-0.03, 0.03)
        grey = random.random() < 0.12
        saturation = random.uniform(0, 0.12) if grey else random.uniform(0.35, 0.8)
        color = _rgb(tint, saturation, random.uniform(0.45, 1))
        _paint(canvas, figure, color, shadow if figure.kind == Kind.OBJECT else 0, random)
    return np.rint(canvas).astype(np.uint8)


def _rgb(hue, saturation, value):
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def _background(size, hue, random):
    """Returns two shades blended by clouds and a pattern, with grain, lines and specks: uint8."""
    value = random.uniform(0.35, 0.95)
    near = _rgb(hue, random.uniform(0.1, 0.5), value)
    far = _rgb(hue + random.uniform(-0.1, 0.1), random.uniform(0.1, 0.5), value * 0.7)
    shape = size, size
    blend = 0.5 + 0.3 * _clouds(random, shape, random.integers(2, 5))
    blend += 0.15 * _clouds(random, shape, 12)
    blend += random.uniform(0.05, 0.25) * _pattern(random, shape, size * random.uniform(0.04, 0.16))
    blend += random.uniform(0, 0.3) * (random.random(shape, np.float32) - 0.5)
    shades = np.linspace(near, far, 256).astype(np.uint8)[:, None]
    canvas = cv2.applyColorMap((255 * np.clip(blend, 0, 1)).astype(np.uint8), shades)
    for _ in range(random.integers(9)):  # as thin as no object is
        color = np.clip(near + random.uniform(-60, 60), 0, 255).tolist()
        start, end = (random.uniform(-0.2, 1.2, (2, 2)) * size).astype(int).tolist()
        axes = (random.uniform(0.1, 0.7, 2) * size).astype(int).tolist()
        if random.random() < 0.4:
            cv2.ellipse(canvas, start, axes, random.uniform(0, 180), 0, 360, color, 1, cv2.LINE_AA)
        else:
            cv2.line(canvas, start, end, color, 1, cv2.LINE_AA)
    x, y = random.integers(size, size=(2, random.integers(size // 2)))
    canvas[y, x] = np.clip(near + random.uniform(-60, 60), 0, 255)
    return canvas


def _clouds(random, shape, cells):
    coarse = random.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _pattern(random, shape, period):
    """Returns clouds, a slope, stripes or a weave: float32 [height, width], about -1 to 1."""
    motif, angle, phase = random.integers(4), random.uniform(0, np.pi), random.uniform(0, 2 * np.pi)
    if motif == 0:
        return _clouds(random, shape, 5)
    y, x = (np.arange(side, dtype=np.float32) - side / 2 for side in shape)
    along = math.cos(angle) * x + math.sin(angle) * y[:, None]
    across = math.cos(angle) * y[:, None] - math.sin(angle) * x
    if motif == 1:
        return along * (1.4 / max(shape))
    stripes = np.sin(along * (2 * np.pi / period) + phase)
    return stripes if motif == 2 else stripes * np.sin(across * (2 * np.pi / period))


def _paint(canvas, figure, color, shadow, random):
    """Paints a figure onto the float32 canvas, its colour apart from what is around it."""
    x0, y0, x1, y1 = figure.box
    border = 2 + max(x1 - x0, y1 - y0) // 8
    left, top = max(x0 - border, 0), max(y0 - border, 0)
    patch = canvas[top : y1 + border, left : x1 + border]
    shape = height, width = patch.shape[:2]
    filled = mask(figure, (left, top, left + width, top + height))
    if shadow:
        shift = np.array([(1, 0, border / 3), (0, 1, border / 2)])
        soft = cv2.blur(cv2.warpAffine(filled, shift, (width, height)), (border, border))
        patch *= cv2.merge([1 - np.float32(shadow / 255) * soft] * 3)
    around = np.array(cv2.mean(patch, 255 - filled)[:3], np.float32)
    faint = figure.kind == Kind.DIFFICULT
    distance = FADE ** random.random() * float(np.linalg.norm(color - around))
    distance = random.uniform(*FAINT_CONTRAST) if faint else max(distance, CONTRAST)
    color = _apart(color, around, distance)
    shade = 1 + (0.02 if faint else 0.12) * _pattern(random, shape, 2 * max(shape))
    texture = random.uniform(0, 0.04 if faint else 0.2)
    shade += texture * _pattern(random, shape, random.uniform(4, 14))
    paint = np.clip(cv2.merge([shade * channel for channel in color]), 0, 255)
    # Edges are soft on the inside only, so that no pixel outside the box belongs to the object.
    alpha = np.maximum(cv2.blur(filled, (3, 3)), 128) * (filled > 0)
    patch += cv2.merge([alpha * np.float32(1 / 255)] * 3) * (paint - patch)


def _apart(color, around, distance):
    """Returns a colour at a distance from its surroundings, else towards black or white."""
    for target in (color, np.full(3, 255 if around.mean() < 128 else 0, np.float32)):
        line = target - around
        line *= distance / max(float(np.linalg.norm(line)), 1)
        moved = np.clip(around + line, 0, 255)
        if np.linalg.norm(moved - around) > 0.9 * distance:
            break
    return moved
