"""Prepared directories give what the folders give; nothing in one can run code."""

import json
import shutil
import sys

import numpy as np
import pytest
from data_files import write_coco, write_voc
from helpers import data_options

from rpn_jax import data
from rpn_jax.data.check import lint
from rpn_jax.data.prepare import builder
from rpn_jax.data.sources.coco import EMPTY, coco
from rpn_jax.data.sources.tfds import _find, tfds
from rpn_jax.data.sources.voc import voc
from rpn_jax.errors import InputError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv('RPN_JAX_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def root(tmp_path):
    write_voc(tmp_path / 'data/VOCdevkit/VOC2007')
    return tmp_path / 'data'


def opened(split, root, name='voc/2007', **changes):
    return tfds(split, path=root, name=name, **changes)


def assert_same(source, folder):
    """Compares the records and the files of two sources."""
    assert len(source.records) == len(folder.records) > 0 and source.problems == folder.problems
    for position, (ours, theirs) in enumerate(zip(source.records, folder.records, strict=True)):
        assert ours._replace(boxes=0, kind=0) == theirs._replace(boxes=0, kind=0)
        assert ours.boxes.dtype == np.float32 and ours.boxes.shape == theirs.boxes.shape
        np.testing.assert_allclose(ours.boxes, theirs.boxes, rtol=0, atol=1e-2)
        np.testing.assert_array_equal(ours.kind, theirs.kind)
        assert source.files.load(position) == folder.files.load(position)
        np.testing.assert_array_equal(source.read(position), folder.read(position))


@pytest.mark.parametrize(('split', 'list_'), [('train', 'train'), ('val', 'val'), ('trainval', '')])
def test_voc_is_what_its_folder_is(root, split, list_):
    source = opened(split, root)
    assert_same(source, voc(list_, path=root / 'VOCdevkit/VOC2007'))
    assert source.name == f'tfds voc/2007 {split}'
    directory = root / 'detection/voc_2007/1.0.0'
    assert source.files.names[0] == f'{directory} {split}: {source.records[0].image_id}'


def test_several_shards_keep_the_order(root, monkeypatch):
    monkeypatch.setattr(builder, 'SHARD', 3)
    source = opened('trainval', root)
    assert len(list((root / 'detection/voc_2007/1.0.0').glob('*train.array_record*'))) == 2
    assert_same(source, voc('', path=root / 'VOCdevkit/VOC2007'))


@pytest.mark.parametrize('split', ['train', 'train2017'])
def test_coco_is_what_its_folder_is(tmp_path, split):
    folder = write_coco(tmp_path / 'coco')
    source = opened(split, tmp_path, 'coco/2017')
    assert_same(source, coco('train2017', path=folder))
    assert source.records[1].remarks == (EMPTY,)


def test_the_years_come_one_after_the_other(root):
    shutil.copytree(root / 'VOCdevkit/VOC2007', root / 'VOCdevkit/VOC2012')
    source = opened('trainval', root, 'voc/2007+2012')
    assert [record.image_id for record in source.records] == [f'{i:06}' for i in range(6)] * 2
    assert len(set(source.files.names)) == 12  # ids that come twice are told apart
    train = opened('train', root, 'voc/2007+2012')
    assert [record.image_id for record in train.records] == [f'{i:06}' for i in range(4)] * 2


def test_batches_are_those_of_the_folder(root):
    settings = data_options(image_size=64, batch_size=3, max_boxes=4)
    make = [
        data.train_batch(lint(source), settings, seed=1)
        for source in (opened('train', root), voc('train', path=root / 'VOCdevkit/VOC2007'))
    ]
    for step in range(4):
        ours, theirs = (function(step) for function in make)
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-2)
        np.testing.assert_array_equal(ours['image'], theirs['image'])


def test_a_second_start_prepares_and_scans_nothing(root, monkeypatch, capfd):
    first = opened('trainval', root)
    shutil.rmtree(root / 'VOCdevkit')
    for name in ('_prepare', '_write'):
        monkeypatch.setattr(builder, name, None)
    monkeypatch.setattr(sys.modules['rpn_jax.data.sources.tfds'], '_entry', None)
    assert_same(opened('trainval', root), first)
    assert capfd.readouterr() == ('', '')


def test_what_was_remembered_falls_with_the_files(root):
    directory = root / 'detection/voc_2007/1.0.0'
    stamp = opened('train', root).files.stamp(0)
    assert opened('train', root).files.stamp(3) == stamp
    (file,) = directory.glob('*train*')
    shutil.copy(file, root / 'copy')  # the same bytes at another time
    (root / 'copy').rename(file)
    assert opened('train', root).files.stamp(0) != stamp
    assert len(lint(opened('train', root)).records) == 4


def test_any_path_to_a_prepared_directory_will_do(root):
    source = opened('train', root)
    place = root / 'detection/voc_2007/1.0.0'
    for path, name in (
        (place, ''),
        (place.parent, ''),
        (root, 'detection/voc_2007'),
        (root, 'detection/voc_2007:1.0.0'),
    ):
        assert_same(opened('train', path, name), source)
    with pytest.raises(InputError, match=r"1\.0\.0: not voc/2012; set name=''"):
        opened('train', place, 'voc/2012')
    assert len(opened('train[:50%]', place, '').records) == 2
    assert len(opened('train[1:]+val', place, '').records) == 5


def test_the_highest_version_is_taken(tmp_path):
    for version in ('1.9.0', '1.10.0', '2.0.0', 'newest.of.all'):
        (tmp_path / version).mkdir()
        for name in ('dataset_info.json', 'features.json'):
            if version != '2.0.0':
                (tmp_path / version / name).write_text('{}')
    assert _find(tmp_path) == tmp_path / '1.10.0'


def test_what_cannot_be_opened_is_told_in_a_line(root, tmp_path, offline):  # noqa: F811
    place = root / 'detection/voc_2007/1.0.0'
    opened('train', root)
    for split, path, name, complaint in [
        (
            'dev',
            root,
            'voc/2007',
            "voc/2007 has no split 'dev'; there are: trainval, train, val, t",
        ),
        ('dev', place, '', "has no split 'dev' .*there are: train, val"),
        ('train[', place, '', 'has no split'),
        ('', place, '', 'has no split'),
        ('train[:0]', place, '', 'has no split'),
        ('train', tmp_path, 'kitti', 'no prepared directory .*names that can be prepared are voc'),
        ('train', root / 'VOCdevkit/VOC2007', 'voc/2007', "folder of VOC.*source='voc'"),
        ('train', root / 'VOCdevkit/VOC2007', '', "folder of VOC.*source='voc'"),
        ('test', root, 'voc/2007', 'VOCtest_06-Nov-2007.tar by other means and put it at .*/downl'),
        (
            'train',
            tmp_path / 'new',
            'coco/2014',
            'cannot be fetched .*needs besides: train2014.zip$',
        ),
    ]:
        with pytest.raises(InputError, match=complaint) as error:
            opened(split, path, name)
        assert '\n' not in str(error.value)


def test_other_file_formats_need_tensorflow(root):
    opened('train', root)
    info = root / 'detection/voc_2007/1.0.0/dataset_info.json'
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match="tfrecord, which need TensorFlow; .*='array_record'"):
        opened('train', info.parent, '')


@pytest.mark.parametrize('file', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize(
    'hostile',
    [
        {'pythonClassName': 'evil_feature.X', 'text': {}},
        {'python_class_name': 'evil_feature.X', 'text': {}},
        {'type': 'evil_feature.X', 'content': {}},
        {
            'pythonClassName': 'tensorflow_datasets.core.features.features_dict.FeaturesDict',
            'jsonFeature': {
                'json': json.dumps({'x': {'type': 'evil_feature.X', 'content': '{}'}}),
            },
        },
    ],
)
def test_nothing_in_a_directory_is_imported(root, tmp_path, monkeypatch, file, hostile):
    """TFDS itself would import evil_feature, were it only on the path."""
    (tmp_path / 'evil_feature.py').write_text('raise SystemExit("run")')
    monkeypatch.syspath_prepend(tmp_path)
    opened('train', root)
    place = root / 'detection/voc_2007/1.0.0'
    if file == 'features.json':
        content = hostile
    else:
        content = json.loads((place / file).read_text()) | {'features': hostile}
    (place / file).write_text(json.dumps(content))
    if file == 'features.json' or 'type' not in hostile:
        with pytest.raises(SystemExit, match='run'):
            builder.library().builder_from_directory(place)
    with pytest.raises(InputError, match=r"'evil_feature\.X' is none of TFDS; not imported"):
        opened('train', place, '')
    assert 'evil_feature' not in sys.modules


@pytest.mark.parametrize(
    'content', [b'', b'{', b'[]', b'5', b'{"name": 5}', b'[' * 100_000, b'\xff']
)
@pytest.mark.parametrize('file', ['dataset_info.json', 'features.json'])
def test_damaged_lists_are_told(root, file, content):
    opened('train', root)
    place = root / 'detection/voc_2007/1.0.0'
    (place / file).write_bytes(content)
    with pytest.raises(InputError) as error:
        opened('train', place, '')
    assert str(error.value).startswith(str(place)) and '\n' not in str(error.value)


def test_damaged_records_are_problems_or_told(root, cache):
    opened('train', root)
    place = root / 'detection/voc_2007/1.0.0'
    (file,) = place.glob('*train*')
    content = file.read_bytes()
    for damage in (b'', content[: len(content) // 2], bytes(len(content)), None):
        file.unlink() if damage is None else file.write_bytes(damage)
        try:
            source = opened('train', place, '')
        except InputError as error:
            assert str(place) in str(error)
            continue
        with pytest.raises(InputError):
            lint(source)


def test_a_relative_path_is_as_good(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    for _ in range(2):  # prepared, and found again
        source = opened('train', root.name)
        assert len(source.records) == 4 and source.read(0).shape[:2] == source.records[0].size
