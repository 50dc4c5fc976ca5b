"""From the command line to a trained network and back."""

import logging
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from data_files import write_voc
from helpers import (
    ROOT,
    assert_same,
    compilations,
    finished_run,
    last_state,
    lines_of,
    tiny_config,
    tiny_flags,
)

import main
import rpn_jax
from rpn_jax import commands, data
from rpn_jax.training import checkpoint, loop
from rpn_jax.training.progress import Progress


def run_python(*arguments, devices=4):
    """Starts Python in the root of the repository, with so many devices."""
    count = f'--xla_force_host_platform_device_count={devices}'
    environment = os.environ | {'XLA_FLAGS': count, 'PYTHONPATH': str(ROOT)}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, **pipes)


def finish(process):
    """Waits for a process that must succeed and returns what it printed."""
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    return out


def test_an_interrupted_run_goes_on_by_the_same_command(monkeypatch, tmp_path, capsys):
    read = Progress.read

    def interrupted(self, step, *rest):
        read(self, step, *rest)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, 'read', interrupted)
        assert main.main(tiny_flags(tmp_path)) == 143
    said = capsys.readouterr().err
    assert said == 'interrupted at step 3; the same command goes on from there\n'
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert not (tmp_path / 'evaluation.json').exists()
    config = tiny_config()
    assert main.main(tiny_flags(tmp_path)) == 0
    assert 'steps 3 to 8' in capsys.readouterr().out
    state = last_state(config, tmp_path)
    assert_same(state, last_state(config, finished_run().folder))
    assert checkpoint.steps(tmp_path) == [4, 6, 8]
    assert lines_of(tmp_path) == lines_of(finished_run().folder)
    assert [line['step'] for line in lines_of(tmp_path)] == list(range(1, 9))


def test_a_workdir_of_another_config_is_refused(tmp_path, capsys):
    folder = shutil.copytree(finished_run().folder, tmp_path / 'tiny')
    before = (folder / 'config.json').read_text()
    flags = tiny_flags(folder, seed=1, optim__learning_rate=0.5, data__path='elsewhere', steps=9)
    assert main.main(flags) == 1
    said = capsys.readouterr().err
    assert 'seed was 0, is 1; optim.learning_rate was 0.02, is 0.5; name another' in said
    assert said.startswith('error: ') and said.count('\n') == 1
    assert (folder / 'config.json').read_text() == before
    assert checkpoint.steps(folder) == [4, 6, 8]


@pytest.mark.slow
def test_a_run_that_keeps_shapes_compiles_once_for_each_canvas(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder, run = write_voc(tmp_path / 'VOC'), tmp_path / 'run'
    config = tiny_config(
        steps=12,
        evaluation__every=0,
        data__source='voc',
        data__path=str(folder),
        data__train_split='',
        data__resize='short_side',
        data__image_size=48,
        data__max_size=96,
        data__canvases=3,
        data__batch_size=1,
    )
    options = data.options(**config.data)
    source = data.open_split(options, '')
    canvases = data.canvases_of(source, options)
    with compilations() as compiled:
        make_evaluate = commands.evaluator(config, run)
        _, evaluation = loop.train(config, run, make_evaluate, devices=jax.devices()[:1])
    (line,) = (line for line in caplog.messages if line.startswith('canvases: '))
    assert len(canvases.shapes) == 2
    assert all(f'{height} x {width}' in line for height, width in canvases.shapes)
    assert 'compilations of the update: 2,' in line and f'{canvases.padding:.1%}' in line
    assert compiled.count('jit(_fun)') == 4  # what pmap calls them: two updates, two predictions
    assert evaluation.summary['images'] == 2
    image = source.read(0)
    proposals = rpn_jax.restore(run).propose(image)
    assert proposals.valid.any() and np.all(proposals.boxes <= [*image.shape[1::-1]] * 2)


@pytest.mark.slow
def test_a_run_of_four_devices_goes_on_with_one(tmp_path):
    changes = {'steps': 12, 'optim.schedule_steps': 12}
    for name, devices in (('one', 1), ('four', 4)):
        folder = shutil.copytree(finished_run().folder, tmp_path / name)
        out = finish(run_python('main.py', *tiny_flags(folder, **changes), devices=devices))
        assert 'steps 8 to 12' in out
    one, four = (
        [line['loss'] for line in lines_of(tmp_path / name)[8:]] for name in ('one', 'four')
    )
    assert one == pytest.approx(four, rel=1e-4) and len(one) == 4


@pytest.mark.slow
def test_a_workdir_is_restored_where_there_is_one_device(tmp_path):
    look = (
        'import sys, jax, numpy, rpn_jax\n'
        'assert len(jax.devices()) == 1\n'
        'rpn = rpn_jax.restore(sys.argv[1])\n'
        'image = numpy.arange(50 * 80 * 3, dtype=numpy.uint8).reshape(50, 80, 3)\n'
        'numpy.savez(sys.argv[2], image=image, **rpn.propose(image)._asdict())\n'
    )
    place = tmp_path / 'found.npz'
    finish(run_python('-c', look, finished_run().folder, place, devices=1))
    found = np.load(place)
    expected = rpn_jax.restore(finished_run().folder).propose(found['image'])
    for name, value in expected._asdict().items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-3, err_msg=name)
