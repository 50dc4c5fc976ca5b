"""Records and sources: what everything after the data modules may rely on."""

import jax
import numpy as np
import pytest
from data_files import write_voc

from rpn_jax.data.records import Kind, Record, Source
from rpn_jax.data.sources.shapes import shapes
from rpn_jax.data.sources.voc import voc
from rpn_jax.ops import matching
from rpn_jax.report import drawings


def test_the_kinds_are_those_of_matching_and_drawing():
    assert (Kind.OBJECT, Kind.DIFFICULT, Kind.CROWD) == (1, 2, 3)
    assert drawings.KINDS == {1: 'object', 2: 'difficult', 3: 'crowd'}
    box, anchors = np.float32([[0, 0, 10, 10]]), np.float32([[0, 0, 10, 10], [30, 30, 40, 40]])
    match = jax.jit(matching.match)
    labels = {k: match(anchors, box, np.int32([k]))[0].tolist() for k in range(4)}
    assert labels == {0: [0, 0], Kind.OBJECT: [1, 0], Kind.DIFFICULT: [-1, 0], Kind.CROWD: [-1, 0]}


@pytest.mark.parametrize(
    'opened',
    [
        lambda folder: voc('', path=write_voc(folder / 'VOC')),
        lambda folder: shapes('train', count=40, size=64),
    ],
    ids=['voc', 'shapes'],
)
def test_every_source_gives_whole_records(tmp_path, opened):
    source = opened(tmp_path)
    assert isinstance(source, Source) and source.name
    assert len({record.image_id for record in source.records}) == len(source.records)
    for position, record in enumerate(source.records):
        assert isinstance(record, Record)
        height, width = record.size
        assert record.boxes.shape == (len(record.kind), 4)
        assert (record.boxes.dtype, record.kind.dtype) == (np.float32, np.int32)
        assert np.all(record.boxes >= 0) and np.all(record.boxes <= [width, height] * 2)
        assert np.all(record.boxes[:, 2:] > record.boxes[:, :2])
        assert set(record.kind.tolist()) <= {Kind.OBJECT, Kind.DIFFICULT, Kind.CROWD}
        image = source.read(position)
        assert image.shape == (height, width, 3) and image.dtype == np.uint8
    assert any(len(record.kind) == 0 for record in source.records)
    assert any(Kind.DIFFICULT in record.kind for record in source.records)
