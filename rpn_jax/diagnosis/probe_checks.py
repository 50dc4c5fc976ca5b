"""Checks what the short trainings on one batch show.

Each function yields Findings.
"""

import numpy as np

from rpn_jax.diagnosis import probe as probing
from rpn_jax.diagnosis.finding import LOSS, PROBE, RATE, Finding

ALIKE = 1.3  # times the score of the background: few steps on many anchors leave both low


def findings(probe, config):
    """Yields the Findings on a probe.Probe of a config."""
    if not np.isfinite(probe.overfit.loss[0]):
        what = 'The loss of the untrained network is not finite.'
        yield Finding('error', what, 'step 0', 'a number', 'check the weights', PROBE + 6)
        return
    yield from first_losses(probe, config)
    looks = () if probe.before is None else (balance, dead, collapse)
    for check in (rates, lasting, one_batch, updates, *looks):
        yield from check(probe)


def first_losses(probe, config):
    """Checks the losses before the first step: ln 2, and that of boxes which are not moved."""
    first, look = probe.overfit, probe.before
    has_head = bool(config.model.pretrained) and first.objectness[0] < 0.6
    if not has_head and not 0.55 < first.objectness[0] < 0.9:
        yield Finding(
            'error' if first.objectness[0] > 2 else 'warning',
            'The untrained network is already sure of itself.',
            f'objectness loss {first.objectness[0]:.3g} before the first step',
            'ln 2 = 0.693',
            'config.model.norm, pretrained and data.pixels: activations have another scale',
            PROBE + 3,
        )
    if look is not None and look['box'] > 3 * look['box_at_zero'] > 0:
        yield Finding(
            'error' if look['box'] > 30 * look['box_at_zero'] else 'warning',
            'The untrained network moves boxes wildly.',
            f'box loss {look["box"]:.3g} before the first step, {look["box_at_zero"]:.3g} of '
            'anchors that are not moved',
            'hardly more than that of anchors that are not moved',
            'config.model.norm, pretrained and data.pixels: activations have another scale',
            PROBE + 3,
        )


def rates(probe):
    """Checks where the config's learning rate lies among others, on one batch."""
    ends, base = probing.ends(probe), probe.overfit.loss[0]
    own, best = len(ends) // 2, int(np.argmin(ends))
    gains = base - ends
    shown = (
        f'after {len(probe.rates[0].loss) - 1} steps on one batch the loss {base:.3g} is '
        f'{_loss(ends[own])} at {probe.rates[own].rate:.2g}, and {_loss(ends[best])} at '
        f'{probe.rates[best].rate:.2g}'
    )
    remedy = f'config.optim.learning_rate = {probe.rates[best].rate / 3:.2g}'
    usual = 'a fall not far from that of the best rate'
    if not np.isfinite(ends[own]) or ends[own] > 1.2 * base:
        what = 'The learning rate is too high: the loss grows.'
        yield Finding('error', what, shown, usual, remedy, RATE - 1)
    elif gains[best] > 0.1 * base and gains[own] < 0.03 * gains[best]:
        what = f'The learning rate is too {"low" if best > own else "high"}.'
        level = 'error' if best < own or gains[own] < 0.003 * gains[best] else 'warning'
        yield Finding(level, what, shown, usual, remedy, RATE - 1)


def lasting(probe):
    """Checks that training on several batches does not diverge, and is not near to it."""
    diverging = [trace for trace in probe.lasting if probing.diverges(trace)]
    if not diverging:
        return
    is_own, trace = len(diverging) == 2, diverging[-1]
    worst = np.nanmax(trace.loss)
    what = 'The learning rate is too high: ' + (
        'training diverges.' if is_own else 'training diverges at three times of it.'
    )
    yield Finding(
        'error' if is_own else 'warning',
        what,
        f'at {trace.rate:.2g}, over {len(trace.loss) - 1} steps on different batches, the loss '
        f'goes from {trace.loss[0]:.3g} to {worst:.3g}'
        + ('' if np.isfinite(trace.loss[-1]) else ' and is then not finite'),
        'a loss that falls at three times the rate as well',
        f'config.optim.learning_rate = a {"tenth" if is_own else "third"} of it',
        RATE + (2 if is_own else 0),
    )


def one_batch(probe):
    """Checks that the network learns one batch, the strongest test of all."""
    first = probe.overfit
    base = first.loss[0]
    end = np.min(first.loss[-5:])
    if not probing.is_learnt(first):
        yield Finding(
            'warning' if end <= 0.85 * base else 'error',
            'The network cannot learn even one batch.',
            f'{len(first.loss) - 1} steps at its best rate {first.rate:.2g}: the loss goes '
            f'from {base:.3g} to {_loss(end)}',
            'less than half',
            'mend what is found above first; then config.model.frozen_stages, loss weights',
            PROBE + 5,
        )


def updates(probe):
    """Checks how far a step at the config's learning rate moves the weights."""
    moved = {name: ratio for name, ratio in probe.ratios.items() if ratio > 0}
    if moved and max(moved.values()) < 1e-7:
        shown = ', '.join(f'{name} {ratio:.1e}' for name, ratio in moved.items())
        best = min(probe.rates, key=lambda trace: np.nan_to_num(trace.loss[-1], nan=np.inf))
        yield Finding(
            'warning',
            'A step hardly moves any weight.',
            shown,
            'an update of 1e-5 to 1e-2 of the weights',
            f'config.optim.learning_rate = {best.rate / 3:.2g}',
            RATE - 2,
        )


def balance(probe):
    """Checks that neither loss alone pulls at what both share."""
    pulls = {name: float(value) for name, value in probe.before['gradients'].items()}
    strong, weak = sorted(pulls, key=pulls.get, reverse=True)
    ratio = pulls[strong] / max(pulls[weak], 1e-30)
    if ratio < 30 or pulls[weak] == 0:  # a weight of 0 is another finding
        return
    yield Finding(
        'error' if ratio > 300 else 'warning',
        f'The {strong} loss drowns the {weak} loss: what both share learns one of them.',
        f'their gradients at the maps under the head are as {ratio:.3g} to 1',
        '10 to 1 at most, either way',
        f'config.loss.{weak}_weight higher, {strong}_weight lower; loss.beta = 1 / 9',
        LOSS - 1,
    )


def dead(probe):
    """Checks that the channels of the network are alive before the first step."""
    shares = {name: float(share) for name, share in probe.before['dead'].items()}
    if mostly := {name: share for name, share in shares.items() if share > 0.5}:
        yield Finding(
            'error' if max(mostly.values()) > 0.9 else 'warning',
            'Much of the network is dead: its channels are 0 whatever the image.',
            ', '.join(f'{name} {share:.0%}' for name, share in mostly.items()),
            'a few of a hundred channels',
            'config.model.norm, pretrained and data.pixels: activations have another scale',
            PROBE + 4,
        )


def collapse(probe):
    """Checks that proposals differ, once a batch is learnt: in their scores, and in their sizes."""
    foreground, background = map(float, probe.after['scores'])
    sampled = np.isfinite([foreground, background]).all()  # some anchors of either
    if sampled and not (foreground - background > 0.05 or foreground > ALIKE * background):
        yield Finding(
            'error',
            'The scores of all anchors are alike: objects are not told from background.',
            f'once one batch was learnt, foreground has {foreground:.3f} on average, '
            f'background {background:.3f}',
            'far more for foreground',
            'mend what is found above first; then config.loss.objectness_weight',
            PROBE + 4,
        )
    own, objects = probe.spreads
    if objects > 0.3 and own < 0.2 * objects:
        yield Finding(
            'warning',
            'Proposals have collapsed to one size.',
            f'the deviation of their log size is {own:.3f}, that of the objects {objects:.3f}',
            'about that of the objects',
            'config.anchors.sizes: several; config.loss.box_weight',
            PROBE + 4,
        )


def _loss(value):
    return f'{value:.3g}' if np.isfinite(value) else 'not finite'
