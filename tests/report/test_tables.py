"""The table's rows are grouped and ranked; the headline is what this run has."""

from report_data import all_metrics, report_arguments

from rpn_jax.report import tables

EVALUATION = report_arguments()['evaluation']


def test_rows_are_grouped_and_ranked():
    intervals = {'proposals': {'AR@10': [0.1, 0.2]}, 'parts': {}, 'baselines': {'oracle': {}}}
    parts = {'scores_alone': all_metrics(0.3), 'oracle_scores': all_metrics(0.6)}
    rows = tables.rows(EVALUATION | {'parts': parts, 'intervals': intervals})
    names = {'proposals': ['proposals'], 'ablation': ['oracle_scores', 'scores_alone']}
    names |= {'blind': ['gaussian_boxes', 'random_boxes'], 'bound': ['oracle', 'anchors']}
    expected = [(group, name) for group in names for name in names[group]]
    assert [(row['group'], row['name']) for row in rows] == expected
    assert rows[0]['intervals'] == {'AR@10': [0.1, 0.2]} and rows[3]['intervals'] == {}
    assert rows[1]['figures'] is parts['oracle_scores']


def test_the_headline_is_of_the_most_proposals_and_the_best_baseline_that_is_no_bound():
    assert tables.best_blind(EVALUATION, 'AR@100') == ('gaussian_boxes', 0.2)
    bound = EVALUATION | {'baselines': {'oracle': all_metrics(1.0)}}
    assert tables.best_blind(bound, 'AR@100') == (None, None)
    assert tables.headline_count(EVALUATION) == 100
    assert tables.headline_count({'proposals': {'AR@10': 0.5}}) == 10
    assert tables.headline_count({'proposals': {}}) == 100
