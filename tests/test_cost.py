"""What the training step costs, by XLA's own count: a guard that no busy machine can shake."""

import jax
import numpy as np
import pytest
from test_end_to_end import compilations

from experiments import bench_ours

PINNED = '0.10.2'  # the jax whose compiler gave these figures
CASE = bench_ours.Case('train', 50, 'c4', 3, 1, (288, 288), 'float32')  # more cells than samples
FLOPS, BYTES = 34_547_048_448, 2_060_389_888


@pytest.fixture(scope='module')
def step():
    """Returns update, state and batch, the compiled step, and the names of what was compiled."""
    update, state, batch = bench_ours.start(CASE, bench_ours.Ours().arrays(CASE))
    with compilations() as names:
        compiled = update.mapped.lower(state, batch).compile()
    return update, state, batch, compiled, names


@pytest.mark.skipif(jax.__version__ != PINNED, reason=f'the figures are those of jax {PINNED}')
def test_a_step_costs_what_it_did(step):
    costs = step[3].cost_analysis()
    assert costs['flops'] == pytest.approx(FLOPS, rel=0.02)
    assert costs['bytes accessed'] == pytest.approx(BYTES, rel=0.1)


def test_it_compiles_once_and_asks_the_host_for_nothing(step):
    update, state, batch, _, first = step
    place = batch['image'].sharding
    pixels = np.asarray(batch['image'])
    images = [jax.device_put(np.roll(pixels, 8 * n, axis=2), place) for n in range(3)]
    losses = []
    with compilations() as names, jax.transfer_guard('disallow'):
        for image in images:
            state, metrics = update(state, batch | {'image': image})
            losses.append(metrics['loss'])
    assert first == ['jit(_fun)'] and names == []  # what pmap calls it: once for all batches
    assert len(set(map(float, losses))) == 3  # it did look at each
