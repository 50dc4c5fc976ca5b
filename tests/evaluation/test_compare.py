"""Runs side by side: the better one is beyond noise, the same one is not."""

import json
import re

import pytest
from report_data import write_run

import main
from rpn_jax.evaluation import compare, results


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / name, noise) for name, noise in (('a', 12), ('b', 4), ('c', 12))]


def test_a_better_run_is_beyond_noise_and_the_same_one_is_not(runs, tmp_path, capsys):
    compared = compare.compare(compare.tally(compare.load(runs)))
    figures = [compared[str(run)]['AR@10'] for run in runs]
    assert figures[0]['difference'] == figures[2]['difference'] == 0
    better = figures[1]
    assert better['low'] > 0.1 and better['difference'] == better['value'] - figures[0]['value']
    assert 'AR@100' not in compared[str(runs[0])]  # of 15 proposals
    words = ['--mode=compare', f'--runs={runs[0]}, {runs[1]},{runs[2]},']  # as people name them
    assert main.main([*words, f'--output={tmp_path}/compared.json']) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith('AR@10 '))
    columns = r'0\.\d+', r'0\.\d+  \+0\.\d+ ±0\.\d+\*', r'0\.\d+  \+0\.000 ±0\.000 ?'
    assert re.fullmatch(' +'.join(['AR@10', *columns]), line)
    assert lines[0].split() == ['a', 'b', 'c'] and any(
        line.startswith('differences from a; ') for line in lines
    )
    assert any(line.startswith('AR@10: B · b is ahead') for line in lines)
    assert json.loads((tmp_path / 'compared.json').read_text()).keys() == set(map(str, runs))


def test_the_folder_where_one_stands_has_a_name_too(runs, monkeypatch):
    monkeypatch.chdir(runs[0])
    lines = compare.lines(compare.compare(compare.tally(compare.load(['.', '../b']))))
    assert lines[0].split() == ['.', 'b'] and 'differences from .;' in lines[-1]


def renamed(folder):
    """Returns the folder of a run whose images now have other names."""
    run = results.load(folder / 'proposals.npz')
    other = run._replace(image_ids=[f'other {name}' for name in run.image_ids])
    results.save(folder / 'proposals.npz', other)
    return folder


@pytest.mark.parametrize(
    ('make', 'complaint'),
    [
        (lambda a, p: [a], 'needs --runs=A,B,..: two workdirs or more'),
        (lambda a, p: [a, f'{a}/'], 'each once'),
        (lambda a, p: [''], 'two workdirs or more'),
        (lambda a, p: [a, p / 'none'], 'none: no such folder; --runs names workdirs'),
        (lambda a, p: [a, p], 'proposals.npz: no such file; write it by --mode=evaluate --work'),
        (lambda a, p: [a, write_run(p / 'd', 4, images=59)], 'on other images or objects'),
        (lambda a, p: [a, renamed(write_run(p / 'g', 12))], 'other images or objects'),
        (lambda a, p: [a, write_run(p / 'e', 4, moved=1)], 'evaluate them on the same split'),
        (lambda a, p: [a, write_run(p / 'f', 4, kinds=(1, 2, 1))], 'other images or objects'),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, tmp_path, capsys, make, complaint):
    words = ','.join(map(str, make(runs[0], tmp_path)))
    assert main.main(['--mode=compare', f'--runs={words}']) == 1
    said = capsys.readouterr().err
    assert said.startswith('error: ') and complaint in said and said.count('\n') == 1


def test_figures_that_no_run_has_are_not_shown_and_zero_has_no_sign(runs):
    found = compare.compare(compare.tally(compare.load(runs[:2])))
    for row in found.values():
        row['AR@10'] = dict.fromkeys(row['AR@10'])
    assert 'AR@10' not in compare.shown(found) and 'top10_max_iou' in compare.shown(found)
    assert not any(line.startswith('AR@10 ') for line in compare.lines(found))
    assert [compare.signed(x) for x in (-0.0002, 0.0, -0.0016)] == ['+0.000', '+0.000', '-0.002']


def test_figures_of_more_proposals_than_either_run_has_are_left_out(runs):
    loaded = compare.load(runs[:2])
    assert all('AR@10' in own for own in compare.tally(loaded).values())
    for name, each in loaded.items():
        kept = compare.tally({**loaded, name: fewer(each)})
        assert not any('AR@10' in own for own in kept.values()), name


def fewer(run):
    """Returns a run with 5 proposals an image at most."""
    cut = {name: [rows[:5] for rows in getattr(run, name)] for name in ('proposals', 'scores')}
    return run._replace(**cut)


def test_what_cannot_be_written_is_refused(runs, tmp_path, capsys):
    words = ['--mode=compare', f'--runs={runs[0]},{runs[1]}', f'--output={tmp_path}/none/x.json']
    assert main.main(words) == 1
    assert 'x.json: cannot be written' in capsys.readouterr().err
