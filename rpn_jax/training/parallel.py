"""Copy the training state to every device, split batches among them, and pmap the update.

Of several processes each has its rows of a batch on its own devices; pmap joins them.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rpn_jax.errors import InputError
from rpn_jax.models.resnet import AXIS


def parallel(update, devices=None, *, keeps_state=False):
    """Returns update(state, batch) pmapped over devices, by default all those of all processes.

    It takes batches [N, ..], sharded or not: the rows of this process. The state has no axis of
    devices; it is given away, unless keeps_state.
    """
    devices = list(devices or everywhere(jax.local_devices()))
    own, given = len(here(devices)), () if keeps_state else 0
    mapped = jax.pmap(
        update, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=given, devices=devices
    )

    def sharded(state, batch):
        return mapped(state, shard(batch, own))

    sharded.mapped = mapped  # for its cost analysis and its number of compilations
    return sharded


def everywhere(devices):
    """Returns the devices of all processes, process by process; of one, those given."""
    if jax.process_count() == 1:
        return list(devices)
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def here(devices):
    """Returns those of the devices that are of this process."""
    return [device for device in devices if device.process_index == jax.process_index()]


def replicate(state, devices):
    """Copies the state to all devices of this process, as pmap wants it.

    With another sharding it would compile twice.
    """
    return jax.device_put(state, sharding(here(devices)))


def shard_batch(batch, devices):
    """Puts this process's rows of a batch, split or not, on its devices, as pmap wants them."""
    own = here(devices)
    return jax.device_put(shard(batch, len(own)), sharding(own, AXIS))


def sharding(devices, *axes):
    """Returns the sharding that pmap wants: leading axes split among the devices, or copies."""
    mesh = Mesh(np.asarray(devices), (AXIS,))  # the name must be pmap's
    return NamedSharding(mesh, PartitionSpec(*axes))


def shard(batch, devices):
    """Splits a global batch [N, ...] into [devices, N / devices, ...]; one that is split passes.

    Without `size` the images fill their canvas, without `index` they are counted from 0. Features
    are split already.
    """
    if 'image' in batch:
        *lead, height, width, _ = np.shape(batch['image'])
        batch = {
            'index': np.arange(np.prod(lead), dtype=np.int32).reshape(lead),
            'size': np.broadcast_to(np.float32([height, width]), (*lead, 2)),
        } | batch
    if np.ndim(batch['index']) == 2:
        return batch
    check_divides(len(batch['index']), devices)
    rows = devices, len(batch['index']) // devices
    return {
        name: value if name == 'features' else np.reshape(value, (*rows, *np.shape(value)[1:]))
        for name, value in batch.items()
    }


def check_divides(images, devices):
    """Raises InputError where the images of a batch cannot be divided among the devices."""
    if images % devices:
        raise InputError(
            f'batch_size: {images} images cannot be divided among {devices} devices; take a '
            f'multiple of {devices}'
        )
