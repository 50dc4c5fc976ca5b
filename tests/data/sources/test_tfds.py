"""Prepared directories give what the folders give; nothing in one can run code."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from data_files import encoded, write_coco, write_voc

from rpn_jax.data.check import lint
from rpn_jax.data.prepare import builder
from rpn_jax.data.prepare.official import ReleaseSplit
from rpn_jax.data.records import CLIPPED, FAR, from_paths, record_of
from rpn_jax.data.sources.coco import EMPTY, coco
from rpn_jax.data.sources.tfds import _find, _name, tfds
from rpn_jax.data.sources.voc import voc
from rpn_jax.errors import InputError

OUTSIDE = 'lies outside the 80 x 60 image by 3 pixels'
FINAL, INFO, FEATURES = 'detection/voc_2007/1.0.0', 'dataset_info.json', 'features.json'


@pytest.fixture
def root(tmp_path):
    write_voc(tmp_path / 'data/VOCdevkit/VOC2007')
    return tmp_path / 'data'


@pytest.fixture
def directory(root):
    """Returns the directory in which root's train and val are prepared."""
    opened('train', root)
    return root / FINAL


def opened(split, root, name='voc/2007', **changes):
    return tfds(split, path=root, name=name, **changes)


def assert_refused(complaint, split, root, name=''):
    with pytest.raises(InputError, match=complaint) as error:
        opened(split, root, name)
    assert '\n' not in str(error.value)


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
    source = coco('train2017', path=folder)
    records = [record._replace(coco_id=None, areas=None) for record in source.records]
    assert_same(opened(split, tmp_path, 'coco/2017'), source._replace(records=records))


def test_the_years_come_one_after_the_other(root):
    shutil.copytree(root / 'VOCdevkit/VOC2007', root / 'VOCdevkit/VOC2012')
    source = opened('trainval', root, 'voc/2007+2012')
    assert [record.image_id for record in source.records] == [f'{i:06}' for i in range(6)] * 2
    assert len(set(source.files.names)) == 12  # ids that come twice are numbered
    both = [voc('', path=root / 'VOCdevkit' / year) for year in ('VOC2007', 'VOC2012')]
    whole = both[0]._replace(records=[*both[0].records, *both[1].records])
    assert [r.boxes.tolist() for r in source.records] == [r.boxes.tolist() for r in whole.records]
    assert [source.read(i).shape[:2] for i in range(12)] == [r.size for r in source.records]


def test_bad_images_are_left_out_with_a_note(root):
    (root / 'VOCdevkit/VOC2007/JPEGImages/000003.jpg').unlink()
    source = opened('trainval', root, on_bad='skip')
    assert source.notes == ('VOC2007: 1 of 4 images left out when it was prepared',)
    assert len(source.records) == 5


def test_a_second_start_prepares_and_scans_nothing_until_files_change(root, monkeypatch, capfd):
    monkeypatch.chdir(root.parent)  # a relative path is as good
    first = opened('trainval', root.name)
    shutil.rmtree(root / 'VOCdevkit')
    with monkeypatch.context() as patch:
        for module, name in ((builder, '_prepare'), (sys.modules[tfds.__module__], '_entry')):
            patch.setattr(module, name, None)
        again = opened('trainval', root.name)
    assert_same(again, first)
    assert again.files.stamp(3) == first.files.stamp(0) and capfd.readouterr() == ('', '')
    (file,) = (root / FINAL).glob('*train*')
    shutil.copy(file, root / 'copy')  # the same bytes at another time
    (root / 'copy').rename(file)
    changed = opened('trainval', root)
    assert changed.files.stamp(0) != first.files.stamp(0) and len(lint(changed).records) == 6


def test_any_path_to_a_prepared_directory_will_do(root, directory):
    source = opened('train', root)
    names = 'detection/voc_2007', 'detection/voc_2007:1.0.0'
    for path, name in ((directory, ''), (directory.parent, ''), *((root, name) for name in names)):
        assert_same(opened('train', path, name), source)
    assert len(opened('train[:50%]', directory, '').records) == 2
    assert len(opened('train[1:]+val', directory, '').records) == 5


def test_the_highest_version_is_taken(tmp_path):
    for version in ('1.9.0', '1.10.0', '2.0.0', 'newest.of.all'):
        (tmp_path / version).mkdir()
        for name in (INFO, FEATURES):
            if version != '2.0.0':
                (tmp_path / version / name).write_text('{}')
    assert _find(tmp_path) == tmp_path / '1.10.0'


def elsewhere(folder, name, boxes, kinds, inner=(), top=()):
    """Returns a directory of one picture of 80 x 60 pixels as another builder of TFDS makes it.

    boxes are in pixels, as that builder counts them; `inner` and `top` are features it lacks.
    """
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    (folder / '000012.jpg').write_bytes(encoded(noise))
    record = record_of('', (60, 80), boxes, kinds)._replace(classes=('cat',) * len(boxes))
    part = ReleaseSplit('VOC', 'train', ()), from_paths('', [record], [folder / '000012.jpg'])
    builder._write('voc_2007', {'train': [part], 'validation': [part]}, {}, folder)
    directory = folder / name / '2007/4.0.0'
    directory.parent.mkdir(parents=True)
    (folder / FINAL).rename(directory)
    for file in directory.glob('detection-*'):
        file.rename(directory / file.name.replace('detection', name))
    info = (directory / INFO).read_text()
    (directory / INFO).write_text(info.replace('"name": "detection"', f'"name": "{name}"'))
    features = json.loads((directory / FEATURES).read_text())
    outer = features['featuresDict']['features']
    for key in ('image/id', 'image/folder', 'remarks', *top):
        del outer[key]
    for key in inner:
        del outer['objects']['sequence']['feature']['featuresDict']['features'][key]
    (directory / FEATURES).write_text(json.dumps(features))
    return directory


def test_stock_voc_stores_corners_from_one(tmp_path):
    boxes = [[1, 1, 80, 60], [5, 6, 40, 50], [7, 7, 7, 7], [0, 6, 40, 50]]
    elsewhere(tmp_path, 'voc', boxes, [1, 2, 1, 1], inner=['is_crowd'])
    source = opened('train+validation', tmp_path)  # taken instead of preparing
    first, second = source.records
    assert first.image_id == '000012' and first.size == (60, 80) and source.problems == ()
    half_open = [0, 0, 80, 60], [4, 5, 40, 50], [6, 6, 7, 7], [0, 5, 40, 50]
    np.testing.assert_array_equal(first.boxes, half_open)
    assert first.kind.tolist() == [1, 2, 1, 1] and second.remarks == (CLIPPED,)
    assert source.read(0).shape == (60, 80, 3)
    assert source.files.names[0] != source.files.names[1]


def test_a_category_is_named_by_its_number_or_by_itself():
    named = [_name(label, ('a', 'b')) for label in (1, 2, -1, np.int64(0), b'\xc3\xa4')]
    assert named == ['b', '', '', 'a', 'ä'] and _name('', ()) == ''


def test_a_directory_without_categories_has_none(tmp_path):
    directory = elsewhere(tmp_path, 'coco', [[0, 0, 80, 60]], [1], inner=['label'])
    (record,) = opened('train', directory, '').records
    assert record.classes is None and len(record.boxes) == 1


def test_other_directories_store_half_open_boxes(tmp_path):
    boxes = [[0, 0, 80, 60], [5.25, 6.5, 40.75, 50], [5, 6, 5, 50]]
    directory = elsewhere(tmp_path, 'coco', boxes, [3, 1, 1], inner=['is_difficult'])
    text = (directory / FEATURES).read_text()
    for old in ('"bboxFormat": "REL_YXYX",', ''):  # without a format anything could be meant
        (directory / FEATURES).write_text(text.replace(old, ''))
        (record,) = opened('train', directory, '').records
        assert record.image_id == '000012.jpg' and record.remarks == (EMPTY,)
        np.testing.assert_array_equal(record.boxes, boxes[:2])
        assert record.kind.tolist() == [3, 1] and record.classes == ('cat', 'cat')


@pytest.mark.parametrize(
    ('box', 'complaint'),
    [
        ([41, 6, 40, 50], 'object 0 is inverted: (41, 6, 40, 50)'),
        ([41, 6, 83, 50], f"object 0 {OUTSIDE} (on_bad='clip' clips it): (41, 6, 83, 50)"),
        ([np.nan, 6, 40, 50], 'object 0 is not finite: (nan, 6, 40, 50)'),
    ],
)
def test_a_wrong_box_is_a_problem_of_its_image(tmp_path, monkeypatch, box, complaint):
    feature = builder.library().features.BBoxFeature  # which would refuse to write it
    encode = super(feature, feature).encode_example
    monkeypatch.setattr(feature, 'encode_example', encode)
    source = opened('train', elsewhere(tmp_path, 'x', [box], [1]), '')
    (problem,) = source.problems
    assert problem.position == 0 and problem.message == f'{source.files.names[0]}: {complaint}'
    assert source.records[0].boxes.shape == (0, 4)
    if OUTSIDE in complaint:
        source = opened('train', source.files.names[0].partition(' ')[0], '', on_bad='clip')
        assert source.problems == () and source.records[0].remarks == (FAR,)


def test_a_directory_without_boxes_is_refused(directory):
    text = (directory / FEATURES).read_text()
    (directory / FEATURES).write_text(text.replace('REL_YXYX', 'XYXY'))
    assert_refused('objects/bbox are XYXY, not', 'train', directory)
    for key in ('objects', 'image'):
        features = json.loads(text)
        del features['featuresDict']['features'][key]
        (directory / FEATURES).write_text(json.dumps(features))
        assert_refused('no feature image, or no objects/bbox; it has', 'train', directory)


def test_what_cannot_be_opened_is_refused_in_a_line(root, tmp_path, offline, directory):
    folder = root / 'VOCdevkit/VOC2007'
    for split, path, name, complaint in [
        ('dev', root, 'voc/2007', "'dev'; there are: trainval, train, val, t"),
        ('dev', directory, '', "'dev' .*there are: train, val"),
        ('train[', directory, '', 'has no split'),
        ('', directory, '', 'has no split'),
        ('train[:0]', directory, '', 'has no split'),
        ('train', directory, 'voc/2012', r"1\.0\.0: not voc/2012; set name=''"),
        ('train', tmp_path, 'kitti', 'names that can be prepared are voc'),
        ('train', folder, 'coco/2017', "folder of VOC.*source='voc'"),
        ('test', root, 'voc/2007', 'VOCtest_06-Nov-2007.tar by other means and put it at .*/downl'),
        ('train', tmp_path / 'new', 'coco/2014', 'needs besides: train2014.zip$'),
    ]:
        assert_refused(complaint, split, path, name)
    info = (directory / INFO).read_text()
    (directory / INFO).write_text(info.replace('"array_record"', '"tfrecord"'))
    assert_refused("tfrecord, which need TensorFlow; .*='array_record'", 'train', directory)


EVIL = {'type': 'evil_feature.X', 'content': '{}'}
DICT = 'tensorflow_datasets.core.features.features_dict.FeaturesDict'
HOSTILE = [  # features that name a class of somebody else; whether TFDS imports it from INFO, too
    ({'pythonClassName': 'evil_feature.X', 'text': {}}, True),
    ({'python_class_name': 'evil_feature.X', 'text': {}}, True),
    ({'type': 'evil_feature.X', 'content': {}}, False),
    ({'pythonClassName': DICT, 'jsonFeature': {'json': json.dumps({'x': EVIL})}}, True),
]


def test_nothing_in_a_directory_is_imported(directory, tmp_path, monkeypatch):
    """TFDS itself would import evil_feature, were it only on the path."""
    (tmp_path / 'evil_feature.py').write_text('raise SystemExit("run")')
    monkeypatch.syspath_prepend(tmp_path)
    for file in (INFO, FEATURES):
        whole = (directory / file).read_text()
        for features, is_imported in HOSTILE:
            content = features if file == FEATURES else json.loads(whole) | {'features': features}
            (directory / file).write_text(json.dumps(content))
            if file == FEATURES or is_imported:
                with pytest.raises(SystemExit, match='run'):
                    builder.library().builder_from_directory(directory)
            assert_refused(r"'evil_feature\.X' is none of TFDS; not imported", 'train', directory)
            assert 'evil_feature' not in sys.modules
        (directory / file).write_text(whole)


def test_damaged_lists_are_refused_by_their_directory(directory):
    for path in (directory / INFO, directory / FEATURES):
        whole = path.read_bytes()
        for content in (b'', b'{', b'[]', b'5', b'{"name": 5}', b'[' * 100_000, b'\xff'):
            path.write_bytes(content)
            assert_refused(f'^{re.escape(str(directory))}', 'train', directory)
        path.write_bytes(whole)


def test_damaged_records_are_problems_or_refused(directory):
    (file,) = directory.glob('*train*')
    content = file.read_bytes()
    for damage in (b'', content[: len(content) // 2], bytes(len(content)), None):
        file.unlink() if damage is None else file.write_bytes(damage)
        with pytest.raises(InputError, match=re.escape(str(directory))):
            lint(opened('train', directory, ''))
