"""Statistics of a data set: NumPy's float64 figures over all pixels and boxes at once."""

import json

import numpy as np
from data_files import encoded, write_voc

import main
from configs import quickstart
from rpn_jax.data.records import Record, Source
from rpn_jax.data.sources.voc import voc
from rpn_jax.diagnosis import statistics


def test_pixels_are_those_of_numpy(tmp_path):
    source = voc('', path=write_voc(tmp_path))
    found = statistics.statistics(source)
    images = [source.read(i).reshape(-1, 3) for i in range(len(source.records))]
    pixels = np.concatenate(images).astype(np.float64)
    np.testing.assert_allclose(found['mean'], pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found['std'], pixels.std(axis=0), rtol=1e-12)
    assert found['pixels'] == len(pixels) and found['images'] == 6
    assert [sum(channel) for channel in found['levels']] == [len(pixels)] * 3


def test_channels_are_red_green_blue_and_nothing_is_rounded():
    image = np.zeros((4, 5, 3), np.uint8) + np.uint8([200, 100, 7])
    record = Record('x', (4, 5), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    found = statistics.statistics(Source('one', [record], lambda _: image))
    assert found['mean'] == [200, 100, 7] and found['std'] == [0, 0, 0]
    assert found['boxes'] is None and len(statistics.lines(found)) == 5
    json.dumps(found, allow_nan=False)
    levels = np.zeros(256, np.int64)
    levels[[100, 101]] = 2**50, 2**50  # more pixels than float64 could add up one by one
    assert statistics.moments(levels) == (100.5, 0.5)


def test_boxes_are_counted_by_kind_and_size():
    boxes = np.float32([[0, 0, 10, 40], [0, 0, 32, 32], [0, 0, 96, 96], [5, 5, 9, 9], [0, 0, 9, 9]])
    first = Record('a', (200, 200), boxes, np.int32([1, 1, 1, 2, 3]))
    second = Record('b', (200, 200), boxes[:1], np.int32([1]))
    third = Record('c', (200, 200), boxes[:1], np.int32([3]))
    counted = statistics.box_statistics([first, second, third])
    kinds = {key: counted[key] for key in ('objects', 'difficult', 'crowd')}
    assert kinds == {'objects': 4, 'difficult': 1, 'crowd': 2}
    assert [counted[key] for key in ('small', 'medium', 'large')] == [2, 1, 1]
    assert counted['images_without_objects'] == 1 and counted['most_boxes'] == 5
    assert counted['per_image']['50'] == 1 and counted['aspect_ratio']['95'] == 4
    np.testing.assert_allclose(counted['size']['50'], (20 + 32) / 2)
    others = Record('a', (200, 200), boxes, np.int32([1, 1, 1, 2, 2]))  # difficult, not crowd
    assert statistics.box_statistics([others])['size'] == statistics.box_statistics([first])['size']


def run(folder, tmp_path, **data):
    flags = [f'--config={quickstart.__file__}', f'--workdir={tmp_path}/run', '--mode=statistics']
    data = {'path': folder, 'train_split': '', **data}
    return main.main(flags + [f'--config.data.{key}={value}' for key, value in data.items()])


def test_the_mode_prints_what_a_config_takes(tmp_path, capsys):
    assert run(write_voc(tmp_path / 'VOC'), tmp_path, source='voc') == 0
    printed, folder = capsys.readouterr().out, tmp_path / 'run' / 'statistics'
    assert sorted(path.name for path in folder.iterdir()) == ['voc_VOC_all.json', 'voc_VOC_all.svg']
    found = json.loads((folder / 'voc_VOC_all.json').read_text())
    mean, std = (','.join(f'{v:.4f}' for v in found[key]) for key in ('mean', 'std'))
    assert f"'--config.data.mean=({mean})' '--config.data.std=({std})'" in printed
    assert f'{found["boxes"]["objects"]} objects, ' in printed


def test_a_plain_folder_of_images_has_statistics_and_no_training(tmp_path, capsys):
    folder = tmp_path / 'plain'
    folder.mkdir()
    (folder / 'x.png').write_bytes(encoded(np.full((6, 4, 3), (1, 2, 3), np.uint8), '.png'))
    assert run(folder, tmp_path, source='images') == 0
    printed = capsys.readouterr().out
    assert 'images plain: 1 images, 24 pixels' in printed and 'objects' not in printed
    flags = [f'--config={quickstart.__file__}', f'--workdir={tmp_path}/run']
    flags += ['--config.data.source=images', f'--config.data.path={folder}']
    assert main.main(flags) == 1
    assert "'images' has no boxes to learn from" in capsys.readouterr().err


def test_indices_are_spaced_evenly_from_the_first_to_the_last():
    for count, most, expected in ((5, 10, [0, 1, 2, 3, 4]), (101, 3, [0, 50, 100]), (0, 3, [])):
        assert statistics.evenly(count, most).tolist() == expected
