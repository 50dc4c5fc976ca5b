"""Splits that are too small, left out for the most part, or evaluated on what was trained on."""

import shutil

import pytest
from config_cases import config_of
from data_files import write_voc

from rpn_jax import data
from rpn_jax.data.records import Kind
from rpn_jax.diagnosis import split_checks


@pytest.fixture
def splits(tmp_path):
    """Returns the Sources of a folder's lists train and val."""
    folder = write_voc(tmp_path / 'voc')
    config = config_of(data__source='voc', data__path=str(folder))
    options = data.options(**config.data)
    return [data.open_split(options, split, seed=0) for split in ('train', 'val')]


def begins(found):
    return [each.finding.partition(':')[0] for each in found]


def test_few_images_and_short_runs_are_found(splits):
    train, _ = splits
    config = config_of()
    assert begins(split_checks.amount(train, config)) == [
        'There are so few images that they will be learnt by heart.'
    ]
    many = train._replace(records=train.records * 10)
    assert [*split_checks.amount(many, config)] == []
    (short,) = split_checks.amount(many, config_of(steps=5))
    assert short.finding.startswith('The run ends before')


@pytest.mark.parametrize(('left', 'levels'), [(2, []), (20, ['warning']), (30, ['error'])])
def test_images_that_are_left_out_are_counted(splits, left, levels):
    note = f"voc: {left} of 50 images and 0 annotations left out, as on_bad='skip'"
    source = splits[0]._replace(records=splits[0].records * 10, notes=(note,))
    found = split_checks.amount(source, config_of())
    assert [each.level for each in found] == levels


def test_copies_of_training_images_are_found_whatever_their_name(splits):
    train, val = splits
    assert split_checks.shared(train, val) == (0, 2) and [*split_checks.evaluated(train, val)] == []
    assert split_checks.shared(train, train) == (4, 4)
    shutil.copy(train.files.names[3], val.files.names[1])
    (found,) = split_checks.evaluated(train, val)
    assert found.level == 'error' and '1 of 2 images' in found.evidence


def test_a_split_without_objects_measures_nothing(splits):
    train, val = splits
    empty = [record._replace(kind=0 * record.kind + Kind.DIFFICULT) for record in val.records]
    (found,) = split_checks.evaluated(train, val._replace(records=empty))
    assert 'has no object' in found.finding and found.level == 'error'
