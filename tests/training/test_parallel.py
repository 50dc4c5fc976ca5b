"""Placement: images keep their order, and what is placed is what the update wants."""

import jax
import numpy as np
import pytest

from rpn_jax.errors import InputError
from rpn_jax.training import parallel

BATCH = {
    'image': np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3),
    'boxes': np.arange(4 * 2 * 4, dtype=np.float32).reshape(4, 2, 4),
    'index': np.int32([7, 3, 5, 1]),
}


@pytest.mark.parametrize('lead', [(4,), (2, 2)])
def test_a_batch_without_sizes_and_indices_fills_its_canvas(lead):
    image = np.zeros((*lead, 32, 48, 3), np.uint8)
    shards = parallel.shard({'image': image}, 2)
    assert shards['image'].shape == (2, 2, 32, 48, 3)
    np.testing.assert_array_equal(shards['size'], np.broadcast_to([32, 48], (2, 2, 2)))
    np.testing.assert_array_equal(shards['index'], [[0, 1], [2, 3]])
    assert shards['size'].dtype == np.float32 and shards['index'].dtype == np.int32


def test_a_placed_batch_lies_in_order_in_parts_on_its_devices():
    placed = parallel.shard_batch(BATCH, jax.devices()[:2])
    for name, value in BATCH.items():
        np.testing.assert_array_equal(placed[name].reshape(value.shape), value)
        parts = placed[name].addressable_shards
        assert [part.device for part in parts] == jax.devices()[:2]
        np.testing.assert_array_equal(parts[1].data[0], value[2:])


def test_images_that_cannot_be_divided_are_an_error():
    with pytest.raises(InputError, match='^batch_size: 4 images .* 3 devices'):
        parallel.shard_batch(BATCH, jax.devices()[:3])
