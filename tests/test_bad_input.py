"""What a user can get wrong ends as one line that names it, before anything is half written."""

import json
import shutil

import cv2
import numpy as np
import pytest
from data_files import write_voc
from helpers import finished_run, tiny_flags

import main
from rpn_jax.training import checkpoint, loop


@pytest.fixture
def folder(tmp_path):
    return write_voc(tmp_path / 'VOC')


@pytest.fixture
def flags(tmp_path, folder):
    """Returns the command line of a run on the folder."""
    return tiny_flags(tmp_path / 'run', data__source='voc', data__path=folder)


@pytest.fixture
def finished(tmp_path):
    """Returns a copy of the workdir of a finished run."""
    return shutil.copytree(finished_run().folder, tmp_path / 'finished')


@pytest.fixture
def uncompiled(monkeypatch):
    """Fails a test in which the network is initialised, which takes half a minute of compiling."""

    def fail(*_):
        raise AssertionError('the network was initialised first')

    monkeypatch.setattr(loop, 'init_state', fail)


def replace(path, old, new):
    """Replaces what a file has."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


@pytest.mark.usefixtures(uncompiled.__name__)
@pytest.mark.parametrize(
    ('word', 'named'),
    [
        ('data.source=coco', 'annotations/instances_train.json: no such file'),
        ('data.source=images', 'source'),
        ('data.batch_size=3', '3 images cannot be divided among 4'),
        ('data.max_boxes=1', 'image 000002: 2 boxes'),
        ('data.mean=(0.4,0.5,0.4)', 'mean'),
        ('data.path=/no/where', '/no/where'),
        ('data.images=/no/where', '/no/where'),
        ('data.annotations=/no/x', '/no/x'),
        ('data.train_split=no', 'ImageSets/Main/no.txt'),
        ('data.eval_split=no', 'ImageSets/Main/no.txt'),
        ('model.pretrained=/no/x', 'weights /no/x: no such file'),
        ('model.pretrained=/tmp', 'weights /tmp: a folder without checkpoints'),
        ('model.pretrained=imagenet', '26'),
        ('model.remat=(5,)', 'config key model.remat'),
        ('anchors.sizes=()', 'sizes'),
        ('features.keep=host', 'frozen_stages'),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(refuse, flags, tmp_path, word, named):
    assert named in refuse([*flags, f'--config.{word}'])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['VOC']


@pytest.mark.usefixtures(uncompiled.__name__)
@pytest.mark.parametrize('mode', ['train', 'inspect'])
@pytest.mark.parametrize('resize', ['square', 'short_side'])
def test_a_level_smaller_than_a_cell_is_refused(refuse, flags, tmp_path, mode, resize):
    pyramid = dict(model__last_stage=3, model__fpn_stages=(2, 3), model__fpn_extra=4)
    sizes = dict(anchors__sizes=((16,),) * 6, data__resize=resize, data__canvas_multiple=8)
    words = tiny_flags(tmp_path / 'run', data__path=tmp_path / 'VOC', **pyramid, **sizes)
    line = refuse([mode, *words, '--config.data.source=voc'])
    assert 'one cell of the coarsest level, 128 pixels' in line and 'data.canvas_multiple' in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ['VOC']


@pytest.mark.parametrize(
    ('path', 'old', 'new', 'complaint'),
    [
        ('Annotations/000002.xml', b'<xmax>40<', b'<xmax>66<', 'object 0 (cat) lies outside the'),
        ('JPEGImages/000002.jpg', b'\xff\xd9', b'', 'the image is truncated'),
        ('ImageSets/Main/train.txt', b'000000\n000001\n000002\n000003', b' ', 'the split is empty'),
    ],
)
def test_a_wrong_folder_is_refused_by_its_file(
    refuse, flags, folder, tmp_path, finished, uncompiled, path, old, new, complaint
):
    replace(folder / path, old, new)
    other = [f'--workdir={finished}', '--config.data.source=voc', f'--config.data.path={folder}']
    for words in (flags, ['evaluate', *other], ['inspect', *other]):
        line = refuse(words)
        assert complaint in line and f'{folder}/{path}' in line
    assert not (tmp_path / 'run').exists() and not (finished / 'inspect').exists()


def test_images_without_objects_are_legal_and_damage_leaves_a_run_as_it_was(
    refuse, flags, folder, tmp_path, capfd
):
    (folder / 'ImageSets/Main/train.txt').write_text('000001\n000000\n')
    cv2.imwrite(str(folder / 'JPEGImages/000004.jpg'), np.full((50, 50, 3), 77, np.uint8))
    size = '<size><width>50</width><height>50</height></size>'
    (folder / 'Annotations/000004.xml').write_text(f'<annotation>{size}</annotation>')
    run = tmp_path / 'run'
    assert main.main([*flags, '--config.steps=2']) == 0
    assert capfd.readouterr().err == ''
    summary = json.loads((run / 'evaluation.json').read_text())
    assert (summary['images'], summary['objects']) == (2, 1)

    before = {path: (run / path).read_bytes() for path in ('metrics.jsonl', 'evaluation.json')}
    replace(folder / 'JPEGImages/000000.jpg', b'\xff\xd9', b'')
    assert '000000.jpg: the image is truncated' in refuse([*flags, '--config.steps=9'])
    assert checkpoint.steps(run) == [2]
    assert before == {path: (run / path).read_bytes() for path in before}


def test_a_workdir_that_is_a_file_is_refused(refuse, flags, tmp_path):
    (tmp_path / 'run').write_text('mine')
    assert refuse(flags).startswith(f'workdir {tmp_path}/run: ')
    assert (tmp_path / 'run').read_text() == 'mine'
