"""Checks the keys of a config that make proposals and measure them: learning does not see these."""

from rpn_jax.diagnosis.finding import MEASURE, TRUTH, Finding

SPLIT = 'path', 'images', 'annotations'  # keys of data that have an eval_ twin


def suppression(config):
    """Checks the IoU above which of two proposals one is dropped."""
    given = config.proposals.nms_iou
    if not 0.3 <= given <= 0.9:
        what = (
            'NMS drops proposals of objects that stand near others: its threshold is too low.'
            if given < 0.3
            else 'NMS leaves many copies of one proposal, which fill the list: its threshold is '
            'too high.'
        )
        yield Finding(
            'error' if given < 0.15 or given > 0.97 else 'warning',
            what,
            f'proposals.nms_iou is {given:g}',
            '0.5 to 0.8',
            'config.proposals.nms_iou = 0.7',
            MEASURE + 1,
        )


def counts(config):
    """Checks how many anchors enter NMS, and how many proposals an image may have."""
    before, after = config.proposals.pre_nms, config.proposals.post_nms
    for name, value, low, least in (('post_nms', after, 10, 30), ('pre_nms', before, 50, 100)):
        if value < least:
            yield Finding(
                'error' if value < low else 'warning',
                'So few proposals of an image are left that most objects have none.'
                if name == 'post_nms'
                else 'So few anchors enter NMS that they are copies of a few boxes.',
                f'proposals.{name} is {value}',
                '300 to 1000' if name == 'post_nms' else '1000 to 6000',
                f'config.proposals.{name} = {1000 if name == "post_nms" else 6000}',
                MEASURE + 2,
            )
    if 100 <= before < after:  # fewer than 100 are the finding above
        yield Finding(
            'warning',
            'Fewer anchors enter NMS than proposals may leave it.',
            f'proposals.pre_nms is {before}, post_nms {after}',
            'six times as many before',
            f'config.proposals.pre_nms = {6 * after}',
            MEASURE,
        )


def held_out(config):
    """Checks that what is evaluated is not what is trained on."""
    keys = config.data
    same = all(keys[f'eval_{key}'] in ('', keys[key]) for key in SPLIT)
    if keys.train_split == keys.eval_split and same:
        yield Finding(
            'error',
            'The evaluation is on the images that are trained on: it measures what was learnt by '
            'heart.',
            f'data.train_split and data.eval_split are both {keys.train_split!r}',
            'images that training never sees',
            'config.data.eval_split = another split',
            TRUTH - 5,
        )


def few_evaluated(config):
    """Checks that an evaluation has enough images for figures that mean something."""
    count = config.evaluation.images
    if 0 < count < 50:
        yield Finding(
            'warning' if count < 20 else 'info',
            'An evaluation has so few images that its figures are mostly chance.',
            f'evaluation.images is {count}',
            'a few hundred, or 0 (all)',
            'config.evaluation.images = 0',
            MEASURE,
        )


CHECKS = suppression, counts, held_out, few_evaluated
