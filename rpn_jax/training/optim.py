"""Optimizers: weight decay outside norms, momentum, and frozen parameters that cost nothing."""

import jax
import optax

from rpn_jax.errors import InputError
from rpn_jax.models.rpn import is_norm
from rpn_jax.training.schedules import make_schedule


def make_optimizer(
    *,
    optimizer='sgd',
    learning_rate=0.001,
    momentum=0.9,
    weight_decay=5e-4,
    frozen=None,
    steps=0,
    skip_nonfinite=0,
    **schedule,
):
    """Returns (optax chain, schedule): weight decay, momentum or Adam, then the learning rate.

    Weight decay enters the gradient before the momentum, as in torch.optim, and leaves the scale
    and bias of norms as they are. `frozen` maps parameters to a tree of booleans; frozen parameters
    get no update and no optimizer state. skip_nonfinite is what the training loop does where a
    gradient is not finite, and changes nothing here. The other keywords are those of make_schedule,
    whose function step -> learning rate is returned beside the chain.
    """
    rate = make_schedule(learning_rate=learning_rate, steps=steps, **schedule)
    directions = {
        'sgd': _computed_once(optax.trace(momentum)) if momentum else optax.identity(),
        'adam': optax.scale_by_adam(b1=momentum),
    }
    if optimizer not in directions:
        raise InputError(f'optimizer: {optimizer!r} is not one of {tuple(directions)}')
    chain = optax.chain(
        optax.add_decayed_weights(weight_decay, decayed),
        directions[optimizer],
        optax.scale_by_learning_rate(rate),
    )
    if frozen is None:
        return chain, rate

    # Not optax.selective_transform: it takes a function for a mask that is true everywhere.
    def labels(params):
        return jax.tree.map(lambda fixed: 'frozen' if fixed else 'learning', frozen(params))

    return optax.partition({'learning': chain, 'frozen': optax.set_to_zero()}, labels), rate


def decayed(params):
    """Returns a tree like params of booleans: True where weight decay applies, outside norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_norm(path), params)


def _computed_once(transform):
    """Returns the transform, its state computed before its updates are used.

    XLA would compute the momentum twice, for the state and for the step, and so could put neither
    in the memory of the old one.
    """

    def update(updates, state, params=None):
        return jax.lax.optimization_barrier(transform.update(updates, state, params))

    return optax.GradientTransformation(transform.init, update)
