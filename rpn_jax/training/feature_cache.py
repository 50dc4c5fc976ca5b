"""Feature maps of a frozen backbone: computed once for an image and its mirror image, and kept."""

import hashlib
import json
import logging
import math
import os
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.data.normalization import normalise
from rpn_jax.errors import InputError
from rpn_jax.files import cache_folder, write_atomically
from rpn_jax.models.resnet import AXIS
from rpn_jax.training.parallel import sharding

logger = logging.getLogger(__name__)

PLACES = ('device', 'host', 'disk')
VERSION = 3  # of how maps are computed: those of another on disk are not used


def check(keep, *, frozen_stages, last_stage, resize):
    """Raises InputError where the feature maps of a run cannot be kept as `keep` asks."""
    if keep not in ('', *PLACES):
        known = ', '.join(map(repr, PLACES))
        raise InputError(f"keep: {keep!r} is not one of '', {known}")
    if keep and frozen_stages < last_stage:
        raise InputError(
            f'features.keep: conv{last_stage} learns, so its maps change; set '
            f'model.frozen_stages={last_stage}, or do without'
        )
    if keep and resize != 'square':
        raise InputError(
            "features.keep: only maps of one shape are kept; set data.resize='square', or do "
            'without'
        )


class Features:
    """The feature maps of a run's training images, as many as fit into a limit.

    A map [h, w, C], of the backbone's dtype, has the number 2 * position + flip. Called with a
    batch of TrainBatches(known=..), it puts `features` [devices, N / devices, h, w, C] in place of
    the images, as make_update takes them. A map is computed from its image only, so it does not
    depend on the batch in which it is first met. The settings have passed check.
    """

    def __init__(
        self,
        model,
        variables,
        source,
        devices,
        *,
        keep,
        gigabytes,
        pixels,
        image_size,
        flip,
        identity,
    ):
        backbone = {name: {'backbone': tree['backbone']} for name, tree in variables.items()}
        backbone = jax.tree.map(np.array, backbone)  # copies: the update gives its state away
        self._devices = devices
        self._variables = [jax.device_put(backbone, device) for device in devices]
        self._sharding = sharding(devices, AXIS)

        def compute(variables, image, size):
            images = normalise(image, size, pixels)
            (maps,) = model.apply(variables, images, method='features')
            return maps[0]

        self._compute = jax.jit(compute)
        self._stack = jax.jit(lambda *maps: jnp.stack(maps)[None])
        image = np.zeros((1, image_size, image_size, 3), np.uint8)
        like = jax.eval_shape(compute, backbone, image, np.zeros((1, 2), np.float32))
        self._size = like.size * like.dtype.itemsize
        self._limit, self._keep = gigabytes * 1e9 / self._size, keep
        self._maps = HostMaps() if keep == 'host' else {}
        if keep == 'disk':
            name = fingerprint(identity, backbone, source)
            folder = cache_folder() / 'features' / name
            self._maps = DiskMaps(folder, like, 2 * len(source.records), identity)
        self._describe(len(source.records) * (1 + flip))

    def known(self, number):
        """Returns the map of a number, or None: then its image must be read. For any thread."""
        return self._maps.get(number)

    def __call__(self, batch):
        share = len(batch['number']) // len(self._devices)
        placed = []
        for row, features in enumerate(batch['kept']):
            device = row // share
            if features is None:
                features = self._make(batch, row, device)
            placed.append(jax.device_put(features, self._devices[device]))
        shards = [self._stack(*placed[i : i + share]) for i in range(0, len(placed), share)]
        shape = len(self._devices), *shards[0].shape[1:]
        features = jax.make_array_from_single_device_arrays(shape, self._sharding, shards)
        rest = {k: v for k, v in batch.items() if k not in ('image', 'number', 'kept')}
        return rest | {'features': features}

    def _make(self, batch, row, device):
        """Returns the map of a row, and keeps it where there is room."""
        number = int(batch['number'][row])
        if (known := self.known(number)) is not None:  # it came after the batch was made
            return known
        one = slice(row, row + 1)
        features = self._compute(self._variables[device], batch['image'][one], batch['size'][one])
        if number in self._maps or len(self._maps) + 1 <= self._limit:
            try:
                self._maps[number] = features
            except (OSError, MemoryError) as error:
                self._limit = 0
                logger.info(f'note: no more feature maps are kept ({error})')
        return features

    def _describe(self, wanted):
        """Says how many maps are kept, and where."""
        kept, there = int(min(wanted, self._limit)), len(self._maps)
        where = getattr(self._maps, 'folder', f"the {self._keep}'s memory")
        size = kept * self._size / 1e9
        logger.info(
            f'feature maps: {kept} of {wanted} kept in {where}, {size:.2g} GB; {there} are there'
        )
        if kept < wanted:
            logger.info(
                f'note: all of them take {wanted * self._size / 1e9:.3g} GB, more than '
                'features.gigabytes; the others are computed each time they come'
            )


class HostMaps(dict):
    """Maps in the host's memory."""

    def __setitem__(self, number, features):
        super().__setitem__(number, np.asarray(features))


class DiskMaps:
    """Maps in a folder, memory-mapped: `maps` [count, h, w, C] and `checksums` [count], 0 for none.

    A map is used if its checksum is right: a run that dies, or two runs at once, leave maps that
    are made again, none that is wrong.
    """

    def __init__(self, folder, like, count, about):
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / 'about.json', json.dumps(about, indent=2) + '\n')
            self._maps = self._mapped('maps', (count, *like.shape), like.dtype)
            self._sums = self._mapped('checksums', (count,), np.dtype(np.uint32))
        except OSError as error:
            raise InputError(
                f'{folder}: feature maps cannot be kept there ({error.strerror}); set '
                'RPN_JAX_CACHE to another folder'
            ) from error

    def _mapped(self, name, shape, dtype):
        with open(self.folder / name, 'ab') as file:
            file.truncate(math.prod(shape) * dtype.itemsize)  # what is new takes no room yet
        return np.memmap(self.folder / name, dtype, 'r+', shape=shape)

    def __len__(self):
        return int(np.count_nonzero(self._sums))

    def __contains__(self, number):
        return bool(self._sums[number])

    def get(self, number):
        """Returns the map of a number, or None where there is none, or a damaged one."""
        if number not in self:
            return None
        features = np.array(self._maps[number])
        return features if _checksum(features) == self._sums[number] else None

    def __setitem__(self, number, features):
        features = np.asarray(features)
        # Writing to a mapped file on a full disk would kill the process: room is taken first.
        if hasattr(os, 'posix_fallocate'):  # not on macOS
            with open(self.folder / 'maps', 'r+b') as file:
                os.posix_fallocate(file.fileno(), number * features.nbytes, features.nbytes)
        self._maps[number] = features
        self._sums[number] = _checksum(features)


def _checksum(features):
    return zlib.crc32(features.tobytes()) or 1  # 0 stands for none


def identity(source, *, model, data, seed):
    """Returns what, beside weights and image files, decides the numbers of a feature map.

    model and data are the config's sections.
    """
    other = 'pretrained', 'init', 'frozen_stages', 'remat'
    return {
        'version': VERSION,
        'source': source.name,
        'images': len(source.records),
        'seed': seed if source.files is None else 0,  # of drawn scenes
        'model': {k: v for k, v in model.items() if k not in other},
        'data': {key: data[key] for key in ('image_size', 'pixels', 'mean', 'std')},
        'jax': jax.__version__,
        'device': jax.local_devices()[0].device_kind,
    }


def fingerprint(about, backbone, source):
    """Returns 16 hexadecimal digits for an identity, the weights and the image files."""
    digest = hashlib.sha256(json.dumps(about).encode())
    for leaf in jax.tree.leaves(backbone):
        digest.update(np.ascontiguousarray(leaf).data)
    if source.files is None:
        digest.update(source.read(0).data)
    for position, name in enumerate(source.files.names if source.files else ()):
        digest.update(f'{os.path.abspath(name)}\0{source.files.stamp(position)}\0'.encode())
    return digest.hexdigest()[:16]
