"""Directories that other builders of TFDS prepared: stock VOC and COCO, and without boxes."""

import json

import numpy as np
import pytest
from data_files import encoded

from rpn_jax.data.prepare import builder
from rpn_jax.data.records import CLIPPED
from rpn_jax.data.sources.coco import EMPTY
from rpn_jax.data.sources.tfds import tfds
from rpn_jax.errors import InputError


def opened(split, root, name='voc/2007'):
    return tfds(split, path=root, name=name)


def stock(folder, name, objects, size=(60, 80)):
    """Writes a directory as TFDS's own builders do: one picture in train and in validation.

    objects are (bbox, further features); returns the directory.
    """
    library = builder.library()
    flags = {key: library.features.Scalar(np.bool_) for key in ('is_difficult', 'is_crowd')}
    used = {key for _, extra in objects for key in extra}
    inner = {'bbox': library.features.BBoxFeature(), **{key: flags[key] for key in sorted(used)}}
    features = {
        'image': library.features.Image(encoding_format='jpeg'),
        'image/filename': library.features.Text(),
        'objects': library.features.Sequence(inner),
    }
    picture = encoded(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))

    class Info(library.core.DatasetInfo):
        def initialize_from_bucket(self):
            pass

    class Stock(library.core.ShardBasedBuilder, skip_registration=True):
        VERSION = library.core.Version('4.0.0')
        BUILDER_CONFIGS = [library.core.BuilderConfig(name='2007')]

        def _info(self):
            return Info(builder=self, features=library.features.FeaturesDict(features))

        def _shard_iterators_per_split(self, dl_manager):
            def examples():
                items = [{'bbox': np.float32(box), **extra} for box, extra in objects]
                values = {'image': picture, 'image/filename': '000012.jpg', 'objects': items}
                yield 0, {k: v for k, v in values.items() if k in features}

            return {'train': [examples], 'validation': [examples]}

        def _log_download_bytes(self):
            pass

        _log_download_done = _log_download_bytes

    Stock.name = name
    stock = Stock(data_dir=folder)
    stock.download_and_prepare(
        file_format='array_record',
        download_config=library.download.DownloadConfig(try_download_gcs=False),
    )
    return folder / name / '2007' / '4.0.0'


def over(x0, y0, x1, y1, size=(60, 80)):
    """Returns (ymin, xmin, ymax, xmax) over the size, as float32."""
    (height, width) = size
    return np.float32([y0 / height, x0 / width, y1 / height, x1 / width])


def test_stock_voc_stores_corners_from_one(tmp_path):
    objects = [
        (over(1, 1, 80, 60), {'is_difficult': False}),
        (over(5, 6, 40, 50), {'is_difficult': True}),
        (over(7, 7, 7, 7), {'is_difficult': False}),
    ]
    stock(tmp_path, 'voc', objects)
    source = opened('train+validation', tmp_path)  # taken instead of preparing
    first = source.records[0]
    assert first.image_id == '000012' and first.size == (60, 80) and len(source.records) == 2
    np.testing.assert_array_equal(first.boxes, [[0, 0, 80, 60], [4, 5, 40, 50], [6, 6, 7, 7]])
    assert first.kind.tolist() == [1, 2, 1] and first.remarks == () and source.problems == ()
    assert source.read(0).shape == (60, 80, 3)
    assert source.files.names[0] != source.files.names[1]


def test_other_directories_store_half_open_boxes(tmp_path):
    objects = [
        (over(0, 0, 80, 60), {'is_crowd': True}),
        (over(5.25, 6.5, 40.75, 50), {'is_crowd': False}),
        (over(5, 6, 5, 50), {'is_crowd': False}),
    ]
    source = opened('train', stock(tmp_path, 'coco', objects), '')
    (record,) = source.records
    assert record.image_id == '000012.jpg' and record.kind.tolist() == [3, 1]
    np.testing.assert_array_equal(record.boxes, [[0, 0, 80, 60], [5.25, 6.5, 40.75, 50]])
    assert record.remarks == (EMPTY,)


def test_a_wrong_box_is_a_problem_of_its_image(tmp_path):
    """VOC's x0 = 0 is a pixel outside, which is clipped; two pixels outside is refused."""
    directory = stock(tmp_path, 'voc', [(over(0, 6, 40, 50), {})])
    (record,) = opened('train', directory, '').records
    assert record.remarks == (CLIPPED,) and record.boxes.tolist() == [[0, 5, 40, 50]]
    text = (directory / 'features.json').read_text().replace('"bboxFormat": "REL_YXYX",', '')
    (directory / 'features.json').write_text(text)  # without a format anything could be meant
    assert len(opened('train', directory, '').records) == 1
    source = opened('train', inverted(tmp_path), '')
    (problem,) = source.problems
    assert problem.position == 0 and problem.kind == 'box inverted'
    name = source.files.names[0]
    assert problem.message == f'{name}: object 0 is inverted: (41, 6, 40, 50)'
    assert source.records[0].boxes.shape == (0, 4)


def inverted(tmp_path):
    """Returns a directory with what TFDS itself would not write."""
    checks = builder.library().features.BBoxFeature.encode_example
    feature = builder.library().features.BBoxFeature
    try:
        feature.encode_example = lambda self, box: super(feature, self).encode_example(box)
        return stock(tmp_path / 'inverted', 'x', [(over(41, 6, 40, 50), {})])
    finally:
        feature.encode_example = checks


def test_a_directory_without_boxes_is_refused(tmp_path):
    directory = stock(tmp_path, 'x', [(over(1, 2, 3, 4), {})])
    text = (directory / 'features.json').read_text()
    for old, new, complaint in [
        ('"objects"', '"things"', None),  # other names will do
        ('bounding_boxes.BBoxFeature', 'tensor_feature.Tensor', None),
        ('REL_YXYX', 'XYXY', 'are XYXY, not'),
    ]:
        assert old in text
        (directory / 'features.json').write_text(text.replace(old, new))
        if complaint:
            with pytest.raises(InputError, match=complaint):
                opened('train', directory, '')
    content = json.loads(text)
    for key in ('objects', 'image'):
        features = dict(content['featuresDict']['features'])
        del features[key]
        less = content | {'featuresDict': {'features': features}}
        (directory / 'features.json').write_text(json.dumps(less))
        with pytest.raises(InputError, match='no feature image, or no objects/bbox; it has'):
            opened('train', directory, '')
