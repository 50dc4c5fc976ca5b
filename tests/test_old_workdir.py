"""A workdir that an earlier version made still evaluates and goes on."""

import json
import tarfile

import jax
import pytest
from helpers import ROOT

import main
from rpn_jax.training import checkpoint
from rpn_jax.training.workdir import read_history

GOLDEN = ROOT / 'tests' / 'golden'


@pytest.fixture
def workdir(tmp_path):
    """Returns a copy of the workdir: 54 of 60 steps, evaluated."""
    with tarfile.open(GOLDEN / 'workdir_before.tar.gz') as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path / 'workdir_before'


def figures_of(path):
    """Returns every figure of a json file by its path in it."""
    figures = jax.tree_util.tree_leaves_with_path(json.loads(path.read_text()))
    return {jax.tree_util.keystr(where): figure for where, figure in figures}


def test_an_old_workdir_evaluates_to_the_same_figures(workdir):
    path = workdir / 'evaluation.json'
    expected = figures_of(path)
    path.unlink()
    assert main.main([f'--workdir={workdir}', '--mode=evaluate']) == 0
    figures = figures_of(path)  # others may have joined them
    assert {where: figures[where] for where in expected} == pytest.approx(expected, abs=1e-4)


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
