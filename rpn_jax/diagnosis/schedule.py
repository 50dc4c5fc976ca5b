"""The learning rate over a run, as its schedule makes it; nothing is trained."""

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.diagnosis.statistics import evenly
from rpn_jax.training.optim import make_optimizer

MOST = 2_000_000  # steps at most whose learning rate is computed
POINTS = 2000  # that are kept
ROWS = 21  # that are printed
BAR = 40  # characters of the highest rate


def rates(optim, steps, points=MOST):
    """Returns steps [n] int, counted from 1, and their learning rates [n] float64.

    optim are keywords of make_optimizer; the steps are evenly spaced, at most `points` of them.
    """
    _, rate = make_optimizer(**optim, steps=steps)
    at = evenly(steps, points)
    computed = jax.jit(jax.vmap(lambda step: jnp.float32(rate(step))))(jnp.asarray(at, jnp.int32))
    return at + 1, np.asarray(computed, np.float64)


def summary(steps, rates):
    """Returns what schedule.json holds: the rates, the highest and its step, the last, the mean."""
    highest, kept = int(np.argmax(rates)), evenly(len(steps), POINTS)
    return {
        'steps': steps[kept].tolist(),
        'learning_rates': [float(f'{rate:.6g}') for rate in rates[kept]],
        'highest': float(f'{rates[highest]:.6g}'),
        'highest_at': int(steps[highest]),
        'last': float(f'{rates[-1]:.6g}'),
        'mean': float(f'{rates.mean():.6g}'),
    }


def lines(steps, rates):
    """Returns lines of text: the learning rate along the run, with bars, and what is notable."""
    width, top = max(len(f'{steps[-1]:,}'), len('step')), max(rates.max(), 1e-30)
    shown = [f'{"step":>{width}}  learning rate']
    for i in evenly(len(steps), ROWS):
        bar = '#' * round(BAR * rates[i] / top)
        shown.append(f'{steps[i]:>{width},}  {rates[i]:<13.3g}  {bar}'.rstrip())
    whole = summary(steps, rates)
    return [
        *shown,
        f'highest {whole["highest"]:.3g} at step {whole["highest_at"]:,}, mean {whole["mean"]:.3g},'
        f' last {whole["last"]:.3g}',
    ]
