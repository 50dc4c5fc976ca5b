"""From a data set's images and annotations to resized, flipped, padded uint8 batches."""

from rpn_jax.data.split import (  # noqa: F401
    Options,
    canvases_of,
    evaluation_batches,
    open_split,
    options,
    plan,
    train_batch,
    train_batches,
)
