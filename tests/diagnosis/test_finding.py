"""Findings are ranked by level, then from the root of the trouble."""

from rpn_jax.diagnosis.finding import ANCHORS, RATE, TRUTH, Finding, ranked


def finding(level, cause):
    return Finding(level, f'{level} {cause}.', 'a figure', 'another', 'config.x = 1', cause)


def test_the_worst_and_most_upstream_comes_first():
    mixed = [finding('info', TRUTH), finding('error', RATE), finding('warning', ANCHORS)]
    order = ranked([*mixed, finding('error', TRUTH)])
    assert [each.level for each in order] == ['error', 'error', 'warning', 'info']
    assert order[0].cause == TRUTH
    assert list(order[0].entry()) == ['level', 'finding', 'evidence', 'expected', 'remedy']
    line = f'error {TRUTH}. Found: a figure; usual: another. config.x = 1'
    assert order[0].line() == line
