"""What each mode writes, from a config or from a workdir alone."""

import json
import re
import shutil

import cv2
import jax
import numpy as np
import pytest
from helpers import finished_run, tiny_config, tiny_flags
from safetensors import safe_open
from safetensors.numpy import save_file

import main
import rpn_jax
from rpn_jax import commands, data, weights
from rpn_jax.data import batches
from rpn_jax.diagnosis import checks
from rpn_jax.evaluation import protocols, results
from rpn_jax.report.drawings import COLOURS
from rpn_jax.training import checkpoint, loop, pretrained, workdir
from rpn_jax.training.step import init_state

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture
def copied(tmp_path):
    """Returns a copy of the finished run's workdir without what an evaluation writes."""
    shutil.copytree(finished_run().folder, tmp_path / 'tiny')
    (tmp_path / 'tiny' / 'evaluation.json').unlink()
    (tmp_path / 'tiny' / 'report.html').unlink()
    return tmp_path / 'tiny'


def test_training_writes_what_the_contract_says():
    folder = finished_run().folder
    names = {path.name for path in folder.iterdir()}
    events = {name for name in names if name.startswith('events')}
    assert len(events) == 1
    files = {
        'config.json',
        'metrics.jsonl',
        'evaluation.json',
        'report.html',
        'proposals.npz',
        'gaussian.json',
    }
    assert names - events == files | {'checkpoints'}
    expected = tiny_config(data__pixels='torchvision').to_dict()
    assert json.loads((folder / 'config.json').read_text()) == json.loads(json.dumps(expected))
    line = json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])
    assert line.keys() == {
        *('step', 'loss', 'loss_objectness', 'loss_box'),
        *('learning_rate', 'images_per_second', 'positives', 'anchors'),
    }
    assert sorted(int(p.name) for p in (folder / 'checkpoints').iterdir()) == [4, 6, 8]
    report = (folder / 'report.html').read_text()
    assert report.lstrip().startswith('<!DOCTYPE html>') and 'shapes/val/' in report


def test_evaluation_needs_the_workdir_alone_and_finds_the_same(copied, capsys):
    assert main.main([f'--workdir={copied}', '--mode=evaluate']) == 0
    written = (copied / 'evaluation.json').read_bytes()
    assert written == (finished_run().folder / 'evaluation.json').read_bytes()
    assert (copied / 'report.html').stat().st_size > 10_000
    said = capsys.readouterr().out
    assert 'shapes/val, step 8: 6 images' in said and str(copied / 'report.html') in said
    _, others = said.split('as other evaluators count, with 95 % intervals over images:\n')
    assert set(protocols.PROTOCOLS) <= {line.split()[0] for line in others.splitlines() if line}
    assert 'AR@10' in others and 'AR@100 ' not in others and '±' in others
    assert results.load(copied / 'proposals.npz').post_nms == 50
    assert not list(copied.glob('*.tmp'))


def test_evaluation_writes_its_proposals_as_coco_results(copied, tmp_path, capsys):
    out = tmp_path / 'new' / 'found.json'
    assert main.main([f'--workdir={copied}', '--mode=evaluate', f'--output={out}']) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f'{out} has the proposals')
    back = results.from_coco(tmp_path / 'new' / 'found.instances.json', out)
    ours = results.load(copied / 'proposals.npz')
    assert list(back.image_ids) == list(ours.image_ids) and sum(map(len, back.proposals)) > 50
    for name in ('proposals', 'scores', 'gt_boxes', 'gt_kinds'):
        for a, b in zip(getattr(back, name), getattr(ours, name), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)


def test_evaluation_works_with_a_batch_that_devices_cannot_share(copied):
    flags = [f'--workdir={copied}', '--mode=evaluate', '--config.data.batch_size=3']
    assert main.main(flags) == 0
    found, before = (
        json.loads((folder / 'evaluation.json').read_text())
        for folder in (copied, finished_run().folder)
    )
    assert found['proposals'] == pytest.approx(before['proposals'], abs=1e-5)


def test_evaluation_of_another_split_says_so(copied):
    flags = [f'--workdir={copied}', '--mode=evaluate', '--config.data.eval_split=other']
    assert main.main([*flags, '--config.evaluation.images=4']) == 0
    found = json.loads((copied / 'evaluation.json').read_text())
    assert (found['dataset'], found['images'], found['step']) == ('shapes/other', 4, 8)


def test_evaluation_refuses_another_network(copied, capsys):
    flags = [f'--workdir={copied}', '--mode=evaluate', '--config.anchors.sizes=(16, 64)']
    assert main.main(flags) == 1
    said = capsys.readouterr().err
    assert 'anchors.sizes was (16, 32), is (16, 64)' in said and said.count('\n') == 1
    assert not (copied / 'evaluation.json').exists()


def test_evaluation_without_a_checkpoint_is_an_error_of_one_line(copied, capsys):
    shutil.rmtree(copied / 'checkpoints')
    assert main.main([f'--workdir={copied}', '--mode=evaluate']) == 1
    said = capsys.readouterr().err
    assert said.startswith('error: ') and 'no checkpoint; train first' in said
    assert said.count('\n') == 1


def test_a_mode_that_does_not_exist_is_refused(tmp_path, capsys):
    assert main.main([*tiny_flags(tmp_path / 'x'), '--mode=guess']) == 1
    assert (
        "no mode 'guess'; there are train, evaluate, inspect, statistics, export"
        in capsys.readouterr().err
    )
    assert list(commands.MODES) == 'train evaluate inspect statistics export predict'.split()
    assert not (tmp_path / 'x').exists()


def test_inspection_shows_the_pixels_that_the_network_gets(tmp_path, capsys):
    flags = tiny_flags(tmp_path, data__pixels='caffe', targets__samples=8)
    assert main.main([*flags, '--mode=inspect']) == 0
    config = tiny_config()
    options = data.Options(**config.data)
    source = data.open_split(options, 'train', seed=config.seed)
    batch_of = data.train_batch(source, options, seed=config.seed)
    said = capsys.readouterr().out
    ink = [*COLOURS.values(), (31, 35, 40)]
    for step in range(commands.INSPECTED):
        path = tmp_path / 'inspect' / f'batch_{step:04}.png'
        sheet = cv2.imread(str(path))[..., ::-1]
        batch = batch_of(step)
        for row, image in enumerate(batch['image']):
            x = 10 + row * (64 + 10)
            cell = sheet[10 : 10 + 64, x : x + 64]
            same = (cell == image).all(axis=-1)
            drawn = np.any([(cell == colour).all(axis=-1) for colour in ink], axis=0)
            assert (same | drawn).all() and same.mean() > 0.25
            assert source.records[batch['index'][row]].image_id in said
        assert str(path) in said
    page = tmp_path / 'inspect' / 'index.html'
    assert f'{page} shows 16 images beside their originals' in said
    assert page.read_text().count('<article') == 16
    assert len(list((tmp_path / 'inspect').iterdir())) == commands.INSPECTED + 1
    for name in checks.CLAIMS:
        assert re.search(rf'^pass {{9}}{name} ', said, re.MULTILINE)


def test_inspection_of_a_wrong_input_fails_and_still_writes_its_page(tmp_path, capsys, monkeypatch):
    right = batches.example

    def wrong(source, canvases, position, flip, max_boxes, canvas, unread):
        row = right(source, canvases, position, flip, max_boxes, canvas, unread)
        canvas[:] = canvas.swapaxes(0, 1).copy()
        return row | {'boxes': row['boxes'] / 2}

    monkeypatch.setattr(batches, 'example', wrong)
    assert main.main([*tiny_flags(tmp_path), '--mode=inspect']) == 1
    said, page = capsys.readouterr(), tmp_path / 'inspect' / 'index.html'
    assert said.err == f'error: the training input is wrong (height and width); see {page}\n'
    assert re.search(
        r'^FAIL {9}height and width  shapes/train/\d+: differs', said.out, re.MULTILINE
    )
    assert 'Do not train on this input: 1 of 7 checks fail' in page.read_text()


def test_inspection_draws_objects_where_they_are(tmp_path):
    assert main.main([*tiny_flags(tmp_path, targets__samples=1), '--mode=inspect']) == 0
    config = tiny_config()
    options = data.Options(**config.data)
    source = data.open_split(options, 'train', seed=config.seed)
    batch = data.train_batch(source, options, seed=config.seed)(0)
    sheet = cv2.imread(str(tmp_path / 'inspect' / 'batch_0000.png'))[..., ::-1]
    edges = 0
    for row, (boxes, kind) in enumerate(zip(batch['boxes'], batch['kind'], strict=True)):
        cell = sheet[10 : 10 + 64, 10 + row * 74 : 74 + row * 74]
        for x0, y0, x1, _ in boxes[kind == 1].astype(int):
            top = cell[y0 + 2, x0:x1]  # the frame is three pixels wide, the border's two
            edges += (top == COLOURS['object']).all(axis=-1).mean() > 0.5
    assert edges >= 0.8 * (batch['kind'] == 1).sum() > 4


# Export, and our own checkpoints as weights


def test_export_writes_the_weights_by_torchvisions_names(copied, tmp_path, capsys):
    output = tmp_path / 'new' / 'rpn.safetensors'
    assert main.main([f'--workdir={copied}', '--mode=export', f'--output={output}']) == 0
    assert f'{output}: step 8, ' in capsys.readouterr().out
    trained = rpn_jax.restore(copied)
    found = weights.load(output)
    assert {'conv1.weight', 'bn1.running_var', 'rpn.head.bbox_pred.bias'} <= found.keys()
    zeros = jax.tree.map(np.zeros_like, trained.variables)
    back = weights.to_variables(found, zeros)
    jax.tree.map(np.testing.assert_array_equal, back, trained.variables)
    with safe_open(output, framework='numpy') as file:
        metadata = file.metadata()
    assert metadata['format'] == 'pt'  # torch's loaders ask for it
    told = json.loads(metadata['rpn_jax'])
    assert (
        told['step'] == 8
        and told['data']['pixels'] == 'torchvision'
        and told['model']['width'] == 8
    )
    assert sorted(path.name for path in output.parent.iterdir()) == ['rpn.safetensors']


@pytest.mark.parametrize('place', ['', 'checkpoints/6'])
def test_a_run_starts_from_another_runs_checkpoint(place):
    folder = finished_run().folder
    variables, _ = checkpoint.variables(folder, 6 if place else None)
    config = tiny_config(model__pretrained=str(folder / place))
    model, optimizer, _ = loop.build(config)
    state = init_state(model, optimizer, 1, pretrained.load(config))
    jax.tree.map(np.testing.assert_array_equal, state.variables, variables)


@pytest.mark.parametrize('exported', [False, True])
def test_our_own_weights_say_their_pixels(copied, tmp_path, exported):
    """Even where the stem's norm tells nothing, as in a run from random weights."""
    text = (copied / 'config.json').read_text()
    (copied / 'config.json').write_text(
        text.replace('"pixels": "torchvision"', '"pixels": "caffe"').replace(
            '"stride_in_1x1": false', '"stride_in_1x1": true'
        )
    )
    weights = copied
    if exported:
        weights = tmp_path / 'rpn.safetensors'
        assert main.main([f'--workdir={copied}', '--mode=export', f'--output={weights}']) == 0
    lines = []
    config = tiny_config(model__pretrained=str(weights), data__pixels='auto')
    pretrained.load(config, lines.append)
    assert config.data.pixels == 'caffe'
    assert lines == [f'warning: the weights {weights} want model.stride_in_1x1=True, it is False']


def test_our_own_weights_bring_their_mean_and_deviation(copied):
    config = json.loads((copied / 'config.json').read_text())
    config['data'] |= {'mean': [1, 2, 3], 'std': [4, 5, 6]}
    (copied / 'config.json').write_text(json.dumps(config))
    config = tiny_config(model__pretrained=str(copied), data__pixels='auto', data__std=(7, 8, 9))
    lines = []
    pretrained.load(config, lines.append)
    assert config.data.mean == (1, 2, 3) and config.data.std == (7, 8, 9)
    again = tiny_config(data__pixels='auto', data__std=(4, 5, 6))  # the same command, resuming
    workdir.check(copied, again, ('data',))
    assert again.data.mean == (1, 2, 3)
    assert len(lines) == 1 and lines[0].endswith('want data.std=(4.0, 5.0, 6.0), it is (7, 8, 9)')


@pytest.mark.parametrize('mode', ['evaluate', 'export'])
@pytest.mark.parametrize(('key', 'value'), [('pixels', 'caffe'), ('mean', '(1,2,3)')])
def test_weights_are_not_read_with_other_pixels(copied, tmp_path, capsys, mode, key, value):
    flags = [f'--workdir={copied}', f'--mode={mode}', f'--config.data.{key}={value}']
    flags += [f'--output={tmp_path}/x.safetensors'] if mode == 'export' else []
    assert main.main(flags) == 1
    assert f'data.{key} was' in capsys.readouterr().err
    assert not (tmp_path / 'x.safetensors').exists() and not (copied / 'evaluation.json').exists()


def test_inspection_refuses_weights_of_another_network(tmp_path, capsys):
    save_file({'other': np.ones(3, np.float32)}, tmp_path / 'x.safetensors')
    flags = tiny_flags(tmp_path / 'run', model__pretrained=tmp_path / 'x.safetensors')
    assert main.main([*flags, '--mode=inspect']) == 1
    assert 'missing conv1.weight' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'complaint'),
    [
        (['--mode=export'], '--mode=export needs --output=FILE.safetensors'),
        (['--mode=inspect', '--output=x.json'], 'belongs to evaluate, export and predict, not'),
        (['--mode=evaluate', '--output=x.safetensors'], 'not the name of a .json file'),
        (['--mode=export', '--output=weights.pth'], 'not the name of a .safetensors file'),
        (['--mode=export', '--output=/proc/none/x.safetensors'], 'cannot be written'),
        (['--mode=export', f'--output={"y" * 300}.safetensors'], 'cannot be written'),
    ],
)
def test_export_refuses_what_it_cannot_write(copied, capsys, words, complaint):
    assert main.main([f'--workdir={copied}', *words]) == 1
    said = capsys.readouterr().err
    assert complaint in said and said.count('\n') == 1
