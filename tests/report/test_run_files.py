"""Files beside a run's proposals are read where they are as expected, and otherwise left out."""

import json

import pytest
from report_data import write_run

from rpn_jax.evaluation import results
from rpn_jax.report import run_files

KNOWN = {'step': 7, 'dataset': 'drawn', 'missed': {'clipped': 3}}


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / 'a', 12, images=2)


def read(run, **evaluation):
    """Returns the RunFiles of a run, with these entries in its evaluation.json."""
    if evaluation:
        (run / 'evaluation.json').write_text(json.dumps(KNOWN | evaluation))
    return run_files.read(run, results.load(run / 'proposals.npz'))


def test_a_whole_run_is_read_and_proposals_alone_are_enough(run):
    assert read(run) == ({}, [], None, {}, '')
    (run / 'config.json').write_text('{"seed": 1, "data": {"name": "x", "mean": [1, 2]}}')
    (run / 'metrics.jsonl').write_text('{"step": 20, "loss": 0.5, "anchors": {"shift": [1]}}\n')
    found = read(run, step=7)
    assert found.config == {'seed': 1, 'data.name': 'x', 'data.mean': [1, 2]}
    assert found.history == [{'step': 20, 'loss': 0.5}]
    assert (found.missed, found.stale) == ({'clipped': 3}, '')


def test_misses_of_other_proposals_are_stale_and_what_is_no_count_is_left_out(run):
    for change in ({'step': 8}, {'dataset': 'other'}, {'step': [7]}):
        found = read(run, **change)
        assert found.missed is None
        assert found.stale == 'of step {step} on {dataset}'.format(**{**KNOWN, **change})
        note = run_files.note(run, found, results.load(run / 'proposals.npz'))
        assert found.stale in note and 'of step 7 on drawn' in note and '\n' not in note
    for missed in ([1, 2], *({'suppressed': each} for each in ('many', True, [3])), 'x', {}):
        found = read(run, missed=missed)
        assert found.missed is None and found.stale == ''
    for other in ([1], 'x', {'seed': 3}, {'seed': [1, 2, 3]}):
        assert read(run, other_keys=other).config == {}


def test_baselines_are_those_of_the_same_evaluation(run):
    sets = {'quadrants': {'AR@10': 0.1, 'AR@100': None, 'x': 'y'}, 'a': [1]}
    assert read(run, baselines=sets).baselines == {'quadrants': {'AR@10': 0.1}}
    other = read(run, baselines=sets, missed={}, step=8, other_keys={'seed': [1, 2]})
    assert other.config == {} and read(run, other_keys={'seed': [1, 2]}).config == {'seed': 2}
    assert other.baselines == {} and other.stale == 'of step 8 on drawn'
    for content in ([1], 'x', {'a': 'b'}):
        assert read(run, baselines=content).baselines == {}


def test_entries_of_a_history_that_are_no_numbers_are_left_out(run):
    lines = ['{"step": [1], "loss": 3}', '{"step": 2, "loss_box": NaN}', '[]', '3']
    lines += ['{"step": 1' + '0' * 400 + ', "loss": true}', '{"step": 4, "loss": 1e-3}', '{"ste']
    (run / 'metrics.jsonl').write_text('\n'.join(lines))
    assert read(run).history == [{'step': 2}, {}, {'step': 4, 'loss': 0.001}]


@pytest.mark.parametrize('text', ['', '[]', '{', '[' * 100_000, 'null'])
def test_files_that_are_no_json_objects_are_left_out(run, text):
    for name in ('config.json', 'evaluation.json', 'metrics.jsonl'):
        (run / name).write_text(text)
    assert read(run) == ({}, [], None, {}, '')
