"""Programs that tests share, as JAX takes a second to trace a training step."""

import json

import jax


def update_key(config, model, optimizer, devices):
    """Returns what a training step's program follows from, for made_once."""
    parts = 'seed', 'steps', 'model', 'anchors', 'targets', 'loss', 'optim', 'data'
    return json.dumps({name: config[name] for name in parts}, default=dict), tuple(devices)


def predict_key(model, *, proposals, pixels, devices):
    """Returns what the program of a prediction follows from, for made_once."""
    return model, json.dumps(dict(proposals)), str(pixels), tuple(devices)


def made_once(make, key_of):
    """Returns make, which gives arguments of an equal key what it made first.

    Where compilations are counted, everything is made anew.
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
