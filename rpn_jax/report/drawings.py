"""Draws boxes, anchors and captions onto uint8 RGB images."""

import cv2
import numpy as np

from rpn_jax.data.records import Kind
from rpn_jax.errors import printable

# Okabe and Ito's palette, distinct under the common forms of colour blindness, plus grey.
COLOURS = {
    'object': (230, 159, 0),
    'difficult': (213, 94, 0),
    'crowd': (204, 121, 167),
    'proposal': (86, 180, 233),
    'positive anchor': (0, 158, 115),
    'background anchor': (205, 205, 205),
    'border': (240, 228, 66),
}
LEVELS = ((0, 158, 115), (86, 180, 233), (0, 114, 178), (154, 99, 230), (140, 86, 60))
KINDS = {Kind.OBJECT: 'object', Kind.DIFFICULT: 'difficult', Kind.CROWD: 'crowd'}

_INK = (31, 35, 40)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TEXT_SCALE = 0.42
_LINE_HEIGHT = 22  # pixels that one line of text at _TEXT_SCALE takes, with its margins
_MARGIN = 10
_DASH = 6


def anchor_colours(levels):
    """Returns {name: colour} of positive anchors, by level where there are several levels."""
    if levels == 1:
        return {'positive anchor': COLOURS['positive anchor']}
    return {f'positive, level {i}': LEVELS[i % len(LEVELS)] for i in range(levels)}


def draw_boxes(image, boxes, colour, thickness=2, labels=None, dashed=False):
    """Returns a copy of an image [H, W, 3] uint8 RGB with the outlines of boxes.

    boxes [N, 4] float are in pixels, half open; what is outside the image is left out, and a box
    without width or height is drawn one pixel wide or high. colour is RGB in 0..255; thickness is
    in pixels, drawn inwards; labels are N strings to write beside the boxes.
    """
    picture = np.array(image, np.uint8, order='C')
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    for box in boxes:
        _outline(picture, box, colour, thickness, dashed)
    for box, label in zip(boxes, labels, strict=True) if labels else ():
        _label(picture, box, label, colour)
    return picture


def draw_input(example):
    """Returns what the network sees of an inspect.Example, with its boxes and anchors.

    Ground truth is thick, and dashed unless of Kind.OBJECT. Positive anchors are thin, coloured by
    their level; background anchors are dots at their centres, because hundreds of outlines would
    hide the picture.
    """
    picture, background = np.array(example.seen, order='C'), np.float64(example.background)
    for x, y in (background[:, :2] + background[:, 2:]) / 2:
        centre = (int(np.clip(x, -99, 1e6)), int(np.clip(y, -99, 1e6)))
        cv2.circle(picture, centre, 3, _INK, cv2.FILLED)
        cv2.circle(picture, centre, 2, COLOURS['background anchor'], cv2.FILLED)
    for i, colour in enumerate(anchor_colours(example.levels).values()):
        picture = draw_boxes(picture, example.positive[example.level == i], colour, 1)
    for kind, role in KINDS.items():
        boxes, dashed = example.boxes[example.kind == kind], kind != Kind.OBJECT
        picture = draw_boxes(picture, boxes, COLOURS[role], 3, dashed=dashed)
    height, width = example.size
    return draw_boxes(picture, [[0, 0, width, height]], COLOURS['border'], 2, dashed=True)


def contact_sheet(pictures, captions, legend, columns):
    """Returns one picture [H', W', 3] of rows of pictures, a caption under each, a legend below.

    pictures are uint8 RGB, each of its own size, at least one; of a caption what does not fit is
    cut; legend is {name: colour}; columns is the number of pictures in a row.
    """
    columns = min(columns, len(pictures))
    strip = _legend_strip(legend)
    cell_height = max(picture.shape[0] for picture in pictures) + _LINE_HEIGHT
    cell_width = max(picture.shape[1] for picture in pictures)
    width = max(_MARGIN + columns * (cell_width + _MARGIN), strip.shape[1])
    height = _MARGIN + -(-len(pictures) // columns) * (cell_height + _MARGIN)
    sheet = np.full((height + len(strip), width, 3), 255, np.uint8)
    sheet[height:, : strip.shape[1]] = strip
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(i, columns)
        y, x = _MARGIN + row * (cell_height + _MARGIN), _MARGIN + column * (cell_width + _MARGIN)
        cell = sheet[y : y + cell_height, x : x + cell_width]
        cell[: picture.shape[0], : picture.shape[1]] = picture
        _write(cell, caption, (0, picture.shape[0] + 16), _INK)
    return sheet


def encode_png(picture):
    """Returns the bytes of a PNG file that holds the [H, W, 3] uint8 RGB picture."""
    return cv2.imencode('.png', np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()


def encode_jpeg(picture, longest, quality):
    """Returns the bytes of a JPEG file of the picture, its longer side at most `longest` pixels."""
    height, width = picture.shape[:2]
    scale = min(1, longest / max(height, width))
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture, shape, interpolation=cv2.INTER_AREA)[..., ::-1]
    return cv2.imencode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _outline(picture, box, colour, thickness, dashed):
    """Draws one box in place, in whole pixels, cut at the edge of the picture."""
    height, width = picture.shape[:2]
    # Coordinates far outside are moved to just outside, where their edges remain invisible.
    limit = np.array([width, height, width, height]) + thickness
    x0, y0, x1, y1 = np.clip(box, -thickness, limit)
    x0, y0 = int(np.floor(x0)), int(np.floor(y0))
    x1, y1 = max(int(np.ceil(x1)), x0 + 1), max(int(np.ceil(y1)), y0 + 1)
    x = np.arange(max(x0, 0), min(x1, width))
    y = np.arange(max(y0, 0), min(y1, height))[:, None]
    edge = np.minimum(np.minimum(x - x0, x1 - 1 - x), np.minimum(y - y0, y1 - 1 - y)) < thickness
    if dashed:
        edge &= (x - x0 + y - y0) // _DASH % 2 == 0
    picture[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)][edge] = colour


def _label(picture, box, text, colour):
    """Writes text on a plate of the box's colour, at its upper left corner, inside the picture."""
    (width, height), below = cv2.getTextSize(text, _FONT, _TEXT_SCALE, 1)
    height += below + 2
    x = int(np.clip(box[0], 0, max(0, picture.shape[1] - width - 6)))
    y = int(np.clip(box[1] - height, 0, max(0, picture.shape[0] - height)))
    picture[y : y + height, x : x + width + 6] = colour
    bright = np.dot(colour, (0.299, 0.587, 0.114)) > 120
    _write(picture, text, (x + 3, y + height - below), _INK if bright else (255, 255, 255))


def _legend_strip(legend):
    """Returns a white strip with a swatch and a name for each colour."""
    strip, x = np.full((_LINE_HEIGHT + _MARGIN, 4000, 3), 255, np.uint8), _MARGIN
    for name, colour in legend.items():
        strip[5:17, x : x + 26] = colour
        _write(strip, name, (x + 32, 16), _INK)
        x += 48 + cv2.getTextSize(name, _FONT, _TEXT_SCALE, 1)[0][0]
    return strip[:, :x]


def _write(picture, text, origin, colour):
    cv2.putText(picture, printable(text), origin, _FONT, _TEXT_SCALE, colour, 1, cv2.LINE_AA)
