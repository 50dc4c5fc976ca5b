"""Intervals of figures by drawing images with replacement (bootstrap).

A figure is a ratio of sums over images. The resamples of all figures are one product of matrices:
how often each image was drawn, times what each image adds to each sum. With one seed and number of
images the draws are the same, so that two runs on the same images share their resamples.
"""

from typing import NamedTuple

import numpy as np

from rpn_jax.evaluation.metrics import Tally


class Estimate(NamedTuple):
    """A figure and its interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


def estimates(tallies: dict[str, Tally], resamples=1000, seed=0, level=0.95):
    """Returns every figure with its interval: {name: Estimate}.

    The bounds are percentiles over the resamples in which the figure is defined, None without any.
    """
    values = _resampled(tallies, resamples, seed)
    return {name: Estimate(t.value, *_bounds(values[name], level)) for name, t in tallies.items()}


def differences(tallies, others, resamples=1000, seed=0, level=0.95):
    """Returns by how much figures exceed those of another run on the same images.

    {name: Estimate}, with bounds as in estimates. Raises ValueError where the numbers of images
    differ.
    """
    lengths = {len(t.numerator) for both in (tallies, others) for t in both.values()}
    if len(lengths) > 1:
        raise ValueError(f'runs on {sorted(lengths)} images cannot be compared')
    here, there = (_resampled(each, resamples, seed) for each in (tallies, others))
    changes = {}
    for name in tallies:
        both = tallies[name].value, others[name].value
        value = None if None in both else both[0] - both[1]
        changes[name] = Estimate(value, *_bounds(here[name] - there[name], level))
    return changes


def _bounds(values, level):
    values = values[np.isfinite(values)]
    tails = (1 - level) / 2, (1 + level) / 2
    return np.quantile(values, tails).tolist() if len(values) else (None, None)


def _resampled(tallies, resamples, seed):
    """Returns every figure's values [resamples], NaN where it is undefined."""
    if not tallies:
        return {}
    columns = np.stack([part for tally in tallies.values() for part in tally], axis=1)
    images = len(columns)
    if not images:
        return dict.fromkeys(tallies, np.zeros(0))
    rng = np.random.default_rng(seed)
    sums = []
    for start in range(0, resamples, 100):  # a slab of 100 bounds the memory
        rows = min(100, resamples - start)
        drawn = rng.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * images)
        sums.append(counts.reshape(rows, images).astype(np.float64) @ columns)
    above, below = np.concatenate(sums).T.reshape(-1, 2, resamples).swapaxes(0, 1)
    values = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
    return dict(zip(tallies, values, strict=True))
