"""Time and memory: what is too much is found, with what to change."""

import numpy as np
import pytest
from config_cases import config_of

from rpn_jax import data
from rpn_jax.data.canvases import Canvases
from rpn_jax.diagnosis import cost_checks

SECONDS = {'input': 0.01, 'step': 1.0, 'compile': 10.0, 'image evaluated': 0.1}
GIB = 2**30
MEMORY = {'state': GIB, 'step memory': 2 * GIB, 'images': 0, 'kept maps': 0, 'device': 16 * GIB}


def plan(count, images=60):
    """Returns Canvases of so many shapes."""
    shapes = tuple((32 * n, 32) for n in range(1, count + 1))
    return Canvases(shapes, np.arange(images) % count, np.full((images, 2), 32))


@pytest.mark.parametrize(
    ('count', 'levels'), [(1, []), (8, []), (12, ['warning']), (30, ['error'])]
)
def test_many_canvases_are_named_with_the_rarest(count, levels):
    found = [*cost_checks.canvases(plan(count), None)]
    assert [each.level for each in found] == levels
    assert all(f'{count} canvases for 60 images' in each.evidence for each in found)
    assert all('(32, 32): ' in each.evidence for each in found if count == 30)


@pytest.mark.parametrize(
    ('changes', 'seconds', 'canvases', 'begins'),
    [
        ({}, {}, 1, []),
        ({}, {'input': 0.9}, 1, []),
        ({}, {'input': 1.5}, 1, ['Training waits']),
        ({}, {'input': 9.0}, 1, ['Training waits']),
        ({}, {'compile': 60.0}, 4, ['Compiling takes']),
        ({'evaluation__every': 10, 'evaluation__images': 200}, {}, 1, ['Evaluations take more']),
        ({'evaluation__every': 10}, {}, 1, ['Evaluations take more']),  # all 200 images
        ({'model__frozen_stages': 3}, {}, 1, ['The frozen backbone makes the same maps']),
    ],
)
def test_what_takes_the_time_is_found(changes, seconds, canvases, begins):
    config = config_of(**{'evaluation__every': 0} | changes)
    options = data.options(**config.data)
    times = SECONDS | seconds
    found = [*cost_checks.findings(config, times, MEMORY, plan(canvases), options, 200)]
    assert [each.finding[: len(b)] for each, b in zip(found, begins, strict=True)] == begins
    assert all((each.level == 'error') == (seconds.get('input') == 9.0) for each in found)


@pytest.mark.parametrize(
    ('size', 'levels', 'remedy'),
    [
        ({}, [], ''),
        ({'step memory': 12 * GIB}, ['warning'], 'batch_size'),
        ({'step memory': 40 * GIB}, ['error'], 'batch_size'),
        ({'kept maps': 40 * GIB}, ['error'], 'features.keep = "disk"'),
        ({'step memory': 40 * GIB, 'device': 0}, [], ''),  # nobody knows the device's
    ],
)
def test_a_step_that_does_not_fit_the_memory_is_found(size, levels, remedy):
    found = [*cost_checks.too_large(MEMORY | size, config_of())]
    assert [each.level for each in found] == levels
    assert all(remedy in each.remedy for each in found)


def test_the_forecast_adds_the_batches_that_wait_and_the_kept_maps():
    features = config_of(features__keep='device', features__gigabytes=2.0).features
    memory = cost_checks.forecast(5, 7, 10, features)
    device = cost_checks.capacity()
    assert memory == dict(zip(MEMORY, (5, 7, 30, 2e9, device), strict=True)) and device > GIB


@pytest.mark.parametrize(('keep', 'backends'), [('device', 'cpu gpu'), ('host', 'cpu'), ('', '')])
def test_maps_that_are_kept_count_where_they_are(monkeypatch, keep, backends):
    features = config_of(features__keep=keep).features
    for backend in ('cpu', 'gpu'):
        monkeypatch.setattr(cost_checks.jax, 'default_backend', lambda backend=backend: backend)
        kept = cost_checks.forecast(5, 7, 10, features)['kept maps']
        assert kept == (8e9 if backend in backends.split() else 0)


@pytest.mark.parametrize(
    ('seconds', 'frozen', 'canvases', 'word'),
    [
        ({'input': 2.0}, True, 1, 'the input'),
        ({}, True, 1, 'the cache'),
        ({}, False, 12, 'fewer canvases'),
        ({}, False, 3, 'padding'),
        ({}, False, 1, 'smaller images'),
    ],
)
def test_the_advice_names_what_to_change_first(seconds, frozen, canvases, word):
    options = data.options(**config_of().data)
    shown = cost_checks.advice(SECONDS | seconds, plan(canvases), options, frozen)
    assert word in shown.replace(' is padding', ' padding') and 'First:' in shown
