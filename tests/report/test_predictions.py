"""Proposals of a user's images: any path is accepted, bad images are skipped, nothing is lost."""

import json
import logging
import types

import cv2
import numpy as np
import pytest
from helpers import finished_run

import main
import rpn_jax
from rpn_jax import files
from rpn_jax.errors import InputError
from rpn_jax.ops.proposals import Proposals
from rpn_jax.report import drawings, predictions

BOXES = np.float32([[3, 4, 30, 35.128], [0, 0, 9, 9], [1, 1, 2, 2]])
SCORES = np.float32([0.912345678, 0.5, 0.25])


def propose(image):
    return Proposals(BOXES, SCORES, np.array([True, True, False]), np.arange(3))


DETECTOR = types.SimpleNamespace(step=8, propose=propose)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of three images, one of them deeper, and a file that is none."""
    photos = tmp_path / 'photos'
    (photos / 'deep').mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in (('a.jpg', (50, 70)), ('b.PNG', (90, 40)), ('deep/a.jpg', (50, 70))):
        cv2.imwrite(str(photos / name), random.integers(0, 256, (*size, 3), np.uint8))
    (photos / 'notes.txt').write_text('not an image')
    return photos


def test_files_are_found_by_folder_and_by_name(folder, tmp_path):
    out = tmp_path / 'out'
    found = predictions.find([folder, folder / 'a.jpg', folder / 'deep/a.jpg'], out)
    names = {path.relative_to(folder).as_posix(): name for path, name in found.items()}
    assert names == {'a.jpg': 'a', 'b.PNG': 'b', 'deep/a.jpg': 'deep/a'}
    found = predictions.find([folder / 'deep/a.jpg', folder / 'a.jpg'], out)
    assert list(found.values()) == ['a', 'a-2']


@pytest.mark.parametrize('name', ['no', 'empty'])
def test_a_path_without_images_is_refused(tmp_path, name):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match=f'{tmp_path}/{name}: no '):
        predictions.find([tmp_path / name], tmp_path / 'out')


def test_other_files_of_a_folder_are_counted_in_the_log(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (folder / 'deep' / 'moving.gif').write_text('')
    (folder / '.hidden').write_text('')
    predictions.find([folder, folder / 'a.jpg'], tmp_path / 'out')
    (message,) = caplog.messages
    assert message.startswith(f'2 files skipped, such as {folder}/deep/moving.gif; ')
    assert '.jpg, .png' in message
    predictions.find([folder / 'a.jpg'], tmp_path / 'out')
    assert len(caplog.messages) == 1


def test_pictures_drawn_before_are_not_predicted(folder):
    out = folder / 'deep' / 'out'
    before = predictions.find([folder], out)
    out.mkdir()
    (out / 'a.png').write_bytes((folder / 'a.jpg').read_bytes())
    assert predictions.find([folder], out) == before
    assert len(predictions.find([folder], out.parent / 'other')) == len(before) + 1
    assert len(predictions.find([folder / 'deep'], folder / 'deep' / '..')) == 2  # out is above


def test_no_picture_overwrites_an_image(folder, tmp_path):
    (tmp_path / 'link').symlink_to(folder)
    for output in (f'{folder}/', tmp_path / 'link'):
        with pytest.raises(InputError, match='--output=.*: holds the images'):
            predictions.find([folder], output)
    (folder / 'b.PNG').replace(folder / 'b.png')
    with pytest.raises(InputError, match='b.png: its picture would overwrite it'):
        predictions.find([folder / 'b.png'], tmp_path / 'link')


def test_an_image_gets_a_json_file_and_a_picture(folder, tmp_path):
    target = tmp_path / 'out' / 'deep' / 'b'
    assert predictions.write(DETECTOR, folder / 'b.PNG', target)
    assert sorted(path.name for path in target.parent.iterdir()) == ['b.json', 'b.png']
    content = json.loads(target.with_name('b.json').read_text())
    assert (content['width'], content['height'], content['step']) == (40, 90, 8)
    assert content['boxes'] == [[3, 4, 30, 35.13], [0, 0, 9, 9]]
    assert content['scores'] == [0.91235, 0.5] and content['image'] == str(folder / 'b.PNG')
    picture = cv2.imread(str(target.with_name('b.png')))[..., ::-1]
    assert picture.shape == (90, 40, 3)
    assert np.all(picture[20, 3] == drawings.COLOURS['proposal'])


def test_what_cannot_be_read_is_skipped_and_logged(folder, tmp_path, caplog):
    (folder / 'a.jpg').write_bytes((folder / 'a.jpg').read_bytes()[:-300])
    assert not predictions.write(DETECTOR, folder / 'a.jpg', tmp_path / 'out' / 'a')
    assert f'{folder}/a.jpg: the image is truncated' in caplog.text
    assert not (tmp_path / 'out').exists()


def test_what_cannot_be_written_is_one_line(folder, tmp_path):
    out = tmp_path / 'out'
    (out / 'a.json').mkdir(parents=True)
    (out / 'file').write_text('')
    for target, words in (
        (out / 'a', f'{out}/a.json: cannot be written .Is a directory.; .*--output'),
        (out / 'file/a', f'output {out}/file: cannot be made .File exists.; name another --output'),
    ):
        with pytest.raises(InputError, match=words) as error:
            predictions.write(DETECTOR, folder / 'a.jpg', target)
        assert '\n' not in str(error.value)


def test_a_full_disk_leaves_whole_files(folder, tmp_path, monkeypatch):
    write = files.write_atomically

    def full(path, content):
        if path.suffix == '.png':
            raise OSError(28, 'No space left on device')
        write(path, content)

    monkeypatch.setattr(files, 'write_atomically', full)
    with pytest.raises(InputError, match='a.png: cannot be written'):
        predictions.write(DETECTOR, folder / 'a.jpg', tmp_path / 'out' / 'a')
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a.json']


def test_the_mode_writes_the_proposals_of_a_notebook(folder, tmp_path, capsys, quick_compilation):
    flags = [f'--workdir={finished_run().folder}', '--mode=predict']
    out = tmp_path / 'out'
    assert main.main([*flags, str(folder), f'--output={out}']) == 0
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file())
    assert names == ['a.json', 'a.png', 'b.json', 'b.png', 'deep/a.json', 'deep/a.png']
    content = json.loads((out / 'b.json').read_text())
    image = cv2.imread(str(folder / 'b.PNG'))[..., ::-1]
    expected = rpn_jax.restore(finished_run().folder).propose(image)
    np.testing.assert_allclose(content['boxes'], expected.boxes[expected.valid], atol=0.0051)
    np.testing.assert_allclose(content['scores'], expected.scores[expected.valid], atol=6e-6)
    (folder / 'a.jpg').write_text('')
    capsys.readouterr()
    assert main.main([*flags, str(folder), f'--output={tmp_path / "again"}']) == 1
    error = capsys.readouterr().err
    assert 'a.jpg' in error and '1 of 3 images' in error and error.count('error: ') == 1
    assert (tmp_path / 'again/deep/a.json').exists()
    for words in (flags, [*flags[:1], '--mode=evaluate', str(folder)]):
        assert main.main(words) == 1  # a prediction needs paths, other modes take none
        assert capsys.readouterr().err.count('\n') == 1
