"""The learning-rate range test: trains while the rate grows, to see where the loss falls.

Smith 2017, Cyclical Learning Rates for Training Neural Networks, section 3.3. Here the rate grows
exponentially, from far too low until the loss grows, so that nothing has to be known beforehand.
"""

from typing import NamedTuple

import jax
import numpy as np

from rpn_jax.console import counter
from rpn_jax.diagnosis.probe import at_rate, with_rate
from rpn_jax.errors import InputError
from rpn_jax.training.parallel import replicate
from rpn_jax.training.step import init_state, make_update

LOWEST, HIGHEST = 1e-6, 10.0  # learning rates that are tried
STEPS = 140  # from one to the other; a factor of 1.12 each
DECAY = 0.9  # of the moving average of the losses
DIVERGED = 4.0  # times the lowest loss, at which the test ends
FIRST_STEPS = 20  # first steps, at whose rates nothing is learnt: their losses show the noise
FALLEN = 0.1  # of the way from their mean to the lowest loss, at which it has begun to fall
DEVIATIONS = 2.0  # standard deviations of these by which a loss must fall at least
MARGIN = 10.0  # by which the rate of the lowest loss is divided: by then it has nearly diverged


class RangeTest(NamedTuple):
    """The losses of a training whose learning rate grows, one of a step."""

    rates: np.ndarray  # [n]
    losses: np.ndarray  # [n] as they are, NaN where not finite
    smooth: np.ndarray  # [n] their moving average


def measure(model, optim, tensors, batches, *, seed, devices, **rules):
    """Returns the RangeTest of a network.

    optim are keywords of make_optimizer, of which the rate and the schedule play no part; batches
    are STEPS of those that make_update takes, rules its other keywords. It ends where the averaged
    loss is DIVERGED times the lowest. Raises InputError where the
    first loss is not finite.
    """
    optimizer = with_rate(model, optim)
    state = replicate(init_state(model, optimizer, seed, tensors), devices)
    update = make_update(model, optimizer, seed=seed, devices=devices, **rules)
    rates, losses = np.geomspace(LOWEST, HIGHEST, STEPS), []
    with counter(STEPS, 'tried', 'learning rates') as advance:
        for rate, batch in zip(rates, batches, strict=True):
            state, metrics = update(at_rate(state, replicate(np.float32(rate), devices)), batch)
            losses.append(float(jax.device_get(metrics['loss'])))
            smooth = moving_average(losses)
            if not smooth[-1] <= DIVERGED * np.min(smooth):  # nor is NaN
                break
            advance()
    if not np.isfinite(losses[0]):
        raise InputError(
            'the loss is not finite before anything is learnt; the doctor looks for the reason'
        )
    losses = np.where(np.isfinite(losses), losses, np.nan)
    return RangeTest(rates[: len(losses)], losses, smooth)


def moving_average(losses):
    """Returns the exponential moving average [n] of losses, each with those before it."""
    total, weight, means = 0.0, 0.0, []
    for loss in losses:
        total, weight = DECAY * total + loss, DECAY * weight + 1
        means.append(total / weight)
    return np.array(means)


def summary(measured):
    """Returns what lr_range.json holds: the losses, where they fall, and rates to train with.

    'falls_from' is the rate at which the loss has begun to fall, 'lowest_at' that of the lowest
    loss, 'diverges_at' that where the test ended, if it did; 'suggested' has `learning_rate`, and
    for a cyclical schedule `low_factor` of it. It is None where no loss fell.
    """
    rates, smooth = measured.rates, measured.smooth
    lowest, ended = int(np.nanargmin(smooth)), len(rates) < STEPS
    quiet = measured.losses[:FIRST_STEPS]
    first, noise = np.nanmean(quiet), np.nanstd(quiet)
    fall = first - smooth[lowest]
    falls = fall > max(0.1 * first, DEVIATIONS * noise)
    above = np.flatnonzero(smooth[: lowest + 1] > first - FALLEN * fall)
    begun = min(int(above[-1]) + 1, lowest) if len(above) else 0
    highest = rounded(rates[lowest] / MARGIN)
    low = float(np.clip(rounded(rates[begun] / highest), 0.01, 0.5))
    return {
        'learning_rates': [float(f'{rate:.4g}') for rate in rates],
        'losses': [float(f'{loss:.6g}') if np.isfinite(loss) else None for loss in measured.losses],
        'falls_from': rounded(rates[begun]) if falls else None,
        'lowest_at': rounded(rates[lowest]) if falls else None,
        'lowest_loss': float(f'{smooth[lowest]:.4g}'),
        'diverges_at': rounded(rates[-1]) if ended else None,
        'suggested': {'learning_rate': highest, 'low_factor': low} if falls else None,
    }


def rounded(number):
    """Returns a number with two digits."""
    return float(f'{number:.1e}')


def lines(summary, given):
    """Returns lines of text on a summary: where the loss falls, and what to set.

    given is the learning rate that a config has.
    """
    if not summary['suggested']:
        return ['the loss falls at no learning rate; the doctor looks for what else is wrong']
    ended = summary['diverges_at']
    after = f'grows {DIVERGED:g}-fold by {ended:g}' if ended else f'does not diverge by {HIGHEST:g}'
    rate, low = summary['suggested'].values()
    where, word = 'lies where the loss falls and may stay', 'or'
    if not summary['falls_from'] <= given <= summary['lowest_at']:
        side = 'below' if given < summary['falls_from'] else 'above'
        where, word = f'lies {side} the rates at which the loss falls', 'to'
    return [
        f'the loss falls from a learning rate of {summary["falls_from"]:g} on, is lowest at '
        f'{summary["lowest_at"]:g}, and {after}',
        f'the config has {given:g}, which {where} (the test is right to an order of magnitude)',
        f'{word} train with: --config.optim.learning_rate={rate:g}',
        f'or in cycles:  --config.optim.schedule=cyclical --config.optim.learning_rate={rate:g} '
        f'--config.optim.low_factor={low:g}',
    ]
