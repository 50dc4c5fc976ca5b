"""Missed objects for a report: counts by reason, size and shape, and captions of examples.

A missed object is a dict, as gallery.missed_objects makes it: `reason` (of misses.REASONS), `size`
[2] width and height in pixels of the original image, `overlap`, `rank` and `anchor` of the box that
was lost (misses.Lost), and, where NMS suppressed that, `remover`, the rank of the proposal that
did, and `removed_by`, what that proposal covers (of misses.REMOVERS), else None. `picture` is None,
or a dict: `image` [H, W, 3] uint8 RGB, which may be shrunk, `size` (height, width) of the original,
`image_id`, `group` (the reason), `boxes` [1 or 2, 4], the object and, if it is another, the one
that the remover covers, `lost` [4] and `remover` [4] or None, in pixels of the original.
"""

from rpn_jax.evaluation.metrics import AREAS
from rpn_jax.evaluation.misses import REASONS, REMOVERS

SHAPES = {'wide': (0, 1 / 1.5), 'square': (1 / 1.5, 1.5), 'tall': (1.5, float('inf'))}

_LOST = {  # the box that was lost, by reason
    'no_anchor': 'best anchor',
    'no_positive_anchor': 'best anchor',
    'no_decoded_box': 'best box',
    'clipped': 'before clipping',
    'below_pre_nms': 'box {number:,} by score',
    'suppressed': 'box {number:,} by score',
    'beyond_limit': 'proposal {number:,}',
}
_COVERED = dict(zip(REMOVERS, ('the same object', 'another object', 'background'), strict=True))


def rows(misses):
    """Counts misses by reason: a list of dicts with `reason`, `text`, `count`, `share`, `groups`.

    groups are {'small', 'medium', 'large', 'wide', 'square', 'tall': count}. Reasons that no object
    was missed for are left out.
    """
    table = []
    for reason, text in REASONS.items():
        own = [miss for miss in misses if miss['reason'] == reason]
        if own:
            row = {'reason': reason, 'text': text, 'count': len(own), 'groups': _groups(own)}
            table.append(row | {'share': len(own) / len(misses)})
    return table


def caption(miss):
    """Returns a line on the box that was lost: rank, anchor, IoU, and what suppressed it."""
    box = _LOST[miss['reason']].format(number=miss['rank'] + 1)
    text = f'{box} (anchor: {miss["anchor"]}): IoU {miss["overlap"]:.2f}'
    if miss['removed_by'] is None:
        return text
    covered = _COVERED[miss['removed_by']]
    return f'{text}, suppressed by proposal {miss["remover"] + 1:,}, which covers {covered}'


def removers(misses):
    """Counts what the proposals that suppressed boxes cover, as a text; '' where there are none."""
    counts = {name: sum(miss['removed_by'] == name for miss in misses) for name in REMOVERS}
    return ', '.join(f'{count} cover {_COVERED[name]}' for name, count in counts.items() if count)


def _groups(misses):
    areas = [width * height for width, height in (miss['size'] for miss in misses)]
    ratios = [height / width for width, height in (miss['size'] for miss in misses)]
    return {
        name: sum(low <= value < high for value in values)
        for values, bins in ((areas, AREAS), (ratios, SHAPES))
        for name, (low, high) in bins.items()
    }
