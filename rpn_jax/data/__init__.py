"""From a data set's images and annotations to resized, flipped, padded uint8 batches."""

from rpn_jax.data.split import (  # noqa: F401
    Options,
    check,
    evaluation_batches,
    evaluation_plan,
    open_split,
    plan,
    train_batch,
    train_batches,
    train_plan,
)
