"""The picture of a data set's statistics shows its channels, and its objects if it has any."""

import numpy as np
from report_data import texts_of

from rpn_jax.data.records import Record, Source
from rpn_jax.diagnosis import statistics
from rpn_jax.report import statistics_plot


def picture(boxes, kind):
    """Returns the texts of the picture of two images with these boxes."""
    records = [Record('x', (4, 5), np.float32(boxes).reshape(-1, 4), np.int32(kind))] * 2
    image = np.zeros((4, 5, 3), np.uint8) + np.uint8([200, 100, 7])
    figures = statistics.statistics(Source('a <b>', records, lambda _: image))
    return texts_of(statistics_plot.picture(figures, records))


def test_the_picture_shows_levels_and_objects_if_there_are_any():
    levels = {'levels of each channel', 'red', 'green', 'blue', 'a <b>: 2 images'}
    objects = {'sizes of objects', 'shapes of objects', 'objects per image'}
    drawn = set(picture([[0, 0, 3, 2], [0, 0, 1, 4], [1, 1, 3, 3]], [1, 1, 2]))
    assert levels | objects <= drawn
    drawn = set(picture([], []))
    assert levels <= drawn and not objects & drawn
    assert 'objects per image' in picture([[0, 0, 3, 2]], [2])  # difficult objects alone


def test_difficult_objects_are_in_no_histogram():
    boxes = [[0, 0, 3, 2], [0, 0, 1, 4], [1, 1, 3, 3]]

    def drawn(kind):
        record = Record('x', (4, 5), np.float32(boxes), np.int32(kind))
        figures = {'dataset': 'x', 'images': 1, 'pixels': 256, 'levels': np.ones((3, 256)).tolist()}
        return statistics_plot.picture(figures | {'boxes': {'objects': 2}}, [record])

    assert drawn([1, 1, 2]) == drawn([1, 1, 3]) != drawn([1, 1, 1])
