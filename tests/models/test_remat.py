"""Stages that are computed again for their gradients: less is kept, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMALL_RESNET, assert_near, random_image, random_variables, shapes_of

from rpn_jax.models import resnet


@pytest.mark.parametrize('count', range(1, 40))
def test_chains_are_as_long_as_there_are_chains(count):
    found = resnet.chains(list(range(count)))
    assert sum(found, []) == list(range(count))
    longest = max(map(len, found))
    assert (longest - 1) ** 2 < count <= longest**2 and len(found) <= longest


def residuals(model, variables):
    """Returns the outputs, the gradients of a weighted sum and the bytes kept for these."""
    stats, x = variables['batch_stats'], random_image(shape=(1, 192, 192, 3))

    @jax.jit
    def forward(params):
        def outputs(params):
            variables = {'params': params, 'batch_stats': stats}
            found, updated = model.apply(variables, x, train=True, mutable=['batch_stats'])
            return sum(jnp.vdot(random_image(1, x.shape), x) for x in found.values()), (
                found,
                updated,
            )

        return jax.vjp(outputs, params, has_aux=True)

    total, backward, found = forward(variables['params'])
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(backward))
    return found, jax.jit(backward)(jnp.ones_like(total))[0], kept


@pytest.mark.parametrize(
    ('norm', 'stages', 'share'), [('frozen', (5,), 0.85), ('batch', (2, 3, 4, 5), 0.65)]
)
def test_remat_keeps_less_and_changes_nothing(norm, stages, share, monkeypatch):
    monkeypatch.setitem(resnet.BLOCKS, 14, (1, 1, 1, 4))
    monkeypatch.setattr(resnet, 'AXIS', None)
    model = SMALL_RESNET(depth=14, norm=norm)
    assert shapes_of(model.clone(remat=stages)) == shapes_of(model)
    variables = random_variables(model)
    found, gradients, kept = residuals(model, variables)
    others = residuals(model.clone(remat=stages), variables)
    assert others[2] < share * kept
    for one, other in zip(*map(jax.tree.leaves, (found, others[0])), strict=True):
        assert_near(other, one, 1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    for one, other in zip(*map(jax.tree.leaves, (gradients, others[1])), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6 * largest)
