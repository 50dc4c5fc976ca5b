"""The table of figures of a report: its rows, the headline, and the best blind baselines."""

from rpn_jax.evaluation.metrics import LIMITS
from rpn_jax.report.plots import BOUNDS


def headline_count(evaluation):
    """Returns the number of proposals of the headline: 100, or the most that AR is known at."""
    known = [n for n in LIMITS if n <= 100 and f'AR@{n}' in evaluation['proposals']]
    return max(known, default=100)


def best_blind(evaluation, figure):
    """Returns (name, value) of the best baseline that never sees the image, or (None, None)."""
    values = {
        name: figures[figure]
        for name, figures in evaluation['baselines'].items()
        if name not in BOUNDS and figures.get(figure) is not None
    }
    name = max(values, key=values.get, default=None)
    return name, values.get(name)


def rows(evaluation):
    """Returns the table's rows as a list of dicts, group by group, the best of a group first.

    Each has `name`, `group` ('proposals', 'ablation', 'blind' or 'bound'), `figures` {figure: float
    or None} and `intervals` {figure: (low, high) or None}.
    """
    own, intervals = {'proposals': evaluation['proposals']}, evaluation.get('intervals', {})
    groups = {'proposals': (own, {'proposals': intervals.get('proposals', {})})}
    groups['ablation'] = evaluation.get('parts', {}), intervals.get('parts', {})
    for group, is_bound in (('blind', False), ('bound', True)):
        sets = {n: f for n, f in evaluation['baselines'].items() if (n in BOUNDS) == is_bound}
        groups[group] = sets, intervals.get('baselines', {})
    headline = f'AR@{headline_count(evaluation)}'
    return [
        {'name': name, 'group': group, 'figures': sets[name], 'intervals': known.get(name, {})}
        for group, (sets, known) in groups.items()
        for name in sorted(sets, key=lambda name: -(sets[name].get(headline) or 0))
    ]
