"""Boxes land on the pixels they cover, pictures stay whole, files appear complete or not at all."""

import os

import cv2
import numpy as np
import pytest

from rpn_jax.report import drawings

RED = (255, 0, 0)
NOTHING = np.zeros((0, 4))


def _grey(height=40, width=60):
    return np.full((height, width, 3), 90, np.uint8)


def _where(picture, colour):
    """Returns the set of (x, y) that have exactly this colour."""
    ys, xs = np.nonzero(np.all(picture == np.array(colour, np.uint8), -1))
    return set(zip(xs.tolist(), ys.tolist(), strict=True))


def test_a_half_open_box_ends_before_its_far_edges():
    drawn = _where(drawings.draw_boxes(_grey(), [[10, 5, 20, 15]], RED, 1), RED)
    expected = {(x, y) for x in range(10, 20) for y in range(5, 15)}
    expected -= {(x, y) for x in range(11, 19) for y in range(6, 14)}
    assert drawn == expected


def test_thickness_grows_inwards():
    drawn = _where(drawings.draw_boxes(_grey(), [[10, 5, 30, 25]], RED, 3), RED)
    assert {(10, 5), (12, 10), (29, 24), (27, 10)} <= drawn
    assert not {(9, 10), (13, 10), (30, 10), (20, 25)} & drawn


def test_fractions_cover_every_pixel_they_touch():
    drawn = _where(drawings.draw_boxes(_grey(), [[10.6, 5.2, 19.1, 14.5]], RED, 1), RED)
    assert min(drawn) == (10, 5) and max(drawn) == (19, 14)


def test_the_input_is_left_alone():
    image = _grey()
    image.flags.writeable = False
    picture = drawings.draw_boxes(image, [[1, 1, 9, 9]], RED)
    assert np.all(image == 90) and not np.shares_memory(image, picture)
    assert picture.shape == image.shape and picture.dtype == np.uint8


@pytest.mark.parametrize('box', [(-50, -50, -10, -10), (70, 5, 90, 9), (-1e30, -1e30, 1e30, 1e30)])
def test_a_box_whose_edges_lie_outside_leaves_no_mark(box):
    assert not _where(drawings.draw_boxes(_grey(), [box], RED, 3), RED)


def test_a_box_across_the_edge_keeps_only_the_inner_edges():
    drawn = _where(drawings.draw_boxes(_grey(), [[-8, 10, 12, 99]], RED, 1), RED)
    assert drawn == {(x, 10) for x in range(12)} | {(11, y) for y in range(10, 40)}


def test_a_degenerate_box_is_one_pixel_wide():
    drawn = _where(drawings.draw_boxes(_grey(), [[10, 5, 10, 15], [30, 8, 25, 2]], RED, 2), RED)
    assert drawn == {(10, y) for y in range(5, 15)} | {(30, 8)}


def test_dashes_leave_gaps():
    box = [[5, 5, 55, 35]]
    solid = _where(drawings.draw_boxes(_grey(), box, RED, 2), RED)
    dashed = _where(drawings.draw_boxes(_grey(), box, RED, 2, dashed=True), RED)
    assert dashed < solid and 0.4 < len(dashed) / len(solid) < 0.7


def test_labels_stay_inside_and_belong_to_their_boxes():
    plain = drawings.draw_boxes(_grey(), [[50, 0, 60, 9], [0, 30, 9, 40]], RED, 1)
    picture = drawings.draw_boxes(
        _grey(), [[50, 0, 60, 9], [0, 30, 9, 40]], RED, 1, labels=['0.9', '']
    )
    changed = np.argwhere(np.any(picture != plain, -1))
    assert len(changed) and np.all(changed[:, 0] < 20) and np.all(changed[:, 1] > 20)
    with pytest.raises(ValueError):
        drawings.draw_boxes(_grey(), [[0, 0, 5, 5]], RED, labels=['one', 'two'])


def test_no_boxes_change_nothing():
    np.testing.assert_array_equal(drawings.draw_boxes(_grey(), NOTHING, RED), _grey())


def test_an_input_shows_each_kind_in_its_colour_and_no_padding():
    boxes = np.array([[2, 2, 20, 20], [22, 2, 40, 20], [2, 22, 20, 38], [42, 22, 55, 35]])
    picture = drawings.draw_input(_grey(80, 80), (70, 60), boxes, [1, 2, 3, 0], NOTHING, NOTHING)
    colours = drawings.COLOURS
    assert _where(picture, colours['object']) >= {(2, 2), (19, 19)}
    assert (22, 2) in _where(picture, colours['difficult'])
    assert (2, 22) in _where(picture, colours['crowd'])
    assert np.all(picture[22:35, 42:55] == 90)
    border = _where(picture, colours['border'])
    assert max(x for x, _ in border) == 59 and max(y for _, y in border) == 69


def test_an_input_marks_anchors_without_hiding_the_picture():
    positive, background = [[10.0, 10, 50, 50]], [[50.0, 60, 70, 80], [-500, -500, -400, -400]]
    size, image = (90, 90), _grey(90, 90)
    picture = drawings.draw_input(image, size, NOTHING, [], positive, background)
    assert _where(picture, drawings.COLOURS['positive anchor']) >= {(10, 10), (49, 49), (30, 10)}
    assert (60, 70) in _where(picture, drawings.COLOURS['background anchor'])
    assert np.mean(np.any(picture != 90, -1)) < 0.1
    assert np.all(image == 90)


def test_a_contact_sheet_holds_its_pictures_and_legend():
    pictures = [np.full((30, 200, 3), 10 * i, np.uint8) for i in (1, 2, 3)]
    sheet = drawings.contact_sheet(pictures, ['one', 'two', 'three'], 2, legend=('object',))
    for i in (1, 2, 3):
        assert len(_where(sheet, (10 * i,) * 3)) >= 30 * 200
    first, third = (np.argwhere(np.all(sheet == value, -1))[0] for value in (10, 30))
    assert third[0] > first[0] + 30 and third[1] == first[1]
    assert _where(sheet, drawings.COLOURS['object'])
    assert not _where(sheet, drawings.COLOURS['proposal'])
    other = drawings.contact_sheet(pictures, ['one', 'two', ''], 2, legend=('object',))
    assert other.shape == sheet.shape and np.any(other != sheet)


def test_a_long_caption_is_cut_at_its_cell():
    pictures = [np.full((30, 80, 3), 120, np.uint8)] * 2
    sheet = drawings.contact_sheet(pictures, ['w' * 200, ''], 2, legend=())
    assert np.all(sheet[40:, 90:] == 255)
    assert np.any(sheet[40:, :90] < 128)


def test_a_contact_sheet_of_nothing_is_its_legend():
    sheet = drawings.contact_sheet([], [])
    assert all(_where(sheet, colour) for colour in drawings.COLOURS.values())


def test_a_contact_sheet_wants_a_caption_for_each_picture():
    with pytest.raises(ValueError, match='1 pictures, but 0 captions'):
        drawings.contact_sheet([_grey()], [])


def test_png_is_lossless_and_rgb(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    drawings.write_png(tmp_path / 'a.png', picture)
    read = cv2.imread(str(tmp_path / 'a.png'))[..., ::-1]
    np.testing.assert_array_equal(read, picture)
    assert (tmp_path / 'a.png').read_bytes() == drawings.encode_png(picture)
    assert os.listdir(tmp_path) == ['a.png']


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / 'a.png'
    path.write_bytes(b'old')

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        drawings.write_png(path, _grey())
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.png']


def test_colours_stay_apart():
    values = np.array(list(drawings.COLOURS.values()), np.float64)
    distance = np.linalg.norm(values[:, None] - values, axis=-1) + 999 * np.eye(len(values))
    assert distance.min() > 60
