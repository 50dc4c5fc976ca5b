"""Preparing: once, whole or not at all, whatever is killed or runs beside it."""

import json
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from data_files import (
    coco_archives,
    coco_box,
    coco_image,
    make_official,
    voc_annotation,
    voc_archive,
    write_coco,
    write_voc,
)

from rpn_jax.data.prepare import builder
from rpn_jax.data.prepare.official import DATASETS
from rpn_jax.errors import InputError

VOC, COCO = DATASETS['voc/2007'], DATASETS['coco/2017']
FINAL = 'detection/voc_2007/1.0.0'


@pytest.fixture
def root(tmp_path):
    """Returns a folder that VOCdevkit/VOC2007 lies in, with lists train and val."""
    write_voc(tmp_path / 'data/VOCdevkit/VOC2007')
    return tmp_path / 'data'


@pytest.fixture
def run(caplog):
    """Returns the function that prepares splits: (their directory, what was logged)."""
    caplog.set_level(logging.INFO, 'rpn_jax')

    def run(root, splits=('train',), dataset=VOC, **options):
        caplog.clear()
        directory = builder.prepare(dataset, splits, root, **options)
        assert left(root) == []
        return directory, list(caplog.messages)

    return run


def left(root):
    """Returns the temporary folders that are left."""
    return [path.name for path in (root / 'detection').glob('.*') if path.is_dir()]


def opened(directory):
    """Returns TFDS's builder of a directory."""
    return builder.library().builder_from_directory(directory)


def test_a_folder_is_prepared_once_with_all_its_splits_as_others_read_it(root, capfd, run):
    directory, lines = run(root)
    assert directory == root / FINAL and lines == [f'preparing {directory}: train, val']
    assert list(builder.prepared_splits(directory)) == ['train', 'val']
    assert run(root, ('val', 'train')) == (directory, [])
    assert capfd.readouterr() == ('', '')  # TFDS has nothing to say
    made = opened(directory)
    assert made.info.name == 'detection' and made.info.full_name.endswith('voc_2007/1.0.0')
    assert 'half open' in made.info.metadata['boxes']
    assert 'half open' in made.info.features['objects'].feature['bbox'].doc.desc
    decoders = {'image': builder.library().decode.SkipDecoding()}
    example = made.as_data_source(split='train', decoders=decoders)[2]
    picture = root / 'VOCdevkit/VOC2007/JPEGImages/000002.jpg'
    assert example['image'] == picture.read_bytes()
    assert example['image/filename'] == b'000002.jpg' and example['image/folder'] == b'VOC2007'
    assert (example['height'], example['width']) == (64, 64) and example['remarks'] == []
    assert example['objects']['label'] == [b'cat', b'cat']
    assert list(map(bool, example['objects']['is_difficult'])) == [False, True]
    assert example['objects']['bbox'][0].tolist() == [5 / 64, 4 / 64, 50 / 64, 40 / 64]


@pytest.mark.parametrize(
    ('categories', 'twin', 'label'),
    [
        ([{'id': 5, 'name': 'owl'}], (), b'owl'),
        ([{'name': 'owl'}, 5], (), b''),  # damaged
        ([{'id': 5, 'name': 'owl'}], [coco_image(7, id=99)], b'owl'),  # two images of one file
    ],
)
def test_the_classes_of_coco_are_kept(tmp_path, run, categories, twin, label):
    file = write_coco(tmp_path) / 'annotations/instances_train2017.json'
    content = json.loads(file.read_text()) | {'categories': categories}
    content['annotations'][2]['category_id'] = 5
    content['annotations'] += [coco_box(99, [1, 2, 3, 4])]
    content['images'] += twin
    file.write_text(json.dumps(content))
    directory, _ = run(tmp_path, dataset=COCO, on_bad='skip')
    examples = opened(directory).as_data_source(split='train')
    assert len(examples) == 3 + len(twin)
    assert examples[0]['objects']['label'] == [b'', label, b'']
    assert list(map(bool, examples[0]['objects']['is_crowd'])) == [False, True, False]


def test_a_split_that_comes_later_is_added_once_the_list_says_so(root, monkeypatch, run):
    """Files of a split that INFO does not list do not count, and are written again."""
    folder = root / 'VOCdevkit/VOC2007'
    lists = folder / 'ImageSets/Main'
    (folder / 'JPEGImages/000003.jpg').unlink()
    directory, _ = run(root, on_bad='skip')
    before = {file.name: file.stat().st_mtime_ns for file in directory.glob('*train*')}
    shutil.copy(lists / 'val.txt', lists / 'test.txt')

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(builder, 'write_json', stop)
        run(root, ('test',))
    assert list(directory.glob('*test*'))
    assert list(builder.prepared_splits(directory)) == ['train', 'val']
    _, lines = run(root, ('test',))
    assert lines == [f'preparing {directory}: test']
    assert list(builder.prepared_splits(directory)) == ['train', 'val', 'test']
    assert {file.name: file.stat().st_mtime_ns for file in directory.glob('*train*')} == before
    made = opened(directory)
    assert [len(made.as_data_source(split=s)) for s in ('train', 'val', 'test')] == [3, 2, 2]
    assert list(made.info.metadata['left_out']) == ['train']


def test_archives_are_unpacked_to_a_folder_that_goes(tmp_path, monkeypatch, cache, run):
    make_official(monkeypatch, voc_archive(tmp_path))
    directory, lines = run(tmp_path, ('val',))
    assert list(builder.prepared_splits(directory)) == ['train', 'val']  # both are in that archive
    assert [line.split()[0] for line in lines] == ['checking', 'unpacking', 'preparing']
    assert not list(cache.rglob('*.json'))
    for path in coco_archives(tmp_path):
        make_official(monkeypatch, path)
    directory, _ = run(tmp_path, ('val',), COCO)
    assert list(builder.prepared_splits(directory)) == ['val']
    assert opened(directory).info.splits['val'].num_examples == 3


def test_bad_images_are_refused_or_left_out(root, run):
    folder = root / 'VOCdevkit/VOC2007'
    (folder / 'JPEGImages/000003.jpg').write_bytes(b'no image')
    text = voc_annotation((60, 80), ((40, 6, 30, 50), 0))
    (folder / 'Annotations/000000.xml').write_text(text)
    with pytest.raises(InputError, match='000000.xml: .*inverted.*2 such problems'):
        run(root)
    assert not (root / FINAL).exists() and left(root) == []
    directory, lines = run(root, on_bad='skip')
    note = 'VOC2007: 2 of 4 images left out when it was prepared'
    assert f'voc_2007 train: {note}' in lines
    info = opened(directory).info
    assert info.splits['train'].num_examples == 2
    assert info.metadata['left_out'] == {'train': [note]}
    shutil.rmtree(directory)
    (folder / 'ImageSets/Main/trainval.txt').write_text('000000\n000004\n')
    with pytest.raises(InputError, match=r"trainval\.txt: not the images of train and val .*'voc'"):
        run(root)


def test_a_killed_preparation_leaves_nothing_that_is_trusted(root, run):
    """The process dies as by kill -9 at its third image, after the checks."""
    script = f"""
import os
from pathlib import Path
from rpn_jax.data.prepare import builder, official
examples = builder._examples
def dying(part, source, *rest):
    def load(position):
        if position == 2:
            os.kill(os.getpid(), 9)
        return source.files.load(position)
    return examples(part, source._replace(files=source.files._replace(load=load)), *rest)
builder._examples = dying
builder.prepare(official.DATASETS['voc/2007'], ['train'], Path({str(root)!r}))
"""
    folder = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, '-c', script], cwd=folder, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert len(left(root)) == 1 and not (root / FINAL).exists()
    directory, _ = run(root)
    assert list(builder.prepared_splits(directory)) == ['train', 'val']


def test_two_at_once_prepare_it_once(root, caplog):
    caplog.set_level(logging.INFO, 'rpn_jax')
    outcomes = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(builder.prepare(VOC, ['train'], root)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line for line in caplog.messages if line.startswith('preparing')]
    assert len(lines) == 1 and outcomes == [root / FINAL] * 2


def test_damage_and_folders_that_cannot_be_written_are_refused(root, run):
    (root / 'detection').write_text('a file')
    with pytest.raises(InputError, match='voc_2007/1.0.0: cannot be prepared'):
        run(root)
    (root / 'detection').unlink()
    (root / FINAL).mkdir(parents=True)
    for content in ('{', '[]', '{"splits": [{}]}', '{"splits": 5}'):
        (root / FINAL / 'dataset_info.json').write_text(content)
        with pytest.raises(InputError, match='dataset_info.json: damaged .*; remove .*1.0.0'):
            run(root)
