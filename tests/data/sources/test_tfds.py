"""Prepared directories give what the folders give; nothing in one can run code."""

import json
import shutil
import sys

import numpy as np
import pytest
from data_files import write_coco, write_voc

from rpn_jax.data.check import lint
from rpn_jax.data.prepare import builder
from rpn_jax.data.sources.coco import EMPTY, coco
from rpn_jax.data.sources.tfds import _find, tfds
from rpn_jax.data.sources.voc import voc
from rpn_jax.errors import InputError

FINAL, INFO, FEATURES = 'detection/voc_2007/1.0.0', 'dataset_info.json', 'features.json'


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


@pytest.mark.parametrize('shard', [2048, 3])  # images of a file
def test_voc_is_what_its_folder_is(root, monkeypatch, shard):
    monkeypatch.setattr(builder, 'SHARD', shard)
    for split, list_ in (('train', 'train'), ('val', 'val'), ('trainval', '')):
        source = opened(split, root)
        assert_same(source, voc(list_, path=root / 'VOCdevkit/VOC2007'))
        assert source.name == f'tfds voc/2007 {split}'
        assert source.files.names[0] == f'{root / FINAL} {split}: {source.records[0].image_id}'
    files = list((root / FINAL).glob('*train.array_record*'))
    assert len(files) == (1 if shard > 4 else 2)


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
    assert len(set(source.files.names)) == 12  # ids that come twice are numbered
    train = opened('train', root, 'voc/2007+2012')
    assert [record.image_id for record in train.records] == [f'{i:06}' for i in range(4)] * 2


def test_a_second_start_prepares_and_scans_nothing(root, monkeypatch, capfd):
    first = opened('trainval', root)
    shutil.rmtree(root / 'VOCdevkit')
    for name in ('_prepare', '_write'):
        monkeypatch.setattr(builder, name, None)
    monkeypatch.setattr(sys.modules['rpn_jax.data.sources.tfds'], '_entry', None)
    assert_same(opened('trainval', root), first)
    assert capfd.readouterr() == ('', '')


def test_what_was_remembered_falls_with_the_files(root):
    directory = root / FINAL
    stamp = opened('train', root).files.stamp(0)
    assert opened('train', root).files.stamp(3) == stamp
    (file,) = directory.glob('*train*')
    shutil.copy(file, root / 'copy')  # the same bytes at another time
    (root / 'copy').rename(file)
    assert opened('train', root).files.stamp(0) != stamp
    assert len(lint(opened('train', root)).records) == 4


def test_any_path_to_a_prepared_directory_will_do(root):
    source = opened('train', root)
    directory = root / FINAL
    for path, name in (
        (directory, ''),
        (directory.parent, ''),
        (root, 'detection/voc_2007'),
        (root, 'detection/voc_2007:1.0.0'),
    ):
        assert_same(opened('train', path, name), source)
    with pytest.raises(InputError, match=r"1\.0\.0: not voc/2012; set name=''"):
        opened('train', directory, 'voc/2012')
    assert len(opened('train[:50%]', directory, '').records) == 2
    assert len(opened('train[1:]+val', directory, '').records) == 5


def test_the_highest_version_is_taken(tmp_path):
    for version in ('1.9.0', '1.10.0', '2.0.0', 'newest.of.all'):
        (tmp_path / version).mkdir()
        for name in (INFO, FEATURES):
            if version != '2.0.0':
                (tmp_path / version / name).write_text('{}')
    assert _find(tmp_path) == tmp_path / '1.10.0'


def test_what_cannot_be_opened_is_refused_in_a_line(root, tmp_path, offline):
    directory, folder = root / FINAL, root / 'VOCdevkit/VOC2007'
    opened('train', root)
    for split, path, name, complaint in [
        ('dev', root, 'voc/2007', "'dev'; there are: trainval, train, val, t"),
        ('dev', directory, '', "'dev' .*there are: train, val"),
        ('train[', directory, '', 'has no split'),
        ('', directory, '', 'has no split'),
        ('train[:0]', directory, '', 'has no split'),
        ('train', tmp_path, 'kitti', 'names that can be prepared are voc'),
        ('train', folder, 'voc/2007', "folder of VOC.*source='voc'"),
        ('train', folder, '', "folder of VOC.*source='voc'"),
        ('test', root, 'voc/2007', 'VOCtest_06-Nov-2007.tar by other means and put it at .*/downl'),
        ('train', tmp_path / 'new', 'coco/2014', 'needs besides: train2014.zip$'),
    ]:
        with pytest.raises(InputError, match=complaint) as error:
            opened(split, path, name)
        assert '\n' not in str(error.value)


def test_other_file_formats_need_tensorflow(root):
    opened('train', root)
    info = root / FINAL / INFO
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match="tfrecord, which need TensorFlow; .*='array_record'"):
        opened('train', info.parent, '')


EVIL = {'type': 'evil_feature.X', 'content': '{}'}
DICT = 'tensorflow_datasets.core.features.features_dict.FeaturesDict'
HOSTILE = [  # features that name a class of somebody else; whether TFDS imports it from INFO, too
    ({'pythonClassName': 'evil_feature.X', 'text': {}}, True),
    ({'python_class_name': 'evil_feature.X', 'text': {}}, True),
    ({'type': 'evil_feature.X', 'content': {}}, False),
    ({'pythonClassName': DICT, 'jsonFeature': {'json': json.dumps({'x': EVIL})}}, True),
]


def test_nothing_in_a_directory_is_imported(root, tmp_path, monkeypatch):
    """TFDS itself would import evil_feature, were it only on the path."""
    (tmp_path / 'evil_feature.py').write_text('raise SystemExit("run")')
    monkeypatch.syspath_prepend(tmp_path)
    opened('train', root)
    directory = root / FINAL
    for file in (INFO, FEATURES):
        whole = (directory / file).read_text()
        for features, is_imported in HOSTILE:
            content = features if file == FEATURES else json.loads(whole) | {'features': features}
            (directory / file).write_text(json.dumps(content))
            if file == FEATURES or is_imported:
                with pytest.raises(SystemExit, match='run'):
                    builder.library().builder_from_directory(directory)
            with pytest.raises(
                InputError, match=r"'evil_feature\.X' is none of TFDS; not imported"
            ):
                opened('train', directory, '')
            assert 'evil_feature' not in sys.modules
        (directory / file).write_text(whole)


def test_damaged_lists_are_refused_by_their_directory(root):
    opened('train', root)
    for path in (root / FINAL / INFO, root / FINAL / FEATURES):
        whole = path.read_bytes()
        for content in (b'', b'{', b'[]', b'5', b'{"name": 5}', b'[' * 100_000, b'\xff'):
            path.write_bytes(content)
            with pytest.raises(InputError) as error:
                opened('train', path.parent, '')
            assert str(error.value).startswith(str(path.parent)) and '\n' not in str(error.value)
        path.write_bytes(whole)


def test_damaged_records_are_problems_or_refused(root, cache):
    opened('train', root)
    directory = root / FINAL
    (file,) = directory.glob('*train*')
    content = file.read_bytes()
    for damage in (b'', content[: len(content) // 2], bytes(len(content)), None):
        file.unlink() if damage is None else file.write_bytes(damage)
        try:
            source = opened('train', directory, '')
        except InputError as error:
            assert str(directory) in str(error)
            continue
        with pytest.raises(InputError):
            lint(source)


def test_a_relative_path_is_as_good(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    for _ in range(2):  # prepared, and opened again
        source = opened('train', root.name)
        assert len(source.records) == 4 and source.read(0).shape[:2] == source.records[0].size
