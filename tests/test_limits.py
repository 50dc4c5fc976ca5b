"""Limits: every number that would fail late, or train nonsense, is refused by name."""

import math

import pytest

from configs import default
from rpn_jax import limits
from rpn_jax.errors import InputError


def changed(key, value):
    """Returns the default config with one number changed, of the type it had."""
    config = default.get_config()
    section, _, name = key.rpartition('.')
    parent = config[section] if section else config
    parent[name] = type(parent[name])(value)
    return config


def test_the_default_is_within_its_limits():
    limits.check(default.get_config())


@pytest.mark.parametrize('key', limits.LIMITS)
def test_bounds_are_allowed_and_what_lies_beyond_is_refused(key):
    least, greatest = limits.LIMITS[key]
    limits.check(changed(key, least))
    with pytest.raises(InputError, match=f'config key {key}: '):
        limits.check(changed(key, least - 1))
    if math.isfinite(greatest):
        limits.check(changed(key, greatest))
        with pytest.raises(InputError, match=f'config key {key}: '):
            limits.check(changed(key, greatest * 2 + 1))


def test_nan_is_out_of_bounds():
    with pytest.raises(InputError, match=r'optim\.learning_rate: nan'):
        limits.check(changed('optim.learning_rate', math.nan))
