"""The page of a comparison names the run ahead, what the runs differ in, and what it lacks."""

import base64
import json

import numpy as np
import pytest
from report_data import (
    compared_runs,
    files_of,
    finish_run,
    parsed,
    texts_of,
    whole_comparison,
    write_comparison,
    write_run,
)

import main
from configs import default
from rpn_jax.evaluation import bootstrap, compare, metrics, results
from rpn_jax.report import compare_page

NAMES = ['A · a', 'B · lower', 'C · <i>propo… & long']
MISSES = 'Objects missed at IoU 0.5 by the first 100 proposals, by reason'


def page_of(path):
    """Returns the page of runs, parsed, with the numbers of its plots by title."""
    page = parsed(path)
    page.data = {each['title']: each['columns'] for each in files_of(page).values()}
    assert len(page.data) == len(page.all('img'))
    return page


@pytest.fixture(scope='module')
def page():
    return page_of(whole_comparison())


def assert_line(page, title, run, expected):
    """Checks the points {x: y} of a run's line in a plot, by the page's data."""
    x, *_ = page.data[title]
    pairs = zip(page.data[title][x], page.data[title][run], strict=True)
    assert {x: y for x, y in pairs if y is not None} == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_page_names_the_run_ahead_what_differs_and_what_a_run_lacks(page):
    for text in (
        *(
            'AR@10: B · lower is ahead with 0.',
            'beyond the noise of the images',
            '▲ +',
            'Left out, because a run',
        ),
        'The configs differ in 2 keys: data.path, optim.learning_rate. The difference cannot',
        '76% of the objects that B · lower misses have the same reason: NMS suppresses',
        *('40 images', '120 objects', 'step 7', '1234', 'suppressed', 'differences: where nothing'),
        *(f'no readable {n}: C · ' for n in ('evaluation.json', 'metrics.jsonl', 'config.json')),
    ):
        assert text in page.text
    assert 'AR@100' in page.text.split('Left out')[1] and '-0.000' not in page.text
    assert page.inside['h1'] == ', '.join(NAMES)
    assert page.text.count(NAMES[2]) >= 5  # its name is shortened, and escaped


def test_differences_are_those_of_the_comparison(page):
    compared = compare.compare(compare.tally(compare.load(compared_runs())))
    title = 'Difference from A · a with 95 % intervals, filled where beyond noise'
    for name, row in list(zip(NAMES, compared.values(), strict=True))[1:]:
        text = '{value:.3f}▲ {difference:+.3f} [{low:+.3f}, {high:+.3f}]'
        assert compare.is_beyond(row['AR@10'])
        assert text.format(**row['AR@10']) in page.text
        assert {'AR@10', 'top10_max_iou'} <= set(page.data[title]['figure'])
        for key in ('difference', 'low', 'high'):
            expected = {figure: row[figure][key] for figure in page.data[title]['figure']}
            assert_line(page, title, f'{name} {key}', expected)


def test_curves_losses_and_misses_are_those_of_each_run(page):
    titles = {
        'AR/count': 'Average recall over number of proposals',
        'recall@0.5/count': 'Recall at IoU 0.5 over number of proposals',
        'recall@100/iou': 'Recall over IoU, first 15 proposals',
    }
    for folder, name in zip(compared_runs(), NAMES, strict=True):
        run = results.load(folder / 'proposals.npz')
        areas = [metrics.area(boxes) for boxes in run.gt_boxes]
        overlaps = metrics.measure(run.proposals, run.gt_boxes, areas)
        curves = metrics.curves(overlaps, [1, 2, 3, 5, 10, 15])
        for key, title in titles.items():
            xs = curves[key.split('/')[1]]
            assert_line(page, title, name, dict(zip(xs, curves[key], strict=True)))
    rates = default.get_config().optim.learning_rate, 0.5
    for name, rate, clipped in zip(NAMES, rates, (1, 5), strict=False):
        for title, start in (
            ('Total loss over steps, as logged (thin) and smoothed', 3),
            ('Objectness loss over steps', 2 + rate),
            ('Box loss over steps', 1 - rate),
        ):
            assert_line(page, title, name, {step: start / step for step in range(1, 60)})
        counts = {'suppressed': 1234, 'beyond_limit': 400 - clipped, 'clipped': clipped}
        assert_line(page, MISSES, name, counts)
    pictures = [image['src'] for image in page.all('img')]
    assert len(set(pictures)) == len(pictures) == 8
    (picture,) = (i['src'] for i in page.all('img') if i['alt'].startswith('Objects missed'))
    texts = ''.join(texts_of(base64.b64decode(picture.partition('base64,')[2])))
    assert '1, A · a' in texts and '5, B · lower' in texts


def test_the_command_writes_the_page_and_names_misses_of_another_evaluation(tmp_path, capsys):
    runs = [finish_run(write_run(tmp_path / name, 12, images=9)) for name in 'ab']
    evaluation = json.loads((runs[1] / 'evaluation.json').read_text())
    (runs[1] / 'evaluation.json').write_text(json.dumps(evaluation | {'step': 5}))

    def compared(output):
        code = main.main(['--mode=compare', f'--runs={runs[0]},{runs[1]}', f'--output={output}'])
        return code, *capsys.readouterr()

    code, out, _ = compared(tmp_path / 'x.json')
    assert code == 0 and f'{tmp_path}/compare.html ' in out.splitlines()[-1]
    assert f'{runs[1]}: its evaluation.json is of step 5 on drawn' in out
    assert json.loads((tmp_path / 'x.json').read_text()).keys() == set(map(str, runs))
    page = page_of(tmp_path / 'compare.html')
    assert 'Without B · b: its evaluation.json is of step 5 on drawn' in page.text
    assert page.data[MISSES].keys() == {'reason', 'A · a'}
    code, out, _ = compared(tmp_path / 'x.html')
    assert code == 0 and f'{tmp_path}/x.html ' in out.splitlines()[-1]
    assert (tmp_path / 'x.html').read_text() == (tmp_path / 'compare.html').read_text()
    for output in ('x.txt', 'none/x.html'):
        code, _, err = compared(tmp_path / output)
        assert code == 1 and output in err and err.count('\n') == 1


def test_runs_of_proposals_alone_and_runs_without_objects_make_a_page(tmp_path):
    many = [write_run(tmp_path / f'run{i}', 12, images=9, kinds=(1, 2, 3)) for i in range(9)]
    (many[1] / 'metrics.jsonl').write_text('[]\n3\n')
    (many[1] / 'evaluation.json').write_text('{')
    page = page_of(write_comparison(many))
    assert page.inside['h1'] == '9 runs' and 'Scroll the table' in page.text
    assert len(page.all('img')) == 1 + 3 and 'Warning.' in page.text
    run = results.load(many[0] / 'proposals.npz')  # of each image's boxes only the first counts
    recall = metrics.average_recall(run.proposals, [boxes[:1] for boxes in run.gt_boxes])
    numbers = page.data['Average recall over number of proposals']
    assert '9 objects' in page.text and numbers['A · run0'][-1] == pytest.approx(recall, rel=1e-5)
    assert 'AR@10: A · run0 and B · run1 have the same 0.' in page.text
    assert 'Evaluate more images (evaluation.images) and train with other seeds.' in page.text
    assert 'no readable metrics.jsonl: A · run0, B · run1,' in page.text
    empty = [write_run(tmp_path / name, 1, images=0) for name in 'ab']
    page = page_of(write_comparison(empty))
    assert 'Too few proposals were kept' in page.text and page.all('img') == []


def test_equal_names_are_told_apart_and_config_changes_name_every_key():
    assert list(compare_page.labels(['x/a', 'y/a']).values()) == ['A · a', 'B · a']
    assert len(compare_page.labels(['a' * 99])['a' * 99]) <= compare_page.LONGEST + 4
    many = compare_page.labels([f'{i}/a' for i in range(30)])
    assert len(set(many.values())) == 30
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


@pytest.mark.parametrize(
    ('changed', 'words'),
    [
        ({'seed': [0, 1]}, 'seed alone'),
        ({'optim.x': ['a', None]}, "differ in one key: optim.x ('a', none)."),
    ],
)
def test_findings_speak_of_noise_configs_and_steps(changed, words):
    names = {'a': 'A · a', 'b': 'B · b'}
    missed, steps = dict.fromkeys('ab'), {1000, 20}
    found = compare_page.findings(tallies(0.3, 0.27), names, changed, missed, steps)
    (noise, good), (config, _), (steps, _), (more, _) = found
    assert 'but within noise' in noise and not good and words in config
    assert '20 and 1,000' in steps and 'instead of 40' in more


@pytest.mark.parametrize(('blind', 'times', 'good'), [(0.1, '3.0', True), (0.3, '0.99', False)])
def test_the_best_run_is_put_beside_the_best_blind_boxes(blind, times, good):
    names, own = {'a': 'A · a', 'b': 'B · b'}, {'gaussian_boxes': {'AR@100': blind}}
    own |= {'quadrants': {'AR@100': 0.05}, 'oracle': {'AR@100': 1.0}, 'random_boxes': {}}
    found = tallies(0.3, 0.2)
    sentences = compare_page.findings(
        found, names, {}, dict.fromkeys('ab'), {8}, {'a': own, 'b': {}}
    )
    ((text, is_good),) = [each for each in sentences if 'never see' in each[0]]
    best = max(each['AR@100'].value for each in found.values())
    assert f'(gaussian_boxes) have AR@100 {blind:.3f}' in text and is_good == good
    assert f'{best / blind:.{len(times) - 2}f} times' in text
