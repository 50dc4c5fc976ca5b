"""Proposals of one's own images: found by any path, written beside each other, bad ones skipped."""

import json
import re

import cv2
import numpy as np
import pytest
from helpers import finished_run

import main
import rpn_jax
from rpn_jax import files
from rpn_jax.data import batches
from rpn_jax.errors import InputError
from rpn_jax.report import predict

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of three images, one of them deeper, and of what is none."""
    place = tmp_path / 'photos'
    (place / 'deep').mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in (('a.jpg', (50, 70)), ('b.PNG', (90, 40)), ('deep/a.jpg', (50, 70))):
        cv2.imwrite(str(place / name), random.integers(0, 256, (*size, 3), np.uint8))
    (place / 'notes.txt').write_text('not an image')
    return place


def run(*words):
    return main.main([f'--workdir={finished_run().folder}', '--mode=predict', *map(str, words)])


def test_files_are_found_by_folder_and_by_name(folder, tmp_path):
    out = tmp_path / 'out'
    found = predict.find([folder, folder / 'a.jpg', folder / 'deep/a.jpg'], out)
    names = {path.relative_to(folder).as_posix(): name for path, name in found.items()}
    assert names == {'a.jpg': 'a', 'b.PNG': 'b', 'deep/a.jpg': 'deep/a'}
    found = predict.find([folder / 'deep/a.jpg', folder / 'a.jpg'], out)
    assert list(found.values()) == ['a', 'a-2']


@pytest.mark.parametrize(
    ('make', 'complaint'),
    [(lambda p: p / 'no', 'no such file or folder'), (lambda p: p / 'empty', 'no images')],
)
def test_what_is_not_there_is_refused(tmp_path, make, complaint):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match=complaint):
        predict.find([make(tmp_path)], tmp_path / 'out')


def test_proposals_are_those_of_a_notebook(folder, tmp_path, capsys):
    out = tmp_path / 'out'
    assert run(folder, f'--output={out}') == 0
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file())
    assert files == ['a.json', 'a.png', 'b.json', 'b.png', 'deep/a.json', 'deep/a.png']
    content = json.loads((out / 'b.json').read_text())
    assert (content['width'], content['height'], content['step']) == (40, 90, 8)
    image = cv2.imread(str(folder / 'b.PNG'))[..., ::-1]
    expected = rpn_jax.restore(finished_run().folder).propose(image)
    np.testing.assert_allclose(content['boxes'], expected.boxes[expected.valid], atol=0.0051)
    np.testing.assert_allclose(content['scores'], expected.scores[expected.valid], atol=6e-6)
    assert cv2.imread(str(out / 'b.png')).shape == image.shape
    assert f'{out}: proposals of 3 images' in capsys.readouterr().out


def test_what_cannot_be_read_is_skipped_and_told_at_the_end(folder, tmp_path, capsys):
    whole = (folder / 'a.jpg').read_bytes()
    (folder / 'a.jpg').write_bytes(whole[:-300])
    assert run(folder, f'--output={tmp_path / "out"}') == 1
    said = capsys.readouterr()
    assert f'skipped: {folder}/a.jpg: the image is truncated' in said.out
    assert said.err == f'error: {folder}/a.jpg: skipped, as 1 of 3 images\n'
    assert (tmp_path / 'out/deep/a.json').exists() and not (tmp_path / 'out/a.json').exists()


def test_what_a_folder_holds_beside_images_is_counted(folder, tmp_path, capsys):
    (folder / 'deep' / 'moving.gif').write_text('')
    (folder / '.hidden').write_text('')
    predict.find([folder, folder / 'a.jpg'], tmp_path / 'out')
    said = capsys.readouterr().out
    assert said.startswith(f'passed over: 2 of other extensions, as {folder}/deep/moving.gif; ')
    assert '.jpg, .png' in said and said.count('\n') == 1
    predict.find([folder / 'a.jpg'], tmp_path / 'out')
    assert capsys.readouterr().out == ''


def test_pictures_drawn_before_are_not_predicted(folder, capsys):
    out = folder / 'deep' / 'out'
    before = predict.find([folder], out)
    out.mkdir()
    (out / 'a.png').write_bytes((folder / 'a.jpg').read_bytes())
    (out / 'a.json').write_text('{}')
    capsys.readouterr()
    assert predict.find([folder], out) == before and 'passed over: 1 of' in capsys.readouterr().out
    assert len(predict.find([folder], out.parent / 'other')) == len(before) + 1
    assert len(predict.find([folder / 'deep'], folder / 'deep' / '..')) == 2  # the output is above


def test_no_picture_is_written_over_an_image(folder, tmp_path):
    (tmp_path / 'link').symlink_to(folder)
    for place in (f'{folder}/', tmp_path / 'link'):
        with pytest.raises(InputError, match='--output=.*: holds the images; name another'):
            predict.find([folder], place)
    (folder / 'b.PNG').replace(folder / 'b.png')
    with pytest.raises(InputError, match='b.png: its picture would be written over it'):
        predict.find([folder / 'b.png'], tmp_path / 'link')


def test_what_cannot_be_written_is_one_line(folder, tmp_path, capsys):
    out = tmp_path / 'out'
    (out / 'a.json').mkdir(parents=True)
    assert run(folder, f'--output={out}') == 1
    said = capsys.readouterr().err
    assert said.startswith(f'error: {out}/a.json: cannot be written (Is a directory); make room, ')
    assert said.count('\n') == 1 and '--output' in said
    (out / 'a.json').rmdir()
    (out / 'deep').write_text('a file')
    assert run(folder, f'--output={out}') == 1
    assert f'output {out}/deep: cannot be made' in capsys.readouterr().err
    assert run(folder, f'--output={out}/deep') == 1
    said = capsys.readouterr().err
    assert 'cannot be made (File exists); name another --output\n' in said and 'workdir' not in said


def test_a_full_disk_leaves_whole_files(folder, tmp_path, capsys, monkeypatch):
    def full(path, picture):
        files.write_atomically(path.with_name('none') / path.name, b'')

    monkeypatch.setattr(predict.drawings, 'write_png', full)
    assert run(folder / 'a.jpg', f'--output={tmp_path / "out"}') == 1
    assert f'{tmp_path}/out/a.png: cannot be written' in capsys.readouterr().err
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a.json']


def test_images_are_predicted_one_by_one_and_counted(folder, tmp_path, capsys, monkeypatch):
    load, out, present = predict.images.load, tmp_path / 'out', []
    clock = iter(range(0, 10**6, 11))

    def watched(path):
        present.append(len(list(out.rglob('*.json'))))
        return load(path)

    monkeypatch.setattr(predict.images, 'load', watched)
    monkeypatch.setattr(batches.time, 'monotonic', lambda: next(clock))
    assert run(folder, f'--output={out}') == 0
    assert present == [0, 1, 2]
    assert re.search(r'^predicted 1/3 images  0', capsys.readouterr().out, re.MULTILINE)


def test_a_prediction_needs_paths_and_other_modes_take_none(folder, capsys):
    assert run() == 1
    assert 'needs images, or folders of them' in capsys.readouterr().err
    assert main.main([f'--workdir={finished_run().folder}', '--mode=evaluate', str(folder)]) == 1
    assert f"unknown argument '{folder}'" in capsys.readouterr().err
