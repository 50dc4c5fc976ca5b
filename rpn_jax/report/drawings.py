"""Draws boxes, anchors and captions onto uint8 RGB images."""

import cv2
import numpy as np

from rpn_jax.files import write_atomically

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
KINDS = {1: 'object', 2: 'difficult', 3: 'crowd'}  # 0 is padding and is never drawn

_INK = (31, 35, 40)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TEXT_SCALE = 0.42
_LINE_HEIGHT = 22  # pixels that one line of text at _TEXT_SCALE takes, with its margins
_MARGIN = 10
_DASH = 6


def draw_boxes(image, boxes, colour, thickness=2, labels=None, dashed=False):
    """Draws outlines on a copy of the image and returns it; they lie inside their boxes.

    Args:
      image: [H, W, 3] uint8 RGB.
      boxes: [N, 4] float (x0, y0, x1, y1) in pixels, half open. Parts outside the image are left
        out; a box without width or height is drawn one pixel wide or high.
      colour: (red, green, blue) in 0..255.
      thickness: pixels, drawn inwards.
      labels: N strings to write beside the boxes, or None.
      dashed: whether the outline has gaps.
    """
    picture = np.array(image, np.uint8, order='C')
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    for box in boxes:
        _outline(picture, box, colour, thickness, dashed)
    if labels is not None:
        for box, label in zip(boxes, labels, strict=True):
            _label(picture, box, str(label), colour)
    return picture


def draw_input(image, size, boxes, kind, positive_anchors, background_anchors):
    """Draws one training input as the network sees it on a copy of it, and returns that.

    Sampled background anchors are dots at their centres, because hundreds of outlines would hide
    the picture. Positive anchors are thin boxes, objects thick ones (dashed unless of kind 1).

    Args:
      image: [H, W, 3] uint8 RGB canvas.
      size: (height, width) of the real image inside the canvas, pixels.
      boxes: [G, 4] float objects in pixels of the canvas.
      kind: [G] int: 0 padding, 1 object, 2 difficult, 3 crowd.
      positive_anchors: [N, 4] float.
      background_anchors: [M, 4] float.
    """
    picture = np.array(image, np.uint8, order='C')
    background = np.asarray(background_anchors, np.float64).reshape(-1, 4)
    for x, y in (background[:, :2] + background[:, 2:]) / 2:
        centre = (int(np.clip(x, -99, 1e6)), int(np.clip(y, -99, 1e6)))
        cv2.circle(picture, centre, 3, _INK, cv2.FILLED)
        cv2.circle(picture, centre, 2, COLOURS['background anchor'], cv2.FILLED)
    picture = draw_boxes(picture, positive_anchors, COLOURS['positive anchor'], 1)
    boxes, kind = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(kind).reshape(-1)
    for value, role in KINDS.items():
        picture = draw_boxes(picture, boxes[kind == value], COLOURS[role], 3, dashed=value != 1)
    height, width = size
    return draw_boxes(picture, [[0, 0, width, height]], COLOURS['border'], 2, dashed=True)


def contact_sheet(pictures, captions, columns=3, legend=tuple(COLOURS)):
    """Lays pictures out in rows with a caption under each and a legend strip below.

    Args:
      pictures: list of [H, W, 3] uint8 RGB, each of its own size.
      captions: as many strings; what does not fit under its picture is cut.
      columns: pictures per row.
      legend: names out of COLOURS.

    Returns:
      [H', W', 3] uint8 RGB.
    """
    if len(pictures) != len(captions):
        raise ValueError(f'{len(pictures)} pictures, but {len(captions)} captions')
    columns = max(1, min(columns, len(pictures)))
    cell_height = max((picture.shape[0] for picture in pictures), default=0) + _LINE_HEIGHT
    cell_width = max((picture.shape[1] for picture in pictures), default=620)
    rows = -(-len(pictures) // columns)
    width = _MARGIN + columns * (cell_width + _MARGIN)
    strip = _legend_strip(legend, width)
    height = _MARGIN + rows * (cell_height + _MARGIN)
    sheet = np.full((height + len(strip), width, 3), 255, np.uint8)
    sheet[height:] = strip
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        y = _MARGIN + i // columns * (cell_height + _MARGIN)
        x = _MARGIN + i % columns * (cell_width + _MARGIN)
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        _write(sheet, _fit(caption, cell_width), (x, y + picture.shape[0] + 16), _INK)
    return sheet


def encode_png(picture):
    """Returns the bytes of a PNG file that holds the [H, W, 3] uint8 RGB picture."""
    return cv2.imencode('.png', np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()


def write_png(path, picture):
    """Writes the [H, W, 3] uint8 RGB picture to a PNG file, complete or not at all."""
    write_atomically(path, encode_png(picture))


def _outline(picture, box, colour, thickness, dashed):
    """Draws one box in place: four strips of whole pixels, cut at the edge of the picture."""
    height, width = picture.shape[:2]
    # Far away coordinates are pulled in to just outside, where they stay invisible but small.
    limit = np.array([width, height, width, height]) + thickness + 2 * _DASH
    x0, y0, x1, y1 = np.clip(box, -thickness - 2 * _DASH, limit)
    x0, y0 = int(np.floor(x0)), int(np.floor(y0))
    x1, y1 = max(int(np.ceil(x1)), x0 + 1), max(int(np.ceil(y1)), y0 + 1)
    across, down = min(thickness, x1 - x0), min(thickness, y1 - y0)
    _fill(picture, x0, y0, x1, y0 + down, colour, dashed)
    _fill(picture, x0, y1 - down, x1, y1, colour, dashed)
    _fill(picture, x0, y0, x0 + across, y1, colour, dashed)
    _fill(picture, x1 - across, y0, x1, y1, colour, dashed)


def _fill(picture, x0, y0, x1, y1, colour, dashed):
    """Fills what lies in the picture of a strip; dashes start at the strip's own corner."""
    height, width = picture.shape[:2]
    xs, ys = np.arange(max(x0, 0), min(x1, width)), np.arange(max(y0, 0), min(y1, height))
    if dashed and x1 - x0 >= y1 - y0:
        xs = xs[(xs - x0) // _DASH % 2 == 0]
    elif dashed:
        ys = ys[(ys - y0) // _DASH % 2 == 0]
    picture[ys[:, None], xs] = colour


def _label(picture, box, text, colour):
    """Writes text on a plate of the box's colour, at its upper left corner, inside the picture."""
    if not text:
        return
    (width, height), below = cv2.getTextSize(text, _FONT, _TEXT_SCALE, 1)
    height += below + 2
    x = int(np.clip(box[0], 0, max(0, picture.shape[1] - width - 6)))
    y = int(np.clip(box[1] - height, 0, max(0, picture.shape[0] - height)))
    picture[y : y + height, x : x + width + 6] = colour
    bright = np.dot(colour, (0.299, 0.587, 0.114)) > 120
    _write(picture, text, (x + 3, y + height - below), _INK if bright else (255, 255, 255))


def _legend_strip(names, width):
    """Returns a white strip with a swatch and a name for each role, on one line or more."""
    places, x, y = [], _MARGIN, 0
    for name in names:
        needed = 34 + cv2.getTextSize(name, _FONT, _TEXT_SCALE, 1)[0][0]
        if x > _MARGIN and x + needed > width:
            x, y = _MARGIN, y + _LINE_HEIGHT
        places.append((name, x, y))
        x += needed + 14
    strip = np.full((y + _LINE_HEIGHT + _MARGIN if places else 0, width, 3), 255, np.uint8)
    for name, x, y in places:
        strip[y + 5 : y + 17, x : x + 26] = COLOURS[name]
        _write(strip, name, (x + 32, y + 16), _INK)
    return strip


def _fit(text, width):
    """Cuts text to a width in pixels."""
    if cv2.getTextSize(text, _FONT, _TEXT_SCALE, 1)[0][0] <= width:
        return text
    while text and cv2.getTextSize(text + '...', _FONT, _TEXT_SCALE, 1)[0][0] > width:
        text = text[:-1]
    return text + '...'


def _write(picture, text, origin, colour):
    cv2.putText(picture, text, origin, _FONT, _TEXT_SCALE, colour, 1, cv2.LINE_AA)
