"""Files and names that somebody made to do harm cost bounded memory and time, and end in a line."""

import json
import os
import shutil
import threading
import time
from collections import Counter

import numpy as np
import pytest
from data_files import coco_content, coco_image, write_coco, write_voc
from helpers import tiny_flags

import main
from rpn_jax import files
from rpn_jax.console import show
from rpn_jax.data import batches, canvases, images
from rpn_jax.data.check import lint
from rpn_jax.data.records import Record, Source
from rpn_jax.data.sources.coco import coco, parse
from rpn_jax.data.sources.voc import voc
from rpn_jax.diagnosis import statistics
from rpn_jax.errors import InputError, printable
from rpn_jax.evaluation import results
from rpn_jax.report import predictions, statistics_plot
from rpn_jax.training import workdir

NAMES = ('caf\udce9', '\x1b[31mred\x1b]0;t\x07', 'cr\u202eevil', '$\\frac{x$', 'a\nb', 'é 漢')


def sparse(path):
    """Makes a file 20 GiB long, of which the disk holds nothing."""
    os.truncate(path, 20 * 2**30)
    return path


@pytest.mark.parametrize(
    'file', ['JPEGImages/000002.jpg', 'Annotations/000002.xml', 'ImageSets/Main/train.txt']
)
def test_a_file_is_not_read_that_is_longer_than_any_of_its_kind(tmp_path, file):
    sparse(write_voc(tmp_path / 'VOC') / file)
    with pytest.raises(InputError, match=f'{file}: .*21474836480 bytes; at most'):
        lint(voc('train', path=tmp_path / 'VOC'))
    if file.endswith(('.jpg', '.xml')):
        assert len(lint(voc('train', path=tmp_path / 'VOC'), 'skip').records) == 3


@pytest.mark.parametrize(
    ('read', 'name'),
    [
        (workdir.read_config, 'config.json'),
        (lambda folder: results.load(folder / 'proposals.npz'), 'proposals.npz'),
        (lambda folder: results.from_coco(folder / 'x.json', []), 'x.json'),
        (lambda folder: parse(folder / 'x.json'), 'x.json'),
    ],
)
def test_a_json_or_npz_file_is_not_read_that_is_too_long(tmp_path, read, name):
    results.save(
        tmp_path / 'proposals.npz', results.from_coco({'images': [], 'annotations': []}, [])
    )
    (tmp_path / name).touch()
    sparse(tmp_path / name)
    with pytest.raises(InputError, match=f'{name}: .*(bytes; at most|File is not a zip)'):
        read(tmp_path)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(OSError, match='not a file'):
        files.read(tmp_path / 'pipe')


def test_threads_hold_no_more_pixels_than_one_image_may_have():
    held, most, lock = [], [], threading.Lock()

    def hold(_):
        with images.in_flight((2**13, 2**13)):
            held.append(1)
            most.append(len(held))
            time.sleep(0.01)
            held.pop()

    threads = [threading.Thread(target=hold, args=[lock]) for _ in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(most) == 12 and max(most) == images.LARGEST // 2**26


@pytest.mark.parametrize('use', ['statistics', 'batches', 'check'])
def test_what_reads_in_threads_counts_its_pixels(tmp_path, monkeypatch, use):
    source = voc('train', path=write_voc(tmp_path / 'VOC'))
    free = []

    def decode(*args, of=images.decode, **keywords):
        free.append(images._free)
        return of(*args, **keywords)

    monkeypatch.setattr(images, 'decode', decode)
    if use == 'check':
        lint(source)
    elif use == 'statistics':
        statistics.statistics(source)
    else:
        plan = canvases.square(32, len(source.records))
        list(batches.threaded(lambda i: batches.collate(source, plan, [i], max_boxes=9), range(4)))
    assert len(free) == 4 and max(free) < images.LARGEST == images._free


def test_what_says_nothing_of_its_size_or_has_long_sides_is_not_decoded():
    bomb = b'#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 4 +X 4\n' + bytes(64)  # cv2 would read it
    line = b'P5 131072 1 255\n' + bytes(131072)
    for data, complaint in ((bomb, 'not an image'), (line, '131072 x 1 pixels')):
        with pytest.raises(InputError, match=f'x.jpg: {complaint}'):
            images.decode(data, 'x.jpg')


def test_a_large_original_is_compared_and_kept_small():
    image = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    assert images.shrunk(image, 300 * 500) is image
    assert images.shrunk(image, 15_000).shape == (94, 158, 3)


def test_an_image_that_is_listed_often_is_examined_once(tmp_path, monkeypatch):
    folder = write_voc(tmp_path / 'VOC')
    (folder / 'ImageSets/Main/train.txt').write_text('000000\n' * 300)
    examined = Counter()

    def examine(data, where, of=images.examine):
        examined[where] += 1
        return of(data, where)

    monkeypatch.setattr(images, 'examine', examine)
    source = lint(voc('train', path=folder))
    assert len(source.records) == 300 and examined.total() == 1
    assert any('listed twice: 299' in note for note in source.notes)


def test_the_picture_of_an_image_of_a_million_boxes_has_few_bars():
    boxes = np.tile(np.float32([[0, 0, 3, 2]]), (10**6, 1))
    records = [Record('x', (4, 5), boxes, np.ones(10**6, np.int32))]
    source = Source('x', records, lambda _: np.zeros((4, 5, 3), np.uint8))
    assert len(statistics_plot.picture(statistics.statistics(source), records)) < 200_000


def test_equal_names_are_numbered_in_linear_time():
    taken = {}
    names = [predictions._free('x', taken) for _ in range(20_000)]
    assert names[:3] == ['x', 'x-2', 'x-3'] and len(set(names)) == 20_000
    assert predictions._free('x-3', taken) == 'x-3-2'


def hostile_voc(folder):
    """Writes a folder whose name and whose images' names are hostile; returns it."""
    write_voc(folder)
    ids = [name for name in NAMES if not {'\n', '\\'} & {*name}]
    for number, name in enumerate(ids):
        for part, end in (('JPEGImages', 'jpg'), ('Annotations', 'xml')):
            shutil.copy(folder / part / f'{number:06}.{end}', folder / part / f'{name}.{end}')
    for split in ('train', 'val'):
        (folder / f'ImageSets/Main/{split}.txt').write_bytes(os.fsencode('\n'.join(ids)))
    return folder


@pytest.mark.parametrize('mode', ['inspect', 'statistics', 'anchors'])
def test_hostile_names_are_shown_escaped(tmp_path, capsys, mode):
    folder = hostile_voc(tmp_path / '$\\frac{ \x1b[1m \udcff')
    words = tiny_flags(tmp_path / 'run', data__source='voc', data__path=folder)
    assert main.main([mode, *words]) == 0
    shown = capsys.readouterr()
    assert not shown.err and '\\x1b[1m' in shown.out
    assert all(line.isprintable() for line in shown.out.split('\n'))


def test_hostile_names_come_back_from_files(tmp_path):
    page = tmp_path / 'page.html'
    files.write_atomically(page, ''.join(NAMES))
    assert page.read_text().startswith('caf\\udce9')
    content = {
        'annotations': [],
        'images': [coco_image(7, id=i, file_name=n) for i, n in enumerate(NAMES)],
    }
    results.save(tmp_path / 'x.npz', results.from_coco(content, []))
    assert results.load(tmp_path / 'x.npz').image_ids == list(NAMES)


def test_what_does_not_print_is_escaped_at_the_one_place_that_prints(capsys):
    show(*NAMES)
    lines = (
        'caf\\udce9',
        '\\x1b[31mred\\x1b]0;t\\x07',
        'cr\\u202eevil',
        '$\\frac{x$',
        'a\\nb',
        'é 漢',
    )
    assert capsys.readouterr().out == '\n'.join(lines) + '\n'
    assert len(printable('x' * 10**6)) < 21_000


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ('é' * 125 + '.json')
    files.write_atomically(path, 'x')
    assert path.read_text() == 'x' and len(list(tmp_path.iterdir())) == 1


def test_names_of_no_file_and_loops_of_links_are_problems_of_their_image(tmp_path):
    folder = write_voc(tmp_path / 'VOC')
    (folder / 'Annotations/loop.xml').symlink_to('loop.xml')
    (folder / 'ImageSets/Main/train.txt').write_text('loop\n' + 'a' * 5000 + '\n000000\n')
    source = lint(voc('train', path=folder), 'skip')
    assert [record.image_id for record in source.records] == ['000000']
    content = coco_content()
    content['images'][0]['file_name'] = 'a\ud800.jpg'
    file = write_coco(tmp_path / 'COCO') / 'annotations/instances_train2017.json'
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r'image 7 has file_name .*no file'):
        coco('train2017', path=tmp_path / 'COCO')


@pytest.mark.parametrize('levels', [100, 900, 10**6])
def test_what_is_nested_deeply_is_one_line(tmp_path, levels):
    (tmp_path / 'config.json').write_text('{"model": ' + '[' * levels + ']' * levels + '}')
    with pytest.raises(InputError, match='config.json: not a config .*nested too deeply'):
        workdir.read_config(tmp_path)


def test_more_overlaps_than_the_memory_holds_are_refused(monkeypatch):
    monkeypatch.setattr(results, 'PAIRS', 1)
    content = coco_content()
    found = [{'image_id': 7, 'bbox': [1, 2, 3, 4], 'score': 0.5}]
    with pytest.raises(InputError, match='more than 1 pairs of a proposal and an object'):
        results.from_coco(content, found)
