"""Pictures for the report: the images with the best and the worst proposals, and missed objects.

`split` is an evaluate.Split, in pixels of the canvas; boxes are in those of the original image,
whose `size` a picture names, as it may be shrunk.
"""

from rpn_jax.data.batches import scale
from rpn_jax.data.images import shrunk
from rpn_jax.evaluation import metrics, misses

EXTREMES = 9  # best and as many worst images; three stand in a row of the report
PIXELS = 2**22  # most of a picture, which the report shows much smaller
EXAMPLES = 3  # pictures of missed objects, for each reason


def extremes(split, kept):
    """Returns pictures of the images whose objects ten proposals cover best, and worst."""
    pairs = zip(kept, split.gt_boxes, strict=True)
    best = [metrics.best_overlaps(p.boxes[p.valid], o, 10) for p, o in pairs]
    ranked = sorted((i for i, b in enumerate(best) if len(b)), key=lambda i: -best[i].mean())
    count = min(EXTREMES, len(ranked) // 2)
    rows = [('best', i) for i in ranked[:count]]
    rows += [('worst', i) for i in ranked[::-1][: count or len(ranked)]]
    return [_proposals(split, i, group, kept[i], best[i]) for group, i in rows]


def missed_objects(split, missed):
    """Returns what the report shows of each misses.Miss; a few of each reason have a picture."""
    pictures, rows = dict.fromkeys(misses.REASONS, 0), []
    for miss in missed:
        box = split.source.records[miss.position].boxes[miss.row]
        row = {'reason': miss.reason, 'size': box[2:] - box[:2], 'picture': None}
        row |= {'overlap': miss.lost.overlap, 'rank': miss.lost.rank, 'anchor': miss.lost.anchor}
        row |= {'removed_by': miss.removed_by, 'remover': miss.remover and miss.remover.rank}
        if pictures[miss.reason] < EXAMPLES:
            pictures[miss.reason] += 1
            row['picture'] = _missed(split, miss)
        rows.append(row)
    return rows


def _missed(split, miss):
    """Returns the picture of a missed object, with the box that was lost and its remover."""
    record = split.source.records[miss.position]
    factor = scale(record, split.sizes[miss.position])
    remover, rows = miss.remover, [miss.row]
    if miss.removed_by == 'another_object':
        rows.append(remover.row)
    return {
        'image': shrunk(split.source.read(miss.position), PIXELS),
        'size': record.size,
        'image_id': record.image_id,
        'group': miss.reason,
        'boxes': record.boxes[rows],
        'lost': miss.lost.box / factor,
        'remover': None if remover is None else remover.box / factor,
    }


def _proposals(split, position, group, proposals, best):
    record = split.source.records[position]
    valid = int(proposals.valid[:10].sum())
    return {
        'image': shrunk(split.source.read(position), PIXELS),
        'size': record.size,
        'image_id': record.image_id,
        'group': group,
        'boxes': record.boxes,
        'kind': record.kind,
        'proposals': proposals.boxes[:valid] / scale(record, split.sizes[position]),
        'scores': proposals.scores[:valid],
        'covered': float(best.mean()),
        'recalled': int((best >= 0.5).sum()),
        'objects': len(best),
    }
