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

pytestmark = pytest.mark.usefixtures('quick_compilation')
IMAGE, XML, LIST = 'JPEGImages/000002', 'Annotations/000002.xml', 'ImageSets/Main/train.txt'


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
    finished_run()  # others are made from it

    def fail(*_):
        raise AssertionError('the network was initialised first')

    monkeypatch.setattr(loop, 'init_state', fail)


def change(path, edit):
    """Writes edit(bytes of a file) back, or removes the file where that is None."""
    data = edit(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def swap(old, new):
    """Returns the function that replaces text in the bytes of a file that has it."""

    def edit(data):
        assert old.encode() in data
        return data.replace(old.encode(), new.encode())

    return edit


@pytest.mark.usefixtures(uncompiled.__name__)
@pytest.mark.parametrize(
    ('word', 'named'),
    [
        ('data.pth=x', 'did you mean data.path'),
        ('data.image_size=0', 'config key data.image_size: 0'),
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
        ('model.remat=(5,)', 'remat'),
        ('anchors.sizes=()', 'sizes'),
        ('features.keep=host', 'frozen_stages'),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(refuse, flags, tmp_path, word, named):
    assert named in refuse([*flags, f'--config.{word}'])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['VOC']


DEFAULT = 'from configs import default\ndef get_config():\n    c = default.get_config()\n    '


@pytest.mark.parametrize(
    ('text', 'complaint'),
    [
        ('raise RuntimeError("one\\ntwo")', 'RuntimeError: one two'),
        ('def get_config(): return 1 / 0', 'ZeroDivisionError: division by zero'),
        ('import no_such_module', "No module named 'no_such_module'"),
        ('import sys; sys.exit(0)', 'SystemExit'),
        ('def get_config(:', 'line 1: invalid syntax'),
        ('steps = 3', "no attribute 'get_config'"),
        ('def get_config(): return {"steps": 3}', 'ConfigDict'),
        (f'{DEFAULT}c.stepz = 3\n    return c', "no config key 'stepz'; did you mean steps?"),
        (f'{DEFAULT}c.steps = "abc"\n    return c', 'steps'),
        (f'{DEFAULT}c.anchors.sizes = ("a",)\n    return c', "anchors.sizes: ('a',)"),
        (f'{DEFAULT}c.targets.samples = 0\n    return c', 'config key targets.samples: 0'),
        (f'{DEFAULT}del c.optim.momentum\n    return c', 'config key optim.momentum is missing'),
        (f'{DEFAULT}del c.data\n    return c', 'is missing'),
    ],
)
def test_a_wrong_config_file_is_refused_by_its_name(refuse, tmp_path, text, complaint):
    path = tmp_path / 'mine.py'
    path.write_text(text)
    line = refuse([f'--config={path}', f'--workdir={tmp_path}/run'])
    assert line.startswith(f'--config {path}: ') and complaint in line
    assert not (tmp_path / 'run').exists()


@pytest.mark.usefixtures(uncompiled.__name__)
@pytest.mark.parametrize(
    ('path', 'edit', 'complaint'),
    [
        (XML, swap('<xmax>40<', '<xmax>66<'), 'object 0 (cat) lies outside the 64 x 64 image'),
        (XML, swap('</annotation>', ''), 'not a readable XML file'),
        (f'{IMAGE}.jpg', lambda _: None, 'no such image'),
        (f'{IMAGE}.jpg', lambda data: data[:-300], 'the image is truncated'),
        (f'{IMAGE}.jpg', lambda _: b'no image', 'not an image'),
        (LIST, lambda _: b'\n \n', 'the split is empty'),
        (LIST, lambda _: b'000000\n../x\n', "image id '../x' would leave the folder"),
    ],
)
@pytest.mark.parametrize('mode', ['train', 'evaluate', 'inspect'])
def test_a_wrong_folder_is_refused_by_its_file(
    refuse, flags, folder, finished, tmp_path, mode, path, edit, complaint
):
    change(folder / path, edit)
    if mode == 'train':
        line = refuse(flags)
    else:
        words = [f'--workdir={finished}', '--config.data.source=voc']
        line = refuse([mode, *words, f'--config.data.path={folder}'])
    assert complaint in line and f'{folder}/{path}' in line
    assert not (tmp_path / 'run').exists() and not (finished / 'inspect').exists()


def test_images_without_objects_are_legal_and_damage_leaves_a_run_as_it_was(
    refuse, flags, folder, tmp_path, capfd
):
    (folder / LIST).write_text('000001\n000000\n')
    run = tmp_path / 'run'
    empty = np.full((50, 50, 3), 77, np.uint8)
    cv2.imwrite(str(folder / 'JPEGImages/000004.jpg'), empty)
    change(
        folder / 'Annotations/000004.xml',
        lambda _: b'<annotation><size><width>50</width><height>50</height></size></annotation>',
    )
    assert main.main([*flags, '--config.steps=2']) == 0
    assert capfd.readouterr().err == ''
    summary = json.loads((run / 'evaluation.json').read_text())
    assert (summary['images'], summary['objects']) == (2, 1)

    before = {path: (run / path).read_bytes() for path in ('metrics.jsonl', 'evaluation.json')}
    change(folder / 'JPEGImages/000000.jpg', lambda data: data[:-300])
    assert '000000.jpg: the image is truncated' in refuse([*flags, '--config.steps=9'])
    assert checkpoint.steps(run) == [2]
    assert before == {path: (run / path).read_bytes() for path in before}


def test_what_is_no_weights_file_is_refused(refuse, flags, tmp_path):
    (tmp_path / 'w.safetensors').write_bytes(b'PK\3\4 no tensors')
    line = refuse([*flags, f'--config.model.pretrained={tmp_path}/w.safetensors'])
    assert line.startswith(f'weights {tmp_path}/w.safetensors: not a whole zip file')
    assert not (tmp_path / 'run').exists()


def test_a_workdir_that_is_a_file_is_refused(refuse, flags, tmp_path):
    (tmp_path / 'run').write_text('mine')
    assert refuse(flags).startswith(f'workdir {tmp_path}/run: ')
    assert (tmp_path / 'run').read_text() == 'mine'
