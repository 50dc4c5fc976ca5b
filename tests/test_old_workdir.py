"""A workdir that an earlier version made still evaluates and goes on."""

import json
import tarfile

import pytest
from helpers import ROOT

import main
from rpn_jax.training import checkpoint
from rpn_jax.training.workdir import read_history

GOLDEN = ROOT / 'tests' / 'golden'
pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture
def workdir(tmp_path):
    """Returns a copy of the workdir: 54 of 60 steps, evaluated."""
    with tarfile.open(GOLDEN / 'workdir_before.tar.gz') as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path / 'workdir_before'


def assert_reproduced(figures, expected, name=''):
    """Checks that every figure is there and what it was; others may have joined them."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in figures, f'{name}/{key}'
            assert_reproduced(figures[key], value, f'{name}/{key}')
    elif isinstance(expected, list):
        assert len(figures) == len(expected), name
        for i, (a, b) in enumerate(zip(figures, expected, strict=True)):
            assert_reproduced(a, b, f'{name}[{i}]')
    elif isinstance(expected, float):
        assert figures == pytest.approx(expected, abs=1e-4), name
    else:
        assert figures == expected, name


def test_an_old_workdir_evaluates_to_the_same_figures(workdir):
    expected = json.loads((workdir / 'evaluation.json').read_text())
    (workdir / 'evaluation.json').unlink()
    assert main.main([f'--workdir={workdir}', '--mode=evaluate']) == 0
    assert_reproduced(json.loads((workdir / 'evaluation.json').read_text()), expected)


def test_an_old_workdir_resumes_with_the_same_losses(workdir):
    assert checkpoint.steps(workdir) == [54]
    before = read_history(workdir)
    assert main.main([f'--workdir={workdir}']) == 0
    assert checkpoint.steps(workdir) == [60]
    *first, a, b = read_history(workdir)
    lines = (GOLDEN / 'workdir_before_resumed.jsonl').read_text().splitlines()
    for line, expected in zip((a, b), map(json.loads, lines), strict=True):
        for name in ('step', 'loss', 'loss_objectness', 'loss_box', 'positives', 'learning_rate'):
            assert line[name] == pytest.approx(expected[name], rel=1e-4), name
    assert first == before
