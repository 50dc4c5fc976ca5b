"""Proposals of a user's images: any path is accepted, bad images are skipped, nothing is lost."""

import json
import logging
import re
import types
import urllib.parse

import cv2
import numpy as np
import pytest
from data_files import turned_jpeg
from helpers import finished_run, tiny_flags

import main
import rpn_jax
from configs import default
from rpn_jax import commands, files
from rpn_jax.errors import InputError
from rpn_jax.ops.proposals import Proposals
from rpn_jax.report import drawings, predictions

BOXES = np.float32([[3, 4, 30, 35.128], [0, 0, 9, 9], [1, 1, 2, 2]])
SCORES = np.float32([0.912345678, 0.5, 0.25])
PROPOSALS = Proposals(BOXES, SCORES, np.array([True, True, False]), np.arange(3))
DETECTOR = types.SimpleNamespace(
    step=8, propose=lambda image: PROPOSALS, config=default.get_config()
)


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


def test_files_are_found_by_folder_and_by_name_and_others_counted(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / 'out'
    found = predictions.find([folder / 'deep/a.jpg', folder / 'a.jpg'], out)
    assert list(found.values()) == ['a', 'a-2'] and not caplog.messages
    (folder / 'deep' / 'moving.gif').write_text('')
    (folder / '.hidden').write_text('')
    found = predictions.find([folder, folder / 'a.jpg', folder / 'deep/a.jpg'], out)
    names = {path.relative_to(folder).as_posix(): name for path, name in found.items()}
    assert names == {'a.jpg': 'a', 'b.PNG': 'b', 'deep/a.jpg': 'deep/a'}
    (message,) = caplog.messages
    assert message.startswith(f'2 files skipped, such as {folder}/deep/moving.gif; ')
    (tmp_path / 'empty').mkdir()
    for name in ('no', 'empty'):
        with pytest.raises(InputError, match=f'{tmp_path}/{name}: no '):
            predictions.find([tmp_path / name], out)


def test_pictures_drawn_before_are_not_predicted_and_no_image_is_overwritten(folder, tmp_path):
    out = folder / 'deep' / 'out'
    before = predictions.find([folder], out)
    out.mkdir()
    (out / 'a.png').write_bytes((folder / 'a.jpg').read_bytes())
    assert predictions.find([folder], out) == before
    assert len(predictions.find([folder], out.parent / 'other')) == len(before) + 1
    assert len(predictions.find([folder / 'deep'], folder / 'deep' / '..')) == 2  # out is above
    (tmp_path / 'link').symlink_to(folder)
    for output in (f'{folder}/', tmp_path / 'link'):
        with pytest.raises(InputError, match='--output=.*: holds the images'):
            predictions.find([folder], output)
    (folder / 'b.PNG').replace(folder / 'b.png')
    with pytest.raises(InputError, match='b.png: its picture would overwrite it'):
        predictions.find([folder / 'b.png'], tmp_path / 'link')


def test_an_image_is_turned_as_its_exif_orientation_says_unless_that_is_ignored(tmp_path):
    picture, file, sizes = np.zeros((50, 70, 3), np.uint8), tmp_path / 'x.jpg', {}
    file.write_bytes(turned_jpeg(picture, 6))
    for orientation in ('annotation', 'apply', 'ignore'):
        DETECTOR.config.data.orientation = orientation
        assert predictions.write(DETECTOR, file, tmp_path / orientation)
        content = json.loads((tmp_path / f'{orientation}.json').read_text())
        sizes[orientation] = content['height'], content['width'], content['orientation']
        assert cv2.imread(str(tmp_path / f'{orientation}.png')).shape[:2] == sizes[orientation][:2]
    turned = (70, 50, 6)
    assert sizes == {'annotation': turned, 'apply': turned, 'ignore': (50, 70, 1)}
    DETECTOR.config.data.orientation = 'annotation'


def test_what_cannot_be_written_is_one_line_and_leaves_whole_files(folder, tmp_path, monkeypatch):
    out, write = tmp_path / 'out', files.write_atomically
    (out / 'a.json').mkdir(parents=True)
    (out / 'file').write_text('')

    def full(path, content):
        if path.suffix == '.png':
            raise OSError(28, 'No space left on device', path)
        write(path, content)

    monkeypatch.setattr(files, 'write_atomically', full)
    for target, words in (
        (out / 'a', f'cannot be written .Is a directory.: .{out}/a.json'),
        (out / 'file/a', f'output {out}/file: cannot be made .File exists.; name another --output'),
        (out / 'full/a', 'No space left on device: .*a.png'),
    ):
        with pytest.raises((InputError, OSError), match=words) as error:
            predictions.write(DETECTOR, folder / 'a.jpg', target)
        assert '\n' not in str(error.value)
    assert [path.name for path in (out / 'full').iterdir()] == ['a.json']


def test_the_mode_writes_files_and_names_what_it_skips(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commands.agreed, 'trained', lambda *_, **__: (None, None, 8))
    monkeypatch.setattr(commands, 'Detector', lambda *_: DETECTOR)
    flags = [*tiny_flags(tmp_path / 'run'), '--mode=predict']
    (folder / 'a.jpg').write_bytes((folder / 'a.jpg').read_bytes()[:-300])
    out = tmp_path / 'out'
    assert main.main([*flags, str(folder), f'--output={out}']) == 1
    printed, error = capsys.readouterr()
    assert f'{folder}/a.jpg: the image is truncated' in printed
    assert '1 of 3 images' in error and error.count('error: ') == 1
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file())
    assert names == ['b.json', 'b.png', 'deep/a.json', 'deep/a.png', 'predictions.html']
    page = (out / 'predictions.html').read_text()
    assert re.findall('src="(.*?)"', page) == ['b.png', 'deep/a.png'] and '2 images' in page
    assert f'{out}/predictions.html shows the proposals of 2 images' in printed
    content = json.loads((out / 'b.json').read_text())
    assert (content['width'], content['height'], content['step']) == (40, 90, 8)
    assert content['boxes'] == [[3, 4, 30, 35.13], [0, 0, 9, 9]]
    assert content['scores'] == [0.91235, 0.5] and content['image'] == str(folder / 'b.PNG')
    picture = cv2.imread(str(out / 'b.png'))[..., ::-1]
    assert picture.shape == (90, 40, 3)
    assert np.all(picture[20, 3] == drawings.COLOURS['proposal'])
    for words in (flags, [*flags[:-1], '--mode=evaluate', str(folder)]):
        assert main.main(words) == 1  # a prediction needs paths, other modes take none
        assert capsys.readouterr().err.count('\n') == 1


def test_a_page_of_pictures_escapes_their_names_and_ends_somewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, 'PICTURES', 2)
    names = ['<b>&"?#', 'caf\udce9', 'c', 'd']
    for name in names[:3]:
        (tmp_path / f'{name}.png').touch()
    page = predictions.write_page(tmp_path, names, 8).read_text()
    links = re.findall('src="(.*?)"', page)
    decoded = [urllib.parse.unquote(link, errors='surrogateescape') for link in links]
    assert decoded == ['<b>&"?#.png', 'caf\udce9.png'] and links[0].isascii()
    assert '<b>&' not in page and '3 images' in page and 'The first 2 images are shown' in page


def test_the_mode_writes_the_proposals_of_a_notebook(folder, tmp_path):
    run = finished_run().folder
    words = f'--workdir={run}', '--mode=predict', f'{folder}/b.PNG', f'--output={tmp_path}'
    assert main.main(list(words)) == 0
    content = json.loads((tmp_path / 'b.json').read_text())
    expected = rpn_jax.restore(run).propose(cv2.imread(str(folder / 'b.PNG'))[..., ::-1])
    np.testing.assert_allclose(content['boxes'], expected.boxes[expected.valid], atol=0.0051)
    np.testing.assert_allclose(content['scores'], expected.scores[expected.valid], atol=6e-6)
