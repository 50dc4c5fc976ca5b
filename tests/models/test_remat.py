"""Stages that are computed again for their gradients: less is kept, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import SMALL_RESNET, assert_near, random_image, random_variables

from rpn_jax.models import resnet


def test_chains_are_as_long_as_there_are_chains():
    for count in range(1, 40):
        chains = resnet.chains(list(range(count)))
        assert sum(chains, []) == list(range(count))
        longest = max(map(len, chains))
        assert (longest - 1) ** 2 < count <= longest**2 and len(chains) <= longest


def total_of(model, variables):
    """Returns the function (params, images) -> a sum of all outputs, and the outputs."""

    def total(params, images):
        known = {**variables, 'params': params}
        outputs, updated = model.apply(known, images, train=True, mutable=['batch_stats'])
        return sum(jnp.vdot(x, x) for x in outputs.values()), (outputs, updated)

    return total


def test_remat_keeps_less_and_changes_nothing(monkeypatch):
    monkeypatch.setitem(resnet.BLOCKS, 14, (1, 4, 1, 1))
    model = SMALL_RESNET(depth=14, norm='batch', last_stage=3)
    variables = random_variables(model)
    params, images = variables['params'], random_image(shape=(1, 24, 24, 3))
    kept, results = [], []
    for each in (model, model.clone(remat=(2, 3))):
        total = total_of(each, variables)
        _, backward, _ = jax.eval_shape(
            lambda params, images, total=total: jax.vjp(total, params, images, has_aux=True),
            params,
            jax.ShapeDtypeStruct((1, 96, 96, 3), np.float32),
        )
        kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward)))
        results.append(jax.jit(jax.value_and_grad(total, has_aux=True))(params, images))
    assert kept[1] < 0.65 * kept[0]
    (plain, gradients), (again, others) = results
    for one, other in zip(*map(jax.tree.leaves, (plain, again)), strict=True):
        assert_near(other, one, 1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    for one, other in zip(*map(jax.tree.leaves, (gradients, others)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6 * largest)
