"""The data section: every key is used, contradictions are refused, sources become batches."""

import logging
import shutil

import numpy as np
import pytest
from data_files import write_coco, write_voc
from helpers import data_options

from configs import default
from rpn_jax import data
from rpn_jax.data import batches
from rpn_jax.data.sources.shapes import shapes
from rpn_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return write_voc(tmp_path / 'VOC')


def test_the_options_are_the_keys_of_the_config():
    assert set(data.Options._fields) == set(default.get_config().data)


def test_the_canvas_is_a_square_of_the_image_size_or_keeps_the_shape():
    canvases = data.plan([(30, 40), (90, 20)], data_options(image_size=64))
    assert canvases.shapes == ((64, 64),) and canvases.sizes.tolist() == [[64, 64]] * 2
    settings = data_options(image_size=64, max_size=128, resize='short_side')
    canvases = data.plan([(30, 40), (90, 20)], settings)
    assert canvases.sizes.tolist() == [[64, 85], [128, 28]]
    assert canvases.shapes == ((64, 96), (128, 32)) and canvases.of.tolist() == [0, 1]


@pytest.mark.parametrize(
    ('key', 'value', 'complaint'),
    [
        ('source', 'zip', "'zip' is not one of 'tfds', 'voc', 'coco', 'yolo', 'shapes', 'images'"),
        ('resize', 'long_side', "'long_side' is not one of 'square', 'short_side'"),
        ('on_bad', 'ignore', "'ignore' is not one of 'error', 'skip', 'clip'"),
        ('orientation', 'exif', "'exif' is not one of 'annotation', 'apply', 'ignore'"),
        *((key, 0, '0 is not') for key in ('max_size', 'canvases', 'image_size', 'max_boxes')),
        ('batch_size', -4, '-4 is not at least 1'),
        ('scenes', (5,), 'not two whole numbers'),
        ('scenes', (5, 1.5), 'not two whole numbers'),
        ('pixels', 'rgb', "'rgb' is not one of 'auto', 'torchvision', 'caffe'"),
        ('mean', (1, 2), 'not three numbers'),
    ],
)
def test_a_contradiction_is_refused_by_its_key(key, value, complaint):
    with pytest.raises(InputError, match=rf'^{key} .*{complaint}'):
        data_options(**{key: value})


def test_what_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(InputError, match='^seed -1'):
        data.open_split(data_options(source='shapes'), 'train', seed=-1)
    with pytest.raises(InputError, match="^source 'images' has no boxes"):
        data.open_split(data_options(source='images', path=str(tmp_path)), 'train')


@pytest.mark.parametrize('name', ['', 'voc', 'coco'])
def test_a_plain_folder_is_read_as_what_it_is(tmp_path, caplog, name):
    caplog.set_level(logging.INFO)
    folder = write_coco(tmp_path) if name == 'coco' else write_voc(tmp_path / 'VOC')
    split = 'train2017' if name == 'coco' else 'train'
    options = data_options(source='tfds', name=name, path=str(folder))
    source = data.open_split(options, split)
    assert source.name.startswith(name or 'voc') and len(source.records) in (3, 4)
    assert caplog.messages[0].endswith(f'read as with source={name or "voc"!r}')


def test_scenes_of_training_follow_the_seed_and_those_of_evaluation_do_not():
    settings = data_options(source='shapes', scenes=(7, 3), image_size=48, train_split='a')
    train, same, other = (data.open_split(settings, 'a', seed=seed) for seed in (5, 5, 6))
    own = data.open_split(settings, 'a', seed=5, training=False)  # of the split trained on
    first, last = (data.open_split(settings, 'b', seed=s, training=False) for s in (1, 6))
    assert [len(source.records) for source in (train, own, first)] == [7, 3, 3]
    assert train.read(0).shape == (48, 48, 3)
    for right, left in ((train, same), (train, own), (first, last)):
        np.testing.assert_array_equal(right.read(2), left.read(2))
        np.testing.assert_array_equal(right.records[2].boxes, left.records[2].boxes)
    assert not np.array_equal(train.read(0), other.read(0))
    np.testing.assert_array_equal(first.read(2), shapes('b', count=3, size=48, seed=0).read(2))


def test_a_folder_is_opened_where_the_keys_say(folder, tmp_path):
    (folder / 'JPEGImages').rename(tmp_path / 'pictures')
    (folder / 'Annotations').rename(tmp_path / 'labels')
    elsewhere = {'images': str(tmp_path / 'pictures'), 'annotations': str(tmp_path / 'labels')}
    source = data.open_split(data_options(path=str(folder), **elsewhere), 'val')
    assert [record.image_id for record in source.records] == ['000004', '000005']
    assert source.read(1).shape == (90, 50, 3)


def test_the_evaluation_split_may_lie_elsewhere(folder, tmp_path):
    other = write_coco(tmp_path / 'other', 'val')
    paths = {'path': str(folder), 'eval_path': str(other)}
    settings = data_options(**paths, train_split='train', eval_split='val')
    assert data.open_split(settings, 'train').name == 'voc VOC train'
    with pytest.raises(InputError, match='no folder .*other/JPEGImages'):
        data.open_split(settings, 'val', training=False)
    labels, pictures = other / 'annotations/instances_val.json', other / 'val'
    own = {'eval_images': str(pictures), 'eval_annotations': str(labels)}
    settings = data_options(source='coco', path='nowhere', eval_split='x', **own)
    assert len(data.open_split(settings, 'x', training=False).records) == 3


def test_one_json_is_refused_for_two_splits_with_images_of_their_own(tmp_path):
    folder, keys = write_coco(tmp_path, 'train'), dict(train_split='train', eval_split='val')
    keys |= dict(source='coco', path=str(folder))
    json_file = str(folder / 'annotations/instances_train.json')
    shutil.copytree(folder / 'train', folder / 'val')
    settings = data_options(annotations=json_file, **keys)
    assert len(data.open_split(settings, 'train').records) == 3
    with pytest.raises(InputError, match="^annotations: .* name that of 'val' in eval_annotations"):
        data.open_split(settings, 'val', training=False)
    for own in ({'images': str(folder / 'train')}, {'eval_annotations': f'{folder}/./x.json'}):
        shutil.copy(json_file, folder / 'x.json')
        settings = data_options(annotations=json_file, **keys, **own)
        assert len(data.open_split(settings, 'val', training=False).records) == 3


def test_annotations_may_lie_beside_the_images_of_their_split(tmp_path):
    folder = write_coco(tmp_path, 'valid')
    json_file = folder / 'annotations/instances_valid.json'
    json_file.rename(folder / 'valid/_annotations.coco.json')
    settings = data_options(source='coco', path=str(folder), eval_split='valid')
    assert len(data.open_split(settings, 'valid', training=False).records) == 3


def test_a_split_whose_boxes_do_not_fit_is_refused(folder):
    data.open_split(data_options(path=str(folder), max_boxes=2), 'train')
    data.open_split(data_options(path=str(folder), max_boxes=1), 'train', boxes=False)
    with pytest.raises(InputError, match='image 000002: 2 boxes, .* is 1; raise it'):
        data.open_split(data_options(path=str(folder), max_boxes=1), 'train')


def test_training_batches_come_in_order_from_any_step(folder):
    settings = data_options(path=str(folder), image_size=64, batch_size=3, max_boxes=4, flip=False)
    source = data.open_split(settings, 'train')
    make, plan = data.train_batch(source, settings, seed=1), data.canvases_of(source, settings)
    stream = data.train_batches(source, settings, seed=1, steps=range(2, 22))
    for step, batch in zip(range(2, 22), stream, strict=True):
        expected = batches.collate(source, plan, make.positions(step)[1], max_boxes=4)
        assert batch['image'].shape == (3, 64, 64, 3) and batch['boxes'].shape == (3, 4, 4)
        for key, value in expected.items():
            np.testing.assert_array_equal(batch[key], value)
    assert list(data.train_batches(source, settings, seed=1, steps=range(4, 4))) == []


@pytest.mark.parametrize('resize', ['square', 'short_side'])
@pytest.mark.parametrize(('images', 'expected'), [(0, 6), (3, 3), (99, 6)])
def test_evaluation_covers_the_first_images_once_and_marks_padding(
    folder, images, expected, resize
):
    settings = data_options(path=str(folder), image_size=64, resize=resize, batch_size=1)
    source, rows = data.open_split(settings, ''), []
    plan = data.canvases_of(source, settings, images)
    for batch in data.evaluation_batches(source, settings, batch_size=4, images=images):
        real = batch['index'] >= 0
        (canvas,) = set(plan.of[batch['index'][real]])
        assert real[0] and batch['image'].shape == (4, *plan.shapes[canvas], 3)
        assert not any(batch[key][~real].any() for key in ('image', 'boxes', 'kind'))
        sizes = np.where(real[:, None], plan.sizes[batch['index']], batch['size'][:1])
        np.testing.assert_array_equal(batch['size'], sizes)
        assert batch['index'][~real].tolist() == [-1] * sum(~real)
        for row, position in enumerate(batch['index'][real]):
            alone = batches.collate(source, plan, [position], max_boxes=settings.max_boxes)
            for key, value in alone.items():
                np.testing.assert_array_equal(batch[key][row], value[0])
        rows += batch['index'][real].tolist()
    assert sorted(rows) == list(range(expected))


def test_an_error_on_a_path_of_the_evaluation_names_its_key(folder, tmp_path):
    nowhere = str(tmp_path / 'nowhere')
    options = data_options(source='voc', path=str(folder), eval_path=nowhere)
    with pytest.raises(InputError, match='^eval_path: no folder .*nowhere'):
        data.open_split(options, 'val', training=False)
    with pytest.raises(InputError, match='^path: no folder .*nowhere'):
        data.open_split(options._replace(path=nowhere, eval_path=''), 'val', training=False)
