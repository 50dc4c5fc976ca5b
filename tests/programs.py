"""A cache of traced programs: JAX takes a second to trace a training step."""

import json

import jax


def update_key(config, model, optimizer, devices):
    """Returns the cache key of a training step's program."""
    parts = 'seed', 'steps', 'model', 'anchors', 'targets', 'loss', 'optim', 'data'
    return json.dumps({name: config[name] for name in parts}, default=dict), tuple(devices)


def predict_key(model, *, proposals, pixels, devices):
    """Returns the cache key of a prediction's program."""
    return model, json.dumps(dict(proposals)), str(pixels), tuple(devices)


def made_once(make, key_of):
    """Returns make with a cache by key_of its arguments.

    While compilations are counted the cache is not used. It does not know of functions that a test
    patches under a program.
    """
    made = {}

    def once(*args, **keywords):
        if jax.config.jax_log_compiles:
            return make(*args, **keywords)
        key = key_of(*args, **keywords)
        if key not in made:
            made[key] = make(*args, **keywords)
        return made[key]

    return once
