"""What each mode writes, from a config or from a workdir alone."""

import html
import json
import re
import shutil
from unittest import mock

import cv2
import jax
import numpy as np
import pytest
from data_files import coco_box, write_coco
from helpers import finished_run, pycocotools_recall, tiny_config, tiny_flags
from safetensors import safe_open
from safetensors.numpy import save_file

import main
import rpn_jax
from rpn_jax import commands, data
from rpn_jax.data import batches
from rpn_jax.diagnosis import checks
from rpn_jax.errors import InputError
from rpn_jax.evaluation import protocols, results
from rpn_jax.inference import restore
from rpn_jax.report import run_files
from rpn_jax.report.drawings import COLOURS
from rpn_jax.training import loop
from rpn_jax.training.step import init_state
from rpn_jax.weights import from_variables, published


@pytest.fixture
def copied(tmp_path):
    """Returns a copy of the finished run's workdir without what an evaluation writes."""
    shutil.copytree(finished_run().folder, tmp_path / 'tiny')
    (tmp_path / 'tiny' / 'evaluation.json').unlink()
    (tmp_path / 'tiny' / 'report.html').unlink()
    return tmp_path / 'tiny'


def test_training_writes_the_files_of_a_workdir():
    folder = finished_run().folder
    names = {path.name for path in folder.iterdir()}
    events = {name for name in names if name.startswith('events')}
    assert len(events) == 1
    files = 'config.json data.json gaussian.json metrics.jsonl evaluation.json proposals.npz'
    assert names - events == {*files.split(), 'report.html', 'checkpoints'}
    expected = tiny_config().to_dict()
    assert json.loads((folder / 'config.json').read_text()) == json.loads(json.dumps(expected))
    line = json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])
    assert line.keys() == {
        *('step', 'loss', 'loss_objectness', 'loss_box'),
        *('learning_rate', 'images_per_second', 'positives', 'anchors'),
    }
    assert sorted(int(p.name) for p in (folder / 'checkpoints').iterdir()) == [4, 6, 8]
    report = (folder / 'report.html').read_text()
    assert report.lstrip().startswith('<!DOCTYPE html>') and 'shapes/val/' in report


def test_evaluation_needs_the_workdir_alone_and_measures_the_same(
    copied, tmp_path, capsys, monkeypatch
):
    out, open_split = tmp_path / 'new' / 'results.json', data.open_split

    def opened(options, split, **keywords):
        assert split == 'val'
        return open_split(options, split, **keywords)

    monkeypatch.setattr(data, 'open_split', opened)
    assert main.main(['evaluate', f'--workdir={copied}', f'--output={out}']) == 0
    written = (copied / 'evaluation.json').read_bytes()
    assert written == (finished_run().folder / 'evaluation.json').read_bytes()
    assert (copied / 'report.html').stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert 'shapes/val, step 8: 6 images' in printed and str(copied / 'report.html') in printed
    _, others = printed.split('as other evaluators count, with 95 % intervals over images:\n')
    assert set(protocols.PROTOCOLS) <= {line.split()[0] for line in others.splitlines() if line}
    assert 'AR@10' in others and 'AR@100 ' not in others and '±' in others
    assert not list(copied.glob('*.tmp'))
    assert printed.splitlines()[-1].startswith(f'{out} has the proposals')
    back = results.from_coco(out.with_name('results.instances.json'), out)
    ours = results.load(copied / 'proposals.npz')
    assert ours.post_nms == 50
    assert list(back.image_ids) == list(ours.image_ids) and sum(map(len, back.proposals)) > 50
    for name in ('proposals', 'scores', 'gt_boxes', 'gt_kinds'):
        for a, b in zip(getattr(back, name), getattr(ours, name), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)


def test_the_results_of_a_json_file_are_counted_alike_by_cocoeval_with_that_file(
    copied, tmp_path, capsys
):
    folder, out = write_coco(tmp_path / 'coco', 'val'), tmp_path / 'out.json'
    own = folder / 'annotations/instances_val.json'
    content = json.loads(own.read_text())  # its ids are 7, 3, 12
    del content['annotations'][1]  # an empty box, which COCOeval counts
    content['annotations'][0]['area'] = 20.0**2  # a mask's, small where the box is medium
    boxes = [[x, y, 24, 24] for x in (0, 16, 32, 48) for y in (0, 16, 32)]
    content['annotations'] += [coco_box(7, box, id=100 + i) for i, box in enumerate(boxes)]
    for annotation in content['annotations']:
        annotation['category_id'] = 9
    own.write_text(json.dumps(content | {'categories': [{'id': 9, 'name': 'owl'}]}))
    flags = ['--config.data.source=coco', f'--config.data.path={folder}']
    flags += ['--config.data.train_split=val']
    assert main.main(['evaluate', f'--workdir={copied}', f'--output={out}', *flags]) == 0
    printed = capsys.readouterr().out
    ours, given = results.load(copied / 'proposals.npz'), json.loads(own.read_text())
    assert ours.coco_ids == [7, 3, 12] and ours.gt_areas[0].tolist()[:3] == [400, 5, 5]
    assert json.loads((tmp_path / 'out.instances.json').read_text()) == given
    counted = pycocotools_recall(given, json.loads(out.read_text()), (10, 50))
    tallies = protocols.coco(ours, (10, 50))
    for name in ('AR@10', 'AR@50', 'AR@50/small'):
        assert tallies[name].value == pytest.approx(counted[name], abs=1e-9)
    assert counted['AR@50'] > 0
    (row,) = (s for s in printed.splitlines() if s.startswith('coco ') and '±' in s)
    assert f' {counted["AR@10"]:.3f} ' in row


def test_evaluation_works_without_the_gaussian_and_with_a_batch_that_devices_cannot_share(copied):
    (copied / 'gaussian.json').unlink()  # as in older workdirs
    flags = [f'--workdir={copied}', '--mode=evaluate', '--config.data.batch_size=3']
    assert main.main(flags) == 0
    folders = copied, finished_run().folder
    summary, before = (json.loads((each / 'evaluation.json').read_text()) for each in folders)
    assert summary['proposals'] == pytest.approx(before['proposals'], abs=1e-5)
    assert summary['baselines'] == before['baselines']
    now, then = ((each / 'gaussian.json').read_text() for each in folders)
    assert now == then


def test_evaluation_of_other_data_and_of_another_step(copied):
    flags = [f'--workdir={copied}', '--mode=evaluate', '--config.data.eval_split=other']
    flags += ['--config.data.train_split=another', '--config.evaluation.images=4', '--step=6']
    before = (copied / 'gaussian.json').read_bytes()
    assert main.main(flags) == 0
    assert (copied / 'gaussian.json').read_bytes() == before  # that of the data of the training
    summary = json.loads((copied / 'evaluation.json').read_text())
    assert (summary['dataset'], summary['images'], summary['step']) == ('shapes/other', 4, 6)


def test_an_evaluation_by_other_keys_than_the_runs_says_so(copied, capsys):
    flags = ['--config.proposals.nms_iou=0.5', '--config.targets.positive_iou=0.6']
    flags += ['--config.data.max_size=99', '--config.optim.momentum=0.5']  # without effect
    assert main.main(['evaluate', f'--workdir={copied}', *flags]) == 0
    summary = json.loads((copied / 'evaluation.json').read_text())
    changes = {'proposals.nms_iou': [0.7, 0.5], 'targets.positive_iou': [0.7, 0.6]}
    assert summary['other_keys'] == changes
    sentence = 'proposals.nms_iou is 0.5, in the run 0.7'
    assert sentence in capsys.readouterr().out and sentence in (copied / 'report.html').read_text()
    known = run_files.read(copied, results.load(copied / 'proposals.npz'))
    assert known.config.items() >= {'proposals.nms_iou': 0.5, 'targets.positive_iou': 0.6}.items()
    assert main.main(['evaluate', f'--workdir={copied}']) == 0
    assert 'other_keys' not in json.loads((copied / 'evaluation.json').read_text())


@pytest.mark.parametrize(('key', 'value'), [('data.pixels', 'caffe'), ('anchors.sizes', '(16,64)')])
def test_a_checkpoint_is_not_read_as_another_network(copied, tmp_path, refuse, key, value):
    (tmp_path / 'x.png').write_bytes(b'')
    output = f'--output={tmp_path}/x.safetensors'
    for words in (['evaluate'], ['export', output], ['predict', f'{tmp_path}/x.png']):
        assert f'{key} was' in refuse([*words, f'--workdir={copied}', f'--config.{key}={value}'])
    assert not (tmp_path / 'x.safetensors').exists() and not (copied / 'evaluation.json').exists()


def test_an_edited_config_file_is_refused_wherever_a_checkpoint_is_read(copied, tmp_path, refuse):
    path = copied / 'config.json'
    path.write_text(path.read_text().replace('"norm": "batch"', '"norm": "group"'))
    complaint = f"{path}: model.norm is 'group', but 'batch' in the checkpoint of step 8; set it"
    (tmp_path / 'x.png').write_bytes(b'')
    output = f'--output={tmp_path}/x.safetensors'
    modes = ['train'], ['evaluate'], ['export', output], ['predict', f'{tmp_path}/x.png']
    for words in (*modes, ['inspect', f'--config.model.pretrained={copied}']):
        workdir = tmp_path / 'other' if words[0] == 'inspect' else copied
        assert complaint in refuse([*words, *tiny_flags(workdir, model__norm='group')])
    assert complaint in refuse(tiny_flags(copied))  # the right one
    with pytest.raises(InputError, match='set it back in this file'):
        rpn_jax.restore(copied, 6)


def test_evaluation_needs_a_checkpoint(copied, refuse):
    assert 'no checkpoint of step 5; there are 4, 6, 8' in refuse(
        ['evaluate', f'--workdir={copied}', '--step=5']
    )
    shutil.rmtree(copied / 'checkpoints')
    assert 'no checkpoint; train first' in refuse(['evaluate', f'--workdir={copied}'])


@pytest.mark.slow
def test_weights_of_a_whole_network_need_no_training(tmp_path, capfd, refuse, monkeypatch):
    name, folder = 'fasterrcnn_resnet50_fpn', tmp_path / 'run'
    pyramid = dict(model__norm='frozen', model__last_stage=4, model__fpn_stages=(3, 4))
    config = tiny_config(**pyramid, anchors__sizes=((16,), (32,), (64,)))
    tensors = from_variables(jax.device_get(init_state(*loop.build(config)[:2], 0).variables))
    save_file(tensors, tmp_path / 'whole')
    save_file({n: t for n, t in tensors.items() if n[:3] != 'rpn'}, tmp_path / 'headless')
    monkeypatch.setattr(published, 'fetch', lambda *_: tmp_path / 'whole')
    flags = tiny_flags(folder, **pyramid, anchors__sizes='((16,), (32,), (64,))')
    taken = [*flags, f'--config.model.pretrained={name}']
    cv2.imwrite(str(tmp_path / 'x.png'), np.zeros((48, 64, 3), np.uint8))
    output = tmp_path / 'out.safetensors'
    for words in ['predict', tmp_path / 'x.png'], ['evaluate'], ['export', f'--output={output}']:
        assert main.main([*map(str, words), *taken]) == 0
        line = f'{folder}: no checkpoint; the weights {name} are used as step 0\n'
        assert line in capfd.readouterr().out
    assert json.loads(next((folder / 'predictions').glob('*.json')).read_text())
    assert json.loads((folder / 'evaluation.json').read_text())['step'] == 0
    detector = restore(output)
    assert detector.step == 0
    jax.tree.map(np.testing.assert_array_equal, from_variables(detector.variables), tensors)
    files = {'report.html', 'evaluation.json', 'proposals.npz', 'gaussian.json', 'predictions'}
    assert {path.name for path in folder.iterdir()} == files
    for words in [f'--config.model.pretrained={tmp_path}/headless'], ['--step=3', taken[-1]]:
        assert 'no checkpoint; train first' in refuse(['evaluate', *flags, *words])


def test_inspection_shows_the_pixels_and_the_boxes_that_the_network_gets(tmp_path, capsys):
    flags = tiny_flags(tmp_path, data__pixels='caffe', targets__samples=1)
    assert main.main([*flags, '--mode=inspect']) == 0
    config = tiny_config()
    options = data.Options(**config.data)
    source = data.open_split(options, 'train', seed=config.seed)
    batch_of = data.train_batch(source, options, seed=config.seed)
    printed, edges, objects = capsys.readouterr().out, 0, 0
    ink = [*COLOURS.values(), (31, 35, 40)]
    for step in range(commands.INSPECTED):
        path = tmp_path / 'inspect' / f'step_{step + 1:04}.png'
        sheet = cv2.imread(str(path))[..., ::-1]
        batch = batch_of(step)
        for row, image in enumerate(batch['image']):
            x = 10 + row * (64 + 10)
            cell = sheet[10 : 10 + 64, x : x + 64]
            same = (cell == image).all(axis=-1)
            drawn = np.any([(cell == colour).all(axis=-1) for colour in ink], axis=0)
            assert (same | drawn).all() and same.mean() > 0.25
            assert source.records[batch['index'][row]].image_id in printed
            boxes = batch['boxes'][row][batch['kind'][row] == 1].astype(int)
            objects += len(boxes)
            for x0, y0, x1, _ in boxes:
                top = cell[y0 + 2, x0:x1]  # the frame is three pixels wide, the border's two
                edges += (top == COLOURS['object']).all(axis=-1).mean() > 0.5
        assert str(path) in printed
    assert edges >= 0.8 * objects > 4
    page = tmp_path / 'inspect' / 'index.html'
    assert f'{page} shows 16 images beside their originals' in printed
    assert page.read_text().count('<article') == 16
    assert len(list((tmp_path / 'inspect').iterdir())) == commands.INSPECTED + 1
    for name in checks.CLAIMS.keys() - {'annotations'}:  # drawn scenes have no files
        assert re.search(rf'^pass {{9}}{name} ', printed, re.MULTILINE)


def test_inspection_of_a_wrong_input_fails_and_still_writes_its_page(tmp_path, capsys, monkeypatch):
    right = batches.example

    def wrong(source, canvases, position, flip, max_boxes, canvas, unread):
        row = right(source, canvases, position, flip, max_boxes, canvas, unread)
        canvas[:] = canvas.swapaxes(0, 1).copy()
        return row | {'boxes': row['boxes'] / 2}

    monkeypatch.setattr(batches, 'example', wrong)
    assert main.main([*tiny_flags(tmp_path), '--mode=inspect']) == 1
    printed, page = capsys.readouterr(), tmp_path / 'inspect' / 'index.html'
    assert printed.err == f'error: the training input is wrong (height and width); see {page}\n'
    assert re.search(
        r'^FAIL {9}height and width  shapes/train/\d+: differs', printed.out, re.MULTILINE
    )
    assert 'Do not train on this input: 1 of 7 checks fail' in page.read_text()


def test_export_writes_the_weights_by_torchvisions_names(copied, tmp_path, capsys):
    output = tmp_path / 'new' / 'rpn.safetensors'
    assert main.main([f'--workdir={copied}', '--mode=export', f'--output={output}']) == 0
    assert f'{output}: step 8, ' in capsys.readouterr().out
    with safe_open(output, framework='numpy') as file:
        metadata, names = file.metadata(), {*file.keys()}
    assert {'conv1.weight', 'bn1.running_var', 'rpn.head.bbox_pred.bias'} <= names
    assert metadata['format'] == 'pt'  # torch's loaders ask for it
    made_with = json.loads(metadata['rpn_jax'])
    assert (made_with['step'], made_with['model']['width']) == (8, 8)
    assert made_with['data']['pixels'] == 'torchvision' and made_with['data']['path'] == ''
    assert made_with['data']['eval_path'] == ''
    assert list(output.parent.iterdir()) == [output]


def test_inspection_refuses_weights_of_another_network(tmp_path, refuse):
    save_file({'other': np.ones(3, np.float32)}, tmp_path / 'x.safetensors')
    flags = tiny_flags(tmp_path / 'run', model__pretrained=tmp_path / 'x.safetensors')
    assert 'missing conv1.weight' in refuse([*flags, '--mode=inspect'])


def test_inspection_fetches_no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(published, 'fetch', None)
    changes = {'model__depth': 50, 'model__width': 64, 'model__pretrained': 'imagenet'}
    assert main.main(['inspect', *tiny_flags(tmp_path / 'run', **changes)]) == 0


@pytest.mark.parametrize(
    ('words', 'complaint'),
    [
        (['predict'], 'needs images'),
        (['export'], '--output=FILE.safetensors'),
        (['export', '--output=weights.pth'], 'weights.pth'),
        (['export', '--output=/proc/none/x.safetensors'], 'none: cannot be made (No such file'),
        (['export', f'--output={"y" * 300}.safetensors'], 'cannot be written'),
        (['evaluate', '--output=x.safetensors'], 'not the name of a .json file'),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(copied, refuse, words, complaint):
    assert complaint in refuse([*words, f'--workdir={copied}'])


def test_a_disk_that_fails_in_training_is_told_with_the_newest_checkpoint(
    copied, refuse, monkeypatch
):
    monkeypatch.setattr(loop, 'train', mock.Mock(side_effect=OSError(28, 'No space left', 'x')))
    line = refuse([f'--workdir={copied}'])
    assert 'x: No space left; make room on the disk; the newest checkpoint is of step 8, ' in line


def test_verification_names_the_damaged_checkpoints(copied, capsys):
    assert main.main([f'--workdir={copied}', '--mode=verify']) == 0
    assert capsys.readouterr().out == 'step 4: good\nstep 6: good\nstep 8: good\n'
    (copied / 'checkpoints/6/state/manifest.ocdbt').write_bytes(b'')
    assert main.main([f'--workdir={copied}', '--mode=verify']) == 1
    out, error = capsys.readouterr()
    assert 'step 4: good\nstep 6: ' in out and out.count('\n') == 3
    assert 'damaged checkpoints, of step 6;' in error and error.count('\n') == 1


def test_other_data_than_the_runs_are_told_and_refused_with_strict(copied, refuse, capfd):
    less = [f'--workdir={copied}', '--config.data.scenes=(9,5)']
    before = (copied / 'data.json').read_bytes()
    for mode, told in (('evaluate', 'evaluation'), ('train', 'training')):
        line = refuse([mode, *less, '--strict'])
        assert f'the {told} data were shapes/' in line and ', the last, is gone; put' in line
        assert (copied / 'data.json').read_bytes() == before
        assert main.main([mode, *less]) == 0
        assert f'warning: {copied}/data.json: the {told} data were' in capfd.readouterr().out
    assert (copied / 'data.json').read_bytes() != before  # trained on, they are the run's
    assert main.main(['evaluate', *less, '--strict']) == 0


def test_a_training_warns_of_anchors_that_do_not_fit_and_its_report_says_so(tmp_path, capsys):
    flags = tiny_flags(tmp_path, anchors__sizes=(2, 3), steps=2, evaluation__every=0)
    assert main.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any('The run ends before much can be learnt. Found: 2 steps' in line for line in lines)
    (warning,) = (line for line in lines if 'anchors do not fit' in line.lower())
    assert warning.startswith('warning: ') and lines.index(warning) < len(lines) / 2
    page = html.unescape((tmp_path / 'report.html').read_text())
    assert warning.removeprefix('warning: ') in page
