"""Checks the training input as the network gets it: its pixels, its colours, its boxes.

Each function yields Findings.
"""

import numpy as np

from rpn_jax.diagnosis import alignment
from rpn_jax.diagnosis.finding import INPUT, Finding

SWAPPED = 2.5  # standard errors by which images are bluer than red
TINTED = 4  # levels of 255, likewise


def pixels(values, config):
    """Yields a Finding where normalised pixels [n, 3] are not on the scale of the network."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    is_caffe = config.data.pixels == 'caffe'
    low, high, off = (30, 110, 80) if is_caffe else (0.3, 2.0, 1.5)
    if np.all((std >= low) & (std <= high)) and np.all(np.abs(mean) <= off):
        return
    shown = f'mean {_channels(mean)}, deviation {_channels(std)}'
    is_far = np.any(std > 3 * high) or np.any(std < low / 3) or np.any(np.abs(mean) > 3 * off)
    what = 'Pixels do not reach the network on the scale that it expects'
    if not is_caffe and np.any(std > 20):
        what += ': they are 0..255, not normalised'
    yield Finding(
        'error' if is_far else 'warning',
        f'{what}.',
        shown,
        f'a mean within {off:g} of 0, a deviation of {low:g} to {high:g}',
        'config.data.mean = (); config.data.std = ()',
        INPUT + 3,
    )


def colours(means, pretrained):
    """Yields a Finding where images, of mean RGB colours [n, 3], look as if they were BGR.

    Photographs are on average redder than blue, of single ones a quarter is not. Networks that
    learn from nothing do not care.
    """
    tint = means[:, 0] - means[:, 2]
    noise = tint.std() / np.sqrt(len(tint))
    if pretrained and tint.mean() <= -max(TINTED, SWAPPED * noise):
        yield Finding(
            'warning',
            'Red and blue look swapped in the image files: the images are bluer than photographs.',
            f'red minus blue is {tint.mean():.0f} ± {noise:.0f} levels over {len(tint)} images',
            '10 to 25; below 0 for pictures of sea, sky or snow',
            'look at the pictures of the page: where skin is blue, write the files anew as RGB '
            '(cv2 reads and writes BGR)',
            INPUT + 2,
        )


def _channels(values):
    return ', '.join(f'{value:.2f}' for value in values)


def boxes(measured):
    """Yields a Finding where boxes do not lie on objects, with what was done to them if known.

    measured is what alignment.compare returned.
    """
    (own, error, count), (chance, chance_error, _) = (
        measured[way] for way in ('as they are', 'of other images')
    )
    if count < alignment.ENOUGH:
        return
    noise = np.hypot(error, chance_error)
    others = {way: measured[way] for way in alignment.WAYS}
    best = max(others, key=lambda way: np.nan_to_num(others[way][0], nan=-np.inf))
    score, best_error, _ = others[best]
    is_better = score - own > alignment.CLEARLY * np.hypot(error, best_error)
    if own - chance > alignment.CLEARLY * noise and not is_better:
        return
    shown = (
        f'edges along the borders of {count} boxes score {own:.2f}; boxes of other images '
        f'{chance:.2f} (noise {noise:.2f})'
    )
    if is_better and score - chance > alignment.TYPICAL:
        what, shown = f'The boxes are wrong: {UNDONE[best]}.', f'{shown}; {best} {score:.2f}'
    else:
        what = 'The boxes do not lie on objects: they fit their images no better than others’ boxes'
        what += ', as if they were shifted, scaled or shuffled between images.'
    yield Finding(
        'error',
        what,
        shown,
        'well above boxes of other images',
        'python main.py inspect .. shows the boxes; mend the annotations',
        INPUT + 4,
    )


UNDONE = {
    'x and y swapped': 'x and y are swapped',
    'mirrored': 'they are those of the mirror image',
    'upside down': 'they are counted from the bottom',
    'resized once more': 'they were not resized with their images',
    'not resized': 'they were resized twice',
    'as (x, y, width, height)': 'they are (x, y, width, height), read as corners',
}
