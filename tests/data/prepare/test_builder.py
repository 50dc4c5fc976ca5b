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
def writes(monkeypatch):
    """Returns the list of what is written from now on."""
    calls, write = [], builder._write
    monkeypatch.setattr(
        builder,
        '_write',
        lambda config, content, *rest: calls.append(list(content)) or write(config, content, *rest),
    )
    return calls


@pytest.fixture
def run(caplog):
    """Returns the function that prepares splits: (their directory, what was logged)."""
    caplog.set_level(logging.INFO, 'rpn_jax')

    def run(root, splits=('train',), dataset=VOC, **options):
        caplog.clear()
        return builder.prepare(dataset, splits, root, **options), list(caplog.messages)

    return run


def left(root):
    """Returns the temporary folders that are left."""
    return [path.name for path in (root / 'detection').glob('.*') if path.is_dir()]


def test_a_folder_is_prepared_once_with_all_its_splits_as_others_read_it(root, writes, capfd, run):
    directory, lines = run(root)
    assert directory == root / FINAL and lines == [f'preparing {directory}: train, val']
    assert list(builder.prepared_splits(directory)) == ['train', 'val'] and left(root) == []
    again = run(root, ('val', 'train'))
    assert again == (directory, []) and writes == [['train', 'val']]
    assert capfd.readouterr() == ('', '')  # TFDS has nothing to say
    tfds = builder.library()
    made = tfds.builder_from_directory(directory)
    assert made.info.name == 'detection' and made.info.full_name.endswith('voc_2007/1.0.0')
    assert 'half open' in made.info.metadata['boxes']
    assert 'half open' in made.info.features['objects'].feature['bbox'].doc.desc
    decoders = {'image': tfds.decode.SkipDecoding()}
    example = made.as_data_source(split='train', decoders=decoders)[2]
    picture = root / 'VOCdevkit/VOC2007/JPEGImages/000002.jpg'
    assert example['image'] == picture.read_bytes()
    assert example['image/filename'] == b'000002.jpg' and example['image/folder'] == b'VOC2007'
    assert (example['height'], example['width']) == (64, 64) and example['remarks'] == []
    assert example['objects']['label'] == [b'cat', b'cat']
    assert list(map(bool, example['objects']['is_difficult'])) == [False, True]
    assert example['objects']['bbox'][0].tolist() == [5 / 64, 4 / 64, 50 / 64, 40 / 64]


def test_the_classes_of_coco_are_kept(tmp_path, run):
    file = write_coco(tmp_path) / 'annotations/instances_train2017.json'
    content = json.loads(file.read_text()) | {'categories': [{'id': 5, 'name': 'owl'}]}
    content['annotations'][2]['category_id'] = 5
    file.write_text(json.dumps(content))
    directory, _ = run(tmp_path, dataset=COCO)
    example = builder.library().builder_from_directory(directory).as_data_source(split='train')[0]
    assert example['objects']['label'] == [b'', b'owl', b'']
    assert list(map(bool, example['objects']['is_crowd'])) == [False, True, False]


def test_classes_that_are_damaged_stop_nothing(tmp_path, run):
    file = write_coco(tmp_path) / 'annotations/instances_train2017.json'
    content = json.loads(file.read_text()) | {'categories': [{'name': 'owl'}, 5]}
    entry = dict(content['images'][0], id=99)  # a second image of the same file
    boxes = [dict(content['annotations'][0], image_id=99), {'bbox': [1, 2]}]
    content['images'].append(entry)
    content['annotations'] += boxes
    file.write_text(json.dumps(content))
    directory, _ = run(tmp_path, dataset=COCO, on_bad='skip')
    info = builder.library().builder_from_directory(directory).info
    assert info.splits['train'].num_examples == 4


def test_a_split_that_comes_later_is_added_once_the_list_says_so(root, writes, monkeypatch, run):
    """Files of a split that INFO does not list do not count, and are written again."""
    directory, _ = run(root)
    before = {file.name: file.stat().st_mtime_ns for file in directory.glob('*train*')}
    lists = root / 'VOCdevkit/VOC2007/ImageSets/Main'
    shutil.copy(lists / 'val.txt', lists / 'test.txt')

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(builder, 'write_atomically', stop)
        run(root, ('test',))
    assert list(directory.glob('*test*')) and list(builder.prepared_splits(directory)) == [
        'train',
        'val',
    ]
    _, lines = run(root, ('test',))
    assert lines == [f'preparing {directory}: test']
    assert writes == [['train', 'val'], ['test'], ['test']]
    assert list(builder.prepared_splits(directory)) == ['train', 'val', 'test']
    assert {file.name: file.stat().st_mtime_ns for file in directory.glob('*train*')} == before
    made = builder.library().builder_from_directory(directory)
    assert [len(made.as_data_source(split=s)) for s in ('train', 'val', 'test')] == [4, 2, 2]


def test_archives_are_unpacked_to_a_folder_that_goes(tmp_path, monkeypatch, cache, run):
    make_official(monkeypatch, voc_archive(tmp_path))
    directory, lines = run(tmp_path, ('val',))
    assert list(builder.prepared_splits(directory)) == ['train', 'val']  # both are in that archive
    assert [line.split()[0] for line in lines] == ['checking', 'unpacking', 'preparing']
    assert left(tmp_path) == [] and not list(cache.rglob('*.json'))
    for path in coco_archives(tmp_path):
        make_official(monkeypatch, path)
    directory, _ = run(tmp_path, ('val',), COCO)
    assert list(builder.prepared_splits(directory)) == ['val'] and left(tmp_path) == []
    assert builder.library().builder_from_directory(directory).info.splits['val'].num_examples == 3


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
    info = builder.library().builder_from_directory(directory).info
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
    assert list(builder.prepared_splits(directory)) == ['train', 'val'] and left(root) == []


def test_two_at_once_prepare_it_once(root, writes, run, caplog):
    builder.library()
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(run(root))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        writes == [['train', 'val']]
        and [directory for directory, _ in outcomes] == [root / FINAL] * 2
    )
    assert {line.split()[0] for line in caplog.messages} <= {'preparing', 'waiting'}


def test_damage_and_folders_that_cannot_be_written_are_refused(root, tmp_path, run):
    (root / 'detection').write_text('a file')
    with pytest.raises(InputError, match='voc_2007/1.0.0: cannot be prepared'):
        run(root)
    (root / 'detection').unlink()
    (root / FINAL).mkdir(parents=True)
    for content in ('{', '[]', '{"splits": [{}]}', '{"splits": 5}'):
        (root / FINAL / 'dataset_info.json').write_text(content)
        with pytest.raises(InputError, match='dataset_info.json: damaged .*; remove .*1.0.0'):
            run(root)
