"""Missed objects for the eye: how many for each reason, of which size and shape, and examples.

A missed object is a dict: `reason` (of rpn_jax.misses), `size` [2] width and height in pixels of
the original image; `overlap` and `rank` of the box that was lost (misses.Lost), and, where NMS
removed it, `remover`, the rank of the proposal that did, and `removed_by`, what that one is on (of
misses.REMOVERS), else None. `picture` is None where none was kept, else a dict: `image` [H, W, 3]
uint8 RGB, `image_id`, `group` (the reason), `boxes` [1 or 2, 4], the object and the one that the
remover is on if it is another, `lost` [4] and `remover` [4] or None, in pixels of the image.
"""

from rpn_jax.evaluation.metrics import AREAS
from rpn_jax.evaluation.misses import REASONS, REMOVERS

SHAPES = {'wide': (0, 1 / 1.5), 'even': (1 / 1.5, 1.5), 'tall': (1.5, float('inf'))}
EXAMPLES = 4  # pictures of each reason

_LOST = {  # what box was lost, by reason
    'no_anchor': 'best anchor: IoU {overlap:.2f}',
    'no_positive_anchor': 'best anchor: IoU {overlap:.2f}',
    'no_decoded_box': 'best box: IoU {overlap:.2f}',
    'clipped': 'before clipping: IoU {overlap:.2f}',
    'below_pre_nms': 'box {number:,} by score: IoU {overlap:.2f}',
    'suppressed': 'box {number:,} by score: IoU {overlap:.2f}',
    'beyond_limit': 'proposal {number:,}: IoU {overlap:.2f}',
}
_ON = dict(zip(REMOVERS, ('the same object', 'another object', 'background'), strict=True))


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


def caption(miss):
    """Says in words what box was lost, how well it fits, where it ranks, and what removed it."""
    said = _LOST[miss['reason']].format(overlap=miss['overlap'], number=miss['rank'] + 1)
    if miss['removed_by'] is None:
        return said
    place = _ON[miss['removed_by']]
    return f'{said}, removed by proposal {miss["remover"] + 1:,}, which is on {place}'


def removers(misses):
    """Says in words what the proposals that removed boxes are on, '' where there are none."""
    counts = {name: sum(miss['removed_by'] == name for miss in misses) for name in REMOVERS}
    return ', '.join(f'{count} on {_ON[name]}' for name, count in counts.items() if count)


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
