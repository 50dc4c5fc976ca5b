"""Data that changed under a run are told, by the first image that differs."""

import os
import re

import numpy as np
import pytest

from rpn_jax.data.records import Source, record_of
from rpn_jax.errors import InputError
from rpn_jax.training import data_identity

RECORDS = [record_of(f'{i:03}', (40, 60), [[i, 0, 20, 20]], [1]) for i in range(4)]


def source(records=RECORDS):
    return Source('voc/train', records, None)


def changed(**changes):
    """Returns RECORDS, the third with other fields."""
    return [*RECORDS[:2], RECORDS[2]._replace(**changes), RECORDS[3]]


@pytest.mark.parametrize(
    ('records', 'found'),
    [
        (changed(size=(60, 40)), 'image 002 has another size or other boxes'),
        (changed(boxes=RECORDS[2].boxes + 1), 'image 002 has another size or other boxes'),
        (changed(kind=np.int32([2])), 'image 002 has another size or other boxes'),
        (changed(areas=np.float64([9])), 'image 002 has another size or other boxes'),
        (changed(image_id='x'), 'image x, number 3, was not there'),
        ([*RECORDS, changed(image_id='x')[2]], 'image x, number 5, was not there'),
        (RECORDS[:3], 'number 4, the last, is gone'),
        (RECORDS[1:], 'number 1, before image 001, is gone'),
        (RECORDS[::-1], 'image 003, which was number 4, is number 1'),
        (RECORDS, ''),
    ],
)
def test_the_first_difference_is_named(tmp_path, caplog, records, found):
    data_identity.write(tmp_path, {'train': source(), 'eval': source()})
    data_identity.write(tmp_path, {'train': source()})  # keeps the other
    given = {'train': source(), 'eval': source(records)}
    data_identity.check(tmp_path, given)
    if not found:
        assert caplog.messages == []
        return data_identity.check(tmp_path, given, strict=True)
    (message,) = caplog.messages
    assert message == (
        f'{tmp_path}/data.json: the evaluation data were voc/train with 4 images, and are '
        f'voc/train with {len(records)}: {found}; put them back, or name another --workdir'
    )
    with pytest.raises(InputError, match=re.escape(message)):
        data_identity.check(tmp_path, given, strict=True)
    return None


@pytest.mark.parametrize(
    'text', ['', '[]', '{"train": {}}', '{"train": {"name": 1}}', '[' * 99999, 'pipe']
)
def test_a_damaged_file_is_told_and_written_anew_and_a_missing_one_is_not(tmp_path, caplog, text):
    sources = {'train': source()}
    data_identity.check(tmp_path, sources, strict=True)  # as in older workdirs
    if text == 'pipe':
        os.mkfifo(tmp_path / data_identity.NAME)  # reading it would wait for ever
    else:
        (tmp_path / data_identity.NAME).write_text(text)
    data_identity.check(tmp_path, sources)
    assert 'data.json: is damaged' in caplog.text
    data_identity.write(tmp_path, sources)
    data_identity.check(tmp_path, sources, strict=True)
