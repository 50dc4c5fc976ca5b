"""The input page shows the batches that the network gets: its pixels, objects and anchors."""

import re

import jax
import numpy as np
import pytest
from test_end_to_end import quick_compilation, tiny_config

from rpn_jax import data, rpn, train
from rpn_jax.analysis import drawings, inputs

pytestmark = pytest.mark.usefixtures(quick_compilation.__name__)
STEPS = range(3, 5)
SIDE, SAMPLES = 64, 8
MARGIN, CAPTION, COLUMNS = 10, 22, 4  # of a contact sheet; pixels around and below a picture


def draw(pixels):
    """Returns the config, the batches of the steps, and what pictures() yields for them."""
    config = tiny_config(
        data__pixels=pixels, data__image_size=SIDE, data__batch_size=6, targets__samples=SAMPLES
    )
    options = data.check(data.Options(**config.data))
    source = data.open_split(options, options.train_split, seed=config.seed)
    make = data.train_batch(source, options, seed=config.seed)
    return config, [make(step) for step in STEPS], list(inputs.pictures(config, source, STEPS))


@pytest.fixture(scope='module')
def page(quick_compilation):
    return draw('torchvision')


def cells(sheet, count):
    """Returns the pictures of a contact sheet."""
    corners = [divmod(i, COLUMNS) for i in range(count)]
    tops = [MARGIN + row * (SIDE + CAPTION + MARGIN) for row, _ in corners]
    lefts = [MARGIN + column * (SIDE + MARGIN) for _, column in corners]
    return [sheet[y : y + SIDE, x : x + SIDE] for y, x in zip(tops, lefts, strict=True)]


def is_drawn(picture):
    """Returns a mask of the pixels in a colour that drawings use."""
    colours = [*drawings.COLOURS.values(), drawings._INK]
    return np.any([np.all(picture == np.uint8(colour), -1) for colour in colours], 0)


@pytest.mark.parametrize('pixels', ['torchvision', 'caffe'])
def test_away_from_drawings_the_pixels_are_those_of_the_batch(page, pixels):
    _, batches, drawn = page if pixels == 'torchvision' else draw(pixels)
    assert [step for step, *_ in drawn] == list(STEPS)
    for batch, (_, sheet, _) in zip(batches, drawn, strict=True):
        for image, cell in zip(batch['image'], cells(sheet, 6), strict=True):
            changed = np.any(image != cell, -1)
            assert not np.any(changed & ~is_drawn(cell))
            assert 0.01 < changed.mean() < 0.6


def test_objects_are_outlined_and_padding_is_not(page):
    _, batches, drawn = page
    outlines = [np.uint8(drawings.COLOURS[name]) for name in ('object', 'difficult', 'border')]
    objects = 0
    for batch, (_, sheet, _) in zip(batches, drawn, strict=True):
        for row, cell in enumerate(cells(sheet, 6)):
            for x0, y0, _, _ in batch['boxes'][row][batch['kind'][row] > 0].astype(int):
                assert any(np.array_equal(cell[y0, x0], colour) for colour in outlines)
                objects += 1
            if not batch['kind'][row].any():
                assert not np.any(np.all(cell == outlines[0], -1))
    assert objects > 10


def test_the_lines_count_what_the_step_samples(page):
    config, batches, drawn = page
    model = rpn.build(config)
    anchors = np.asarray(rpn.anchors(model, (SIDE, SIDE)))
    assign = jax.jit(lambda key, batch: train.assign_images(key, anchors, batch, config.targets))
    for batch, (step, sheet, lines) in zip(batches, drawn, strict=True):
        index, labels, _ = map(np.asarray, assign(train.step_key(config.seed, step), batch))
        pattern = re.compile(r'shapes/train/(\d+): (\d+) objects, (\d+) positive, (\d+) background')
        found = np.int64([pattern.fullmatch(line).groups() for line in lines])
        objects = (batch['kind'] > 0).sum(1)
        expected = [batch['index'], objects, (labels == 1).sum(1), (labels == 0).sum(1)]
        np.testing.assert_array_equal(found.T, expected)
        assert np.all(found[:, 2:].sum(1) <= SAMPLES) and found[:, 3].min() > 0
        for row, cell in enumerate(cells(sheet, 6)):
            background = anchors[index[row][labels[row] == 0]]
            x, y = ((background[:, :2] + background[:, 2:]) / 2).astype(int).T
            assert is_drawn(cell)[y, x].all()
