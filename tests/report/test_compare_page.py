"""The page of a comparison says who is ahead, in what the runs differ, and what it lacks."""

import base64
import json

import numpy as np
import pytest
from report_data import Page, files_of, finish_run, texts_of, write_run

import main
from configs import default
from rpn_jax.evaluation import bootstrap, compare, metrics, results
from rpn_jax.report import compare_page


def page_of(runs, *words):
    """Compares runs by the command line and returns the page beside them, parsed."""
    assert main.main(['--mode=compare', f'--runs={",".join(map(str, runs))}', *words]) == 0
    page = Page((runs[0].parent / 'compare.html').read_text())
    page.text = ' '.join(page.text.split())
    files = files_of(page).values()
    page.data = {each['title']: each['columns'] for each in files}
    assert len(page.data) == len(page.all('img'))
    return page


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Returns two complete runs, the second better, and a third that is proposals alone."""
    folder = tmp_path_factory.mktemp('runs')
    names = {'a': 12, 'lower': 4, '<i>proposals_alone & long': 9}
    made = [write_run(folder / name, noise) for name, noise in names.items()]
    return [finish_run(made[0]), finish_run(made[1], optim__learning_rate=0.5), made[2]]


@pytest.fixture(scope='module')
def page(runs):
    return page_of(runs)


def test_the_page_says_who_is_ahead_and_what_differs(page):
    assert 'AR@10: B · lower is ahead with 0.' in page.text and 'beyond noise' in page.text
    learning_rate = default.get_config().optim.learning_rate
    said = f'The configs differ in one key: optim.learning_rate ({learning_rate}, 0.5).'
    assert said in page.text
    assert 'Look next at what B · lower misses. 76% of it: NMS removes' in page.text
    assert '60 images' in page.text and '180 objects' in page.text and 'step 7' in page.text
    assert page.text.count('▲ +') >= 2 and 'Left out, as a run keeps fewer' in page.text
    assert 'AR@100' in page.text.split('Left out')[1]


def test_figures_are_those_of_the_comparison(runs, page):
    found = compare.compare(compare.tally(compare.load(runs)))
    for row in list(found.values())[1:]:
        cell = row['AR@10']
        said = '{value:.3f}{mark}{difference:+.3f} [{low:+.3f}, {high:+.3f}]'
        assert compare.is_beyond(cell)
        assert said.format(mark='▲ ', **cell) in page.text


def test_every_plot_has_its_numbers(page):
    assert len(page.all('img')) == 1 + 3 + 1 + 3
    assert sum(table.get('class') == 'numbers' for table in page.all('table')) == 8
    assert '1234' in page.text and 'suppressed' in page.text and '-0.000' not in page.text


def points(page, title, run, x):
    """Returns the numbers of a run's line in a plot of the page's data: (x, y)."""
    pairs = zip(page.data[title][x], page.data[title][run], strict=True)
    places, values = zip(*((place, y) for place, y in pairs if y is not None), strict=True)
    return list(places), np.array(values)


def test_curves_are_those_of_each_run(runs, page):
    for folder, name in zip(runs, ['A · a', 'B · lower', 'C · <i>propo… & long'], strict=True):
        run = results.load(folder / 'proposals.npz')
        areas = [metrics.area(boxes) for boxes in run.gt_boxes]
        overlaps = metrics.measure(run.proposals, run.gt_boxes, areas)
        curves = metrics.curves(overlaps, [1, 2, 3, 5, 10, 15])
        for title, key in (
            ('Average recall over number of proposals', 'AR/count'),
            ('Recall at IoU 0.5 over number of proposals', 'recall@0.5/count'),
        ):
            counts, recalls = points(page, title, name, 'proposals per image')
            assert counts == [1, 2, 3, 5, 10, 15]
            np.testing.assert_allclose(recalls, curves[key], atol=1e-6)
        ious, recalls = points(page, 'Recall over IoU, first 15 proposals', name, 'IoU')
        np.testing.assert_allclose(ious, curves['iou'], atol=1e-6)
        np.testing.assert_allclose(recalls, curves['recall@100/iou'], atol=1e-6)


def test_losses_are_those_of_each_run_and_title(runs, page):
    for name, rate in (('A · a', default.get_config().optim.learning_rate), ('B · lower', 0.5)):
        for title, start in (
            ('Total loss over steps, as logged (thin) and smoothed', 3),
            ('Objectness loss over steps', 2 + rate),
            ('Box loss over steps', 1 - rate),
        ):
            steps, losses = points(page, title, name, 'step')
            assert steps == list(range(1, 60))
            np.testing.assert_allclose(losses, start / np.arange(1, 60), rtol=1e-5)
    pictures = [image['src'] for image in page.all('img')]
    assert len(set(pictures)) == len(pictures) == 8


def test_misses_are_those_of_each_run(page):
    title = 'Objects missed at IoU 0.5 by the first 100 proposals, by reason'
    for name, clipped in (('A · a', 1), ('B · lower', 5)):
        reasons, counts = points(page, title, name, 'reason')
        found = dict(zip(reasons, counts, strict=True))
        assert found == {'suppressed': 1234, 'beyond_limit': 400 - clipped, 'clipped': clipped}
    (picture,) = (i['src'] for i in page.all('img') if i['alt'].startswith('Objects missed'))
    texts = ''.join(texts_of(base64.b64decode(picture.partition('base64,')[2])))
    assert '1, A · a' in texts and '5, B · lower' in texts


def test_differences_are_drawn_as_the_table_has_them(runs, page):
    found = compare.compare(compare.tally(compare.load(runs)))
    title = 'Difference from A · a with 95 % intervals, filled where beyond noise'
    for folder, name in zip(runs[1:], ['B · lower', 'C · <i>propo… & long'], strict=True):
        for key in ('difference', 'low', 'high'):
            figures, values = points(page, title, f'{name} {key}', 'figure')
            expected = [found[str(folder)][figure][key] for figure in figures]
            np.testing.assert_allclose(values, expected, atol=1e-6)
            assert 'AR@10' in figures and 'top10_max_iou' in figures


def test_the_misses_of_another_evaluation_are_left_out_and_told(tmp_path, capsys):
    both = [finish_run(write_run(tmp_path / name, 12)) for name in 'ab']
    evaluation = json.loads((both[1] / 'evaluation.json').read_text())
    (both[1] / 'evaluation.json').write_text(json.dumps(evaluation | {'step': 5}))
    page = page_of(both)
    said = (
        f'note: {both[1]}: its evaluation.json is of step 5 on drawn, its proposals.npz of step 7'
    )
    assert said in capsys.readouterr().out
    assert 'Without those of B · b: its evaluation.json is of step 5 on drawn' in page.text
    title = 'Objects missed at IoU 0.5 by the first 100 proposals, by reason'
    assert page.data[title].keys() == {'reason', 'A · a'}


def test_many_runs_are_counted_and_their_chances_told(tmp_path, page):
    assert '4 differences are looked at' in page.text and 'one in twenty' in page.text
    assert {'A · a, B · lower, C · <i>propo… & long'} == {page.inside['h1']}
    page = page_of([write_run(tmp_path / f'run{i}', 12 + i, images=9) for i in range(9)])
    assert page.inside['h1'] == '9 runs' and 'The table goes on to the right' in page.text


def test_what_a_run_lacks_is_left_out_and_told(page):
    assert page.text.count('C · <i>propo… & long') >= 5  # its name is shortened, and escaped
    for name in ('evaluation.json', 'metrics.jsonl', 'config.json'):
        assert f'for want of a readable {name}: C · ' in page.text


def test_runs_of_proposals_alone_make_a_page(tmp_path):
    both = [write_run(tmp_path / name, 12) for name in 'ab']
    (both[1] / 'metrics.jsonl').write_text('[]\n3\n')
    (both[1] / 'evaluation.json').write_text('{')
    page = page_of(both)
    assert len(page.all('img')) == 1 + 3 and 'Mind.' in page.text
    assert 'AR@10: A · a and B · b have the same 0.' in page.text
    assert 'Look next at more images (evaluation.images) and at other seeds.' in page.text
    assert 'for want of a readable metrics.jsonl: A · a, B · b.' in page.text


def test_runs_without_objects_or_proposals_make_a_page(tmp_path):
    empty = [write_run(tmp_path / name, 1, images=0) for name in 'ab']
    page = page_of(empty)
    assert 'Too few proposals were kept' in page.text and page.all('img') == []


@pytest.mark.parametrize('other', ['x.html', 'x.json'])
def test_the_output_says_where(runs, tmp_path, capsys, other):
    out = tmp_path / other
    page_of(runs, f'--output={out}')
    last = capsys.readouterr().out.splitlines()[-1]
    place = out if other == 'x.html' else runs[0].parent / 'compare.html'
    assert last == f'{place} shows them side by side' and out.stat().st_size > 500


@pytest.mark.parametrize(
    ('output', 'complaint'),
    [('x.txt', 'not the name of an .html or a .json file'), ('none/x.html', 'cannot be written')],
)
def test_an_output_that_cannot_be_is_one_line(runs, tmp_path, capsys, output, complaint):
    words = f'--runs={runs[0]},{runs[1]}', f'--output={tmp_path / output}'
    assert main.main(['--mode=compare', *words]) == 1
    said = capsys.readouterr().err
    assert complaint in said and output in said and said.count('\n') == 1


def test_the_same_names_are_told_apart():
    assert list(compare_page.labels(['x/a', 'y/a']).values()) == ['A · a', 'B · a']
    assert len(compare_page.labels(['a' * 99])['a' * 99]) <= compare_page.LONGEST + 4
    many = compare_page.labels([f'{i}/a' for i in range(30)])
    assert len(set(many.values())) == 30


def test_config_changes_name_every_key():
    found = compare_page.config_changes([{'a': 1, 'b': 2}, {'a': 1, 'b': 3, 'c': 0}])
    assert found == {'b': [2, 3], 'c': [None, 0]}


def tallies(*means):
    """Returns runs of 40 images with a figure of these means, and noise of each its own."""
    random = np.random.default_rng(0)
    return {
        name: {'AR@100': bootstrap.Tally(random.normal(mean, 0.1, 40), np.ones(40))}
        for name, mean in zip('abc', means, strict=False)
    }


def test_lead_is_against_every_other_run():
    found = tallies(0.3, 0.5, 0.49)
    ahead, others = compare_page.lead(found, 'AR@100')
    assert ahead in 'bc' and list(others)[1] == 'a'
    for run, row in others.items():
        own, best = found[run]['AR@100'].value, found[ahead]['AR@100'].value
        assert row['value'] == own and row['difference'] == own - best < 0
    assert compare.is_beyond(others['a'])


def test_findings_say_noise_seeds_and_steps():
    said = compare_page.findings(
        tallies(0.3, 0.27),
        {'a': 'A · a', 'b': 'B · b'},
        {'seed': [0, 1]},
        {'a': None, 'b': None},
        {1000, 20},
    )
    words = [sentence for sentence, _ in said]
    assert 'but within noise' in words[0] and not said[0][1]
    assert words[1] == 'The configs differ in the seed alone: what differs here is chance.'
    assert words[2].endswith('unequal numbers of steps: 20 and 1,000.')
    assert words[3].startswith('Look next at more images') and 'instead of 40' in words[3]
