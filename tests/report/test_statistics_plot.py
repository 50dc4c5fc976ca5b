"""The picture of a data set's statistics shows its channels, and its objects if it has any."""

import numpy as np
from report_data import texts_of

from rpn_jax.data.records import Record, Source
from rpn_jax.diagnosis import statistics
from rpn_jax.report import statistics_plot


def records(boxes, kind):
    return [Record('x', (4, 5), np.float32(boxes).reshape(-1, 4), np.int32(kind))] * 2


def picture(records):
    image = np.zeros((4, 5, 3), np.uint8) + np.uint8([200, 100, 7])
    figures = statistics.statistics(Source('a <b>', records, lambda _: image))
    drawn = statistics_plot.picture(figures, records)
    assert drawn == statistics_plot.picture(figures, records)
    return texts_of(drawn)


def test_the_picture_shows_four_plots():
    texts = picture(records([[0, 0, 3, 2], [0, 0, 1, 4], [1, 1, 3, 3]], [1, 1, 2]))
    for title in (
        *('levels of each channel', 'sizes of objects', 'shapes of objects', 'objects per image'),
        *('red', 'green', 'blue', 'a <b>: 2 images'),
    ):
        assert title in texts


def test_without_boxes_there_are_levels_alone():
    texts = picture(records([], []))
    assert 'levels of each channel' in texts and 'objects per image' not in texts


def test_difficult_objects_alone_make_a_picture():
    assert 'objects per image' in picture(records([[0, 0, 3, 2]], [2]))
