"""Boxes are drawn on the pixels that they cover, and pictures stay whole."""

import cv2
import numpy as np
import pytest
from report_data import training_input

from rpn_jax.report import drawings

RED = (255, 0, 0)
NOTHING = np.zeros((0, 4))
COLOURS = drawings.COLOURS


def grey(height=40, width=60):
    return np.full((height, width, 3), 90, np.uint8)


def where(picture, colour):
    """Returns the set of (x, y) that have exactly this colour."""
    ys, xs = np.nonzero(np.all(picture == np.array(colour, np.uint8), -1))
    return set(zip(xs.tolist(), ys.tolist(), strict=True))


def drawn(box, thickness, **options):
    return where(drawings.draw_boxes(grey(), [box], RED, thickness, **options), RED)


def filled(x0, y0, x1, y1):
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


FRAME = filled(10, 5, 20, 15) - filled(11, 6, 19, 14)


@pytest.mark.parametrize(
    ('box', 'thickness', 'expected'),
    [
        ((10, 5, 20, 15), 1, FRAME),  # half open
        ((10, 5, 30, 25), 3, filled(10, 5, 30, 25) - filled(13, 8, 27, 22)),
        ((10.6, 5.2, 19.1, 14.5), 1, FRAME),  # every pixel that it touches
        ((-8, 10, 12, 99), 1, filled(0, 10, 12, 11) | filled(11, 10, 12, 40)),
        ((10, 5, 10, 15), 2, filled(10, 5, 11, 15)),  # no width
        ((30, 8, 25, 2), 2, {(30, 8)}),
        ((-50, -50, -10, -10), 3, set()),
        ((-1e30, -1e30, 1e30, 1e30), 3, set()),
    ],
)
def test_a_box_is_outlined_inside_itself(box, thickness, expected):
    assert drawn(box, thickness) == expected


def test_the_input_stays_dashes_leave_gaps_and_labels_stay_inside():
    image = grey()
    image.flags.writeable = False
    boxes = [[50, 0, 60, 9], [0, 30, 9, 40]]
    plain = drawings.draw_boxes(image, boxes, RED, 1)
    assert np.all(image == 90) and plain.shape == image.shape and plain.dtype == np.uint8
    np.testing.assert_array_equal(drawings.draw_boxes(image, NOTHING, RED), image)
    solid, dashed = (drawn([5, 5, 55, 35], 2, dashed=each) for each in (False, True))
    for axis, value in ((0, 5), (0, 54), (1, 5), (1, 34)):
        side = [pixel for pixel in solid if pixel[axis] == value]
        assert dashed < solid and 0.3 < np.mean([pixel in dashed for pixel in side]) < 0.7
    labelled = drawings.draw_boxes(image, boxes[:1], RED, 1, labels=['0.9'])
    ys, xs = np.nonzero(np.any(labelled != drawings.draw_boxes(image, boxes[:1], RED, 1), -1))
    assert 0 < len(ys) and np.all(ys < 20) and np.all(xs > 20)
    moved = drawings.draw_boxes(image, [[55, 0, 99, 9]], RED, 1, labels=['0.9'])
    assert len(where(moved, RED)) > 100  # its plate is inside the picture
    with pytest.raises(ValueError):
        drawings.draw_boxes(image, boxes[:1], RED, labels=['one', 'two'])


def test_an_input_shows_each_kind_in_its_colour_and_no_padding():
    boxes = np.array([[2, 2, 20, 20], [22, 2, 40, 20], [2, 22, 20, 38]])
    example = training_input()._replace(seen=grey(80, 80), size=(70, 60), boxes=boxes)
    example = example._replace(kind=np.array([1, 2, 3]), positive=NOTHING, level=np.zeros(0))
    picture = drawings.draw_input(example._replace(background=NOTHING))
    outlines = [where(picture, COLOURS[name]) for name in ('object', 'difficult', 'crowd')]
    for pixels, (x0, y0, _, _) in zip(outlines, boxes, strict=True):
        assert (x0, y0) in pixels
    assert (19, 19) in outlines[0] and len(outlines[0]) > 1.5 * len(outlines[1])  # dashed
    border = where(picture, COLOURS['border'])
    assert max(x for x, _ in border) == 59 and max(y for _, y in border) == 69


def test_an_input_marks_anchors_of_every_level_without_hiding_the_picture():
    example = training_input()._replace(
        seen=grey(90, 90),
        size=(90, 90),
        boxes=NOTHING,
        kind=np.zeros(0),
        positive=np.array([[10, 10, 20, 20], [30, 10, 40, 20], [50, 10, 60, 20]]),
        background=np.array([[50.0, 60, 70, 80], [-500, -500, -400, -400]]),
    )
    picture = drawings.draw_input(example)
    assert drawings.anchor_colours(1) == {'positive anchor': COLOURS['positive anchor']}
    assert where(picture, COLOURS['positive anchor']) >= {(10, 10), (19, 19), (35, 10)}
    assert (60, 70) in where(picture, COLOURS['background anchor'])
    assert np.mean(np.any(picture != 90, -1)) < 0.1 and np.all(example.seen == 90)
    colours = list(drawings.anchor_colours(5).values())
    assert len(set(colours)) == 5
    picture = drawings.draw_input(example._replace(level=np.array([0, 4, 0]), levels=5))
    first, last = where(picture, colours[0]), where(picture, colours[4])
    assert first >= {(10, 10), (50, 10)} and (30, 10) in last and (50, 10) not in last
    assert not where(picture, colours[1])


def test_a_contact_sheet_holds_its_pictures_and_legend():
    pictures = [np.full((30, 200, 3), 10 * i, np.uint8) for i in (1, 2, 3)]
    sheet, other = (
        drawings.contact_sheet(pictures, [name, 'two', 'three'], COLOURS, 2)
        for name in ('one', 'w' * 200)
    )
    for i in (1, 2, 3):
        assert len(where(sheet, (10 * i,) * 3)) >= 30 * 200
    assert all(where(sheet, colour) for colour in COLOURS.values())
    changed = np.argwhere(np.any(other != sheet, -1))  # a long caption is cut at its cell
    assert len(changed) and changed.max(0)[1] < 210 and changed.max(0)[0] < 70
    with pytest.raises(ValueError):
        drawings.contact_sheet([grey()], [], {}, 2)


def test_png_is_lossless_and_jpeg_is_bounded_and_both_are_rgb():
    def decoded(data):
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]

    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(decoded(drawings.encode_png(picture)), picture)
    large = np.full((1500, 1000, 3), (200, 100, 0), np.uint8)
    small = decoded(drawings.encode_jpeg(large, 640, 90))
    assert small.shape == (640, 427, 3) and np.abs(small.astype(int) - (200, 100, 0)).max() < 6
    assert decoded(drawings.encode_jpeg(picture, 640, 90)).shape == picture.shape
