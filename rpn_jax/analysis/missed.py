"""Missed objects for the eye: how many for each reason, of which size and shape, and examples.

A missed object is a dict: `reason` (of rpn_jax.misses), `size` [2] width and height in pixels of
the original image, and `picture` (as in report.write_report, or None where none was kept).
"""

from rpn_jax.metrics import AREAS
from rpn_jax.misses import REASONS

SHAPES = {'wide': (0, 1 / 1.5), 'even': (1 / 1.5, 1.5), 'tall': (1.5, float('inf'))}
EXAMPLES = 4  # pictures of each reason


def rows(misses):
    """Counts misses by reason: a list of dicts with `reason`, `text`, `count`, `share`, `groups`.

    groups are {'small', 'medium', 'large', 'wide', 'even', 'tall': count}. Reasons that nothing was
    missed for are left out.
    """
    found = []
    for reason, text in REASONS.items():
        own = [miss for miss in misses if miss['reason'] == reason]
        if own:
            share = len(own) / len(misses)
            found.append(
                {'reason': reason, 'text': text, 'count': len(own), 'share': share}
                | {'groups': _groups(own)}
            )
    return found


def examples(misses):
    """Returns those misses that have a picture: for each reason the first few."""
    chosen = []
    for reason in REASONS:
        own = [miss for miss in misses if miss['reason'] == reason and miss['picture'] is not None]
        chosen += own[:EXAMPLES]
    return chosen


def _groups(misses):
    areas = [width * height for width, height in (miss['size'] for miss in misses)]
    ratios = [height / width for width, height in (miss['size'] for miss in misses)]
    return {
        name: sum(low <= value < high for value in values)
        for values, bins in ((areas, AREAS), (ratios, SHAPES))
        for name, (low, high) in bins.items()
    }
