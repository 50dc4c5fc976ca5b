"""Results come back as they were, from npz and from COCO's json; hostile files are refused."""

import io
import json
import os
import sys
import zipfile

import numpy as np
import pytest

from rpn_jax.errors import InputError
from rpn_jax.evaluation import results


def a_split(seed=0, images=5, dtype=np.float32, areas=False):
    """Makes Results of images with none to six proposals, none to four objects of all kinds."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        return np.sort(rng.uniform(0, 90, (count, 2, 2)), axis=1).reshape(count, 4).astype(dtype)

    proposals = [boxes(rng.integers(0, 7) if i else 0) for i in range(images)]
    objects = [boxes(rng.integers(0, 5) if i != 1 else 0) for i in range(images)]
    return results.Results(
        dataset='drawn/val',
        step=70,
        image_ids=[f'folder/{i:03} ü.jpg' for i in range(images)],
        sizes=rng.integers(90, 200, (images, 2)),
        proposals=proposals,
        scores=[-np.sort(-rng.random(len(p))).astype(dtype) for p in proposals],
        gt_boxes=objects,
        gt_kinds=[rng.integers(1, 4, len(o)) for o in objects],
        gt_areas=[np.arange(len(o)) + 0.5 for o in objects] if areas else None,
    )


def assert_equal(a, b):
    assert a.coco_ids == b.coco_ids
    assert (a.dataset, a.step, list(a.image_ids)) == (b.dataset, b.step, list(b.image_ids))
    assert a.post_nms == b.post_nms and np.array_equal(a.sizes, b.sizes)
    for name in ('proposals', 'scores', 'gt_boxes', 'gt_kinds', 'gt_areas'):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        for x, y in zip(one or (), other or (), strict=True):
            assert np.shape(x) == np.shape(y) and np.array_equal(x, y), name


SPLITS = {
    'boxes': a_split(),
    'areas': a_split(1, areas=True),
    'float64': a_split(2, dtype=np.float64),
    'no images': a_split(3, images=0),
    'no proposals': a_split(4, images=1),
    'no names': a_split()._replace(dataset='', image_ids=[''] * 5),
    'post_nms': a_split()._replace(post_nms=6),
}


@pytest.mark.parametrize('split', SPLITS.values(), ids=SPLITS)
def test_npz_round_trip(tmp_path, split):
    path = tmp_path / 'proposals.npz'
    results.save(path, split)
    loaded = results.load(path)
    assert_equal(loaded, split)
    for before, after in zip(split.proposals, loaded.proposals, strict=True):
        assert after.dtype == before.dtype
    assert [file.name for file in tmp_path.iterdir()] == ['proposals.npz']


def test_half_floats_are_read_without_a_warning(tmp_path):
    split = a_split()
    halves = {'proposals': np.float16(np.concatenate(split.proposals)).round()}
    np.savez(tmp_path / 'half.npz', **members(tmp_path) | halves)
    loaded = results.load(tmp_path / 'half.npz')
    assert loaded.proposals[1].dtype == np.float16
    np.testing.assert_allclose(loaded.proposals[1], split.proposals[1], atol=0.6)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_coco_round_trip(tmp_path, dtype):
    split = a_split(dtype=dtype, areas=True)._replace(coco_ids=['b', 7, 2, 10**19, 'a'])
    paths = tmp_path / 'instances.json', tmp_path / 'results.json'
    for path, content in zip(paths, results.to_coco(split), strict=True):
        path.write_text(json.dumps(content, allow_nan=False))
    back = results.from_coco(*paths, dataset='drawn/val', step=70)
    if dtype == np.float32:  # the json's numbers are float64, and hold these exactly
        assert_equal(back, split)
    for a, b in zip(split.proposals, back.proposals, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-13)
    assert results.from_coco(*paths).dataset == 'results'


def test_coco_json_by_hand():
    boxes = np.array([[0, 0, 10, 20.0], [1, 1, 2, 2], [3, 3, 9, 5]])
    split = results.Results(
        *('a', 1, ['12', '7'], np.array([[30, 40], [50, 60]])),
        *([np.array([[1, 2, 4, 8.0]]), np.zeros((0, 4))], [np.array([0.5]), np.zeros(0)]),
        *([boxes, np.zeros((0, 4))], [np.array([1, 2, 3]), np.zeros(0, int)]),
    )
    instances, entries = results.to_coco(split)
    assert instances['images'] == [
        {'id': 12, 'file_name': '12', 'height': 30, 'width': 40},
        {'id': 7, 'file_name': '7', 'height': 50, 'width': 60},
    ]
    rows = [{k: v for k, v in a.items() if k != 'category_id'} for a in instances['annotations']]
    assert rows == [
        {'id': 1, 'image_id': 12, 'bbox': [0, 0, 10, 20], 'area': 200, 'iscrowd': 0},
        {'id': 2, 'image_id': 12, 'bbox': [1, 1, 1, 1], 'area': 1, 'iscrowd': 1, 'difficult': 1},
        {'id': 3, 'image_id': 12, 'bbox': [3, 3, 6, 2], 'area': 12, 'iscrowd': 1},
    ]
    assert entries == [{'image_id': 12, 'category_id': 1, 'bbox': [1, 2, 3, 6], 'score': 0.5}]
    given = results.to_coco(split._replace(gt_areas=[[9, 8, 7.5], []]))[0]['annotations']
    assert [annotation['area'] for annotation in given] == [9, 8, 7.5]
    for names in (['b.jpg', 'a.jpg'], ['7', '07']):
        images = results.to_coco(split._replace(image_ids=names))[0]['images']
        assert [image['id'] for image in images] == [1, 2]


def test_results_rank_by_score_then_category_then_the_files_order():
    """As other programs write them: of several categories, images mixed, in no order."""
    instances = {'images': [{'id': 5, 'height': 9, 'width': 9}, {'id': 2, 'height': 9, 'width': 9}]}
    box = {'id': 0, 'image_id': 2, 'bbox': [1, 1, 2, 3]}
    instances['annotations'] = [box | {'category_id': 9}, box | {'category_id': 8, 'area': 1}]
    rows = [(2, 0, 0.3), (5, 1, 0.9), (2, 2, 0.7), (2, 3, 0.3), (2, 4, 0.7), (2, 5, 1), (2, 6, 0.7)]
    entries = [
        {'image_id': image, 'bbox': [x, 0, 1, 1], 'score': score, 'category_id': 8 - x // 3}
        for image, x, score in rows
    ]
    split = results.from_coco(instances, entries)
    assert split.image_ids == ['5', '2']
    assert [p[:, 0].tolist() for p in split.proposals] == [[1], [5, 6, 4, 2, 3, 0]]
    assert split.scores[1].tolist() == [1, 0.7, 0.7, 0.7, 0.3, 0.3]
    assert [k.tolist() for k in split.gt_kinds] == [[], [1, 1]]
    assert [a.tolist() for a in split.gt_areas] == [[], [1, 6]]


IMAGE = {'id': 1, 'height': 9, 'width': 9}
ANNOTATION = {'image_id': 1, 'bbox': [0, 0, 2, 3], 'area': 6}
RESULT = {'image_id': 1, 'bbox': [0, 0, 1, 1], 'score': 0.5}


@pytest.mark.parametrize(
    ('change', 'entries', 'message'),
    [
        ({'images': None}, [RESULT], 'instances: no list of images'),
        ({}, {}, 'results: no list of results'),
        ({'images': [{'id': 1}]}, [RESULT], "image number 0 .*KeyError: 'height'"),
        ({'images': [IMAGE] * 2}, [RESULT], 'two images of one id'),
        ({'images': [IMAGE | {'id': []}]}, [], 'image number 0'),
        ({'images': [IMAGE | {'height': 1e300}]}, [], 'image number 0'),
        ({'annotations': [3]}, [RESULT], 'annotation number 0 cannot'),
        ({'annotations': [ANNOTATION | {'area': float('inf')}]}, [RESULT], 'areas are not'),
        ({}, [RESULT, RESULT | {'image_id': 8}], 'result number 1'),
        ({}, [RESULT | {'bbox': [1, 2, 3]}], 'result number 0 cannot'),
        ({}, [RESULT | {'bbox': [0, 0, float('nan'), 1]}], 'image 1: proposals are not'),
        ({}, [RESULT | {'bbox': [0, 0, 1e300, 1]}], 'beyond 1e'),
        ({}, [RESULT | {'score': float('nan')}], 'scores are not finite'),
        ({}, [RESULT | {'score': None}], 'TypeError'),
    ],
)
def test_json_that_cannot_be_used_ends_in_a_line(change, entries, message):
    with pytest.raises(InputError, match=message) as caught:
        results.from_coco({'images': [IMAGE], 'annotations': [ANNOTATION]} | change, entries)
    assert '\n' not in str(caught.value)


def test_what_is_no_json_file_ends_in_a_line(tmp_path):
    (tmp_path / 'a.json').write_bytes(b'\xff{')
    for path in (tmp_path / 'a.json', tmp_path / 'none.json', tmp_path):
        with pytest.raises(InputError, match='not a json file'):
            results.from_coco(path, [])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'scores': [np.zeros(9)] * 5}, 'image folder/000 ü.jpg: proposals of shape'),
        ({'scores': []}, 'images, not all 5'),
        ({'gt_boxes': [np.full((2, 4), np.inf)] * 5, 'gt_kinds': [[1, 1]] * 5}, 'not finite'),
        ({'gt_boxes': [np.zeros((1, 4))] * 5, 'gt_kinds': [[0]] * 5}, 'kinds are'),
        ({'proposals': [np.zeros((2, 4))] * 5, 'scores': [np.array([0, 1.0])] * 5}, 'rise'),
        ({'gt_areas': [np.zeros(9)] * 5}, 'areas are not one'),
        ({'proposals': [[[5, 0, 4, 9.0]]] * 5, 'scores': [[1.0]] * 5}, 'proposals are inverted'),
        ({'gt_boxes': [[[0, 9, 4, 8.0]]] * 5, 'gt_kinds': [[3]] * 5}, 'objects are inverted'),
        ({'post_nms': 1}, 'an image has more proposals than post_nms=1'),
    ],
)
def test_what_does_not_fit_together_is_not_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        results.save(tmp_path / 'a.npz', a_split()._replace(**change))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match='cannot be written'):
        results.save(tmp_path / 'none' / 'a.npz', a_split())


def members(tmp_path):
    """Returns the arrays of a whole file."""
    results.save(tmp_path / 'whole.npz', a_split(areas=True))
    with np.load(tmp_path / 'whole.npz') as file:
        return dict(file)


def refused(path, message=''):
    """Checks that a file is refused in one line that names it."""
    with pytest.raises(InputError, match=f'{path.name}: .*{message}') as caught:
        results.load(path)
    assert '\n' not in str(caught.value)


class Program:
    """Ends the process of whoever unpickles it."""

    def __reduce__(self):
        return sys.exit, ('a pickle was executed',)


OBJECTS = sum(map(len, a_split(areas=True).gt_boxes))
HOSTILE = {
    'pickled objects': {'kinds': np.array([Program()], object)},
    'integers as boxes': {'proposals': np.zeros((3, 4), int)},
    'bytes as names': {'image_ids': np.array([b'a'] * 5)},
    'three columns': {'objects': np.zeros((3, 3), np.float32)},
    'one axis too many': {'step': np.array([3])},
    'negative counts': {'object_counts': np.array([-1, OBJECTS + 1, 0, 0, 0])},
    'counts of too many': {'object_counts': np.full(5, 1000)},
    'counts that wrap around': {'object_counts': np.array([2**62] * 4)},
    'fewer images than names': {'image_ids': np.array(['a', 'b'])},
    'another member': {'more': np.zeros(2)},
    'half floats without end': {'proposals': np.full((20, 4), np.inf, np.float16)},
    'a limit of less than there is': {'post_nms': np.array(1)},
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_members_end_in_a_line(tmp_path, name):
    np.savez(tmp_path / 'hostile.npz', **members(tmp_path) | HOSTILE[name])
    refused(tmp_path / 'hostile.npz')


HEADERS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4), }",
    "{'descr': '<U0', 'fortran_order': False, 'shape': (4,), }",
    "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (0, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4)",
    *('{' * 90, 'import os'),
]


@pytest.mark.parametrize('content', ['', 'no array', *HEADERS])
def test_hostile_headers_end_in_a_line(tmp_path, content):
    if content in HEADERS:
        text = content.encode().ljust(117) + b'\n'
        content = (b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text).decode('latin-1')
    path = tmp_path / 'hostile.npz'
    message = 'not a whole file of proposal results'
    os.mkfifo(tmp_path / 'pipe.npz')  # reading it would wait for ever
    refused(tmp_path / 'pipe.npz', message)
    for hostile, complaint in (('proposals', message), ('image_ids', '')):
        with zipfile.ZipFile(path, 'w') as archive:
            for name, array in members(tmp_path).items():
                file = io.BytesIO()
                np.save(file, array)
                own = content.encode('latin-1') if name == hostile else file.getvalue()
                archive.writestr(f'{name}.npy', own)
        refused(path, complaint)


def test_damaged_files_end_in_a_line(tmp_path):
    arrays, path = members(tmp_path), tmp_path / 'damaged.npz'
    whole = (tmp_path / 'whole.npz').read_bytes()
    middle = whole.index(b'proposals.npy') + 160
    damaged = [whole[:n] for n in (0, 3, 100, len(whole) // 2, len(whole) - 1)]
    damaged += [b'PK' + bytes(100), whole[:middle] + b'\xff\xfe' + whole[middle + 2 :]]
    for content in damaged:
        path.write_bytes(content)
        refused(path, 'not a whole file')
    for other in (tmp_path, tmp_path / 'none.npz'):
        refused(other, 'not a whole file')
    np.savez_compressed(path, **arrays | {'scores': np.zeros(10**6)})  # would swell
    refused(path, 'members are compressed')


def test_ids_of_a_json_file_come_back_and_its_own_entries_are_written(tmp_path):
    split = a_split(images=4)._replace(coco_ids=[3, '1', 10**19, 0])
    results.save(tmp_path / 'x.npz', split)
    assert results.load(tmp_path / 'x.npz').coco_ids == split.coco_ids
    assert [entry['id'] for entry in results.to_coco(split)[0]['images']] == split.coco_ids
    images = [{'id': key, 'file_name': f'{key}.jpg', 'licence': 4} for key in (10**19, 5, 3)]
    annotations = [
        {'id': 'a', 'image_id': 3, 'bbox': [0.1, 0.7, 1, 2], 'area': 0.3, 'segmentation': [[]]},
        {'id': 'b', 'image_id': 5, 'bbox': [0.1, 0.7, 1, 2]},
    ]
    own = {'info': 'x', 'images': images, 'annotations': annotations}
    own['categories'] = [{'id': 77, 'name': 'owl'}]
    instances, entries = results.to_coco(split, own)
    assert instances == own | {'images': [images[0], images[2]], 'annotations': annotations[:1]}
    assert {entry['category_id'] for entry in entries} == {77}
    assert {str(entry['image_id']) for entry in entries} <= set(map(str, split.coco_ids))


@pytest.mark.parametrize('ids', [[1, 2], [1, 2, 3, None], [1.5, 2, 3, 4], [True, 2, 3, 4]])
def test_wrong_ids_of_images_are_refused(tmp_path, ids):
    with pytest.raises(InputError, match='coco_ids are not one whole number or string for each'):
        results.save(tmp_path / 'x.npz', a_split(images=4)._replace(coco_ids=ids))
