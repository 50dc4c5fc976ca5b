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
from rpn_jax.files import cache_folder, write_json
from rpn_jax.models.resnet import AXIS
from rpn_jax.training.parallel import here, sharding

logger = logging.getLogger(__name__)

PLACES = ('device', 'host', 'disk')
VERSION = 3  # of how maps are computed: those of another on disk are not used


def check(keep, model, resize):
    """Raises InputError where the feature maps of a run cannot be kept as `keep` asks.

    model is the config's section, resize that of its section data.
    """
    if keep not in ('', *PLACES):
        raise InputError(f"keep: {keep!r} is not one of '', {', '.join(map(repr, PLACES))}")
    last = model['last_stage']
    if keep and model['frozen_stages'] < last:
        raise InputError(
            f'features.keep: conv{last} learns, so its maps change; set '
            f'model.frozen_stages={last}, or do without'
        )
    if keep and resize != 'square':
        raise InputError(
            "features.keep: only maps of one shape are kept; set data.resize='square', or do "
            'without'
        )


class Features:
    """The feature maps of a run's training images, as many as fit into a limit.

    Those of an image, one after the other in a flat array of the backbone's dtype, have the number
    2 * position + flip. Called with a batch of TrainBatches(known=..), it puts `features`, a tuple
    of [devices, N / devices, h, w, C], in place of the images, as make_update takes them. Maps are
    computed from their image only, so they do not depend on the batch in which it is first met. The
    settings have passed check; data is the config's section, about is what identity returns.
    """

    def __init__(self, model, variables, source, devices, *, pixels, data, about, keep, gigabytes):
        backbone = {name: {'backbone': tree['backbone']} for name, tree in variables.items()}
        backbone = jax.tree.map(np.array, backbone)  # copies: the update gives its state away
        devices = here(devices)
        self._devices, self._sharding = devices, sharding(devices, AXIS)
        self._variables = [jax.device_put(backbone, device) for device in devices]

        def maps_of(variables, image, size):
            images = normalise(image, size, pixels)
            return model.apply(variables, images, method='backbone_maps')

        def compute(*arguments):
            return jnp.concatenate([x.reshape(-1) for x in maps_of(*arguments)])

        image = np.zeros((1, data['image_size'], data['image_size'], 3), np.uint8)
        arguments = backbone, image, np.zeros((1, 2), np.float32)
        shapes = [x.shape[1:] for x in jax.eval_shape(maps_of, *arguments)]
        ends = np.cumsum([math.prod(shape) for shape in shapes])

        def stack(*flat):
            maps = jnp.split(jnp.stack(flat)[None], ends[:-1], axis=2)
            return [x.reshape(*x.shape[:2], *s) for x, s in zip(maps, shapes, strict=True)]

        self._compute, self._stack = jax.jit(compute), jax.jit(stack)
        like = jax.eval_shape(compute, *arguments)
        size = like.size * like.dtype.itemsize
        self._limit, self._on_device = int(gigabytes * 1e9 / size), keep == 'device'
        self._maps, where = {}, f"the {keep}'s memory"
        if keep == 'disk':
            where = cache_folder() / 'features' / fingerprint(about, backbone, source)
            self._maps = DiskMaps(where, like, 2 * len(source.records), about)
        wanted = len(source.records) * (1 + data['flip'])
        kept = min(wanted, self._limit)
        logger.info(
            f'feature maps: {kept} of {wanted} kept in {where}, {kept * size / 1e9:.2g} GB; '
            f'{len(self._maps)} are there'
        )
        if kept < wanted:
            logger.info(
                f'note: all of them take {wanted * size / 1e9:.3g} GB, more than '
                'features.gigabytes; the others are computed each time they come'
            )

    def known(self, number):
        """Returns the maps of a number, or None: then its image must be read. For any thread."""
        return self._maps.get(number)

    def __call__(self, batch):
        count, devices = len(batch['number']), len(self._devices)
        share = count // devices
        placed = [self._placed(batch, row, row // share) for row in range(count)]
        shards = [self._stack(*placed[i : i + share]) for i in range(0, count, share)]
        features = tuple(
            jax.make_array_from_single_device_arrays(
                (devices, *maps[0].shape[1:]), self._sharding, list(maps)
            )
            for maps in zip(*shards, strict=True)
        )
        rest = {k: v for k, v in batch.items() if k not in ('image', 'number', 'kept')}
        return rest | {'features': features}

    def _placed(self, batch, row, device):
        """Returns the maps of a row on its device; new ones are kept where there is room."""
        number, features = int(batch['number'][row]), batch['kept'][row]
        if features is None:
            features = self.known(number)  # it may have come after the batch was made
        if features is None:
            image, size = (batch[name][row : row + 1] for name in ('image', 'size'))
            features = self._compute(self._variables[device], image, size)
            if number in self._maps or len(self._maps) < self._limit:
                self._put(number, features)
        return jax.device_put(features, self._devices[device])

    def _put(self, number, features):
        try:
            self._maps[number] = features if self._on_device else np.asarray(features)
        except (OSError, MemoryError) as error:
            self._limit = 0
            logger.info(f'note: no more feature maps are kept ({error})')


class DiskMaps:
    """Maps in a folder, memory-mapped: `maps` [count, size] and `checksums` [count], 0 for none.

    A map is used if its checksum is right: a run that dies, or two runs at once, leave maps that
    are made again, none that is wrong.
    """

    def __init__(self, folder, like, count, about):
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / 'about.json', about, indent=2)
            self._maps = self._mapped('maps', (count, *like.shape), like.dtype)
            self._sums = self._mapped('checksums', (count,), np.dtype(np.uint32))
        except OSError as error:
            raise InputError(
                f'{folder}: feature maps cannot be kept there ({error.strerror}); set '
                'RPN_JAX_CACHE to another folder'
            ) from error

    def _mapped(self, name, shape, dtype):
        (self.folder / name).touch()
        return np.memmap(self.folder / name, dtype, 'r+', shape=shape)  # grows, without taking room

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
        # Writing to a mapped file on a full disk would kill the process: room is taken first.
        if hasattr(os, 'posix_fallocate'):  # not on macOS
            for name, size in (('maps', features.nbytes), ('checksums', self._sums.itemsize)):
                with open(self.folder / name, 'r+b') as file:
                    os.posix_fallocate(file.fileno(), number * size, size)
        self._maps[number] = features
        self._sums[number] = _checksum(features)


def _checksum(features):
    return zlib.crc32(features.tobytes()) or 1  # 0 stands for none


def identity(source, model, data, seed):
    """Returns what, beside weights and image files, decides the numbers of a feature map.

    model and data are the config's sections.
    """
    other = 'pretrained', 'pretrained_key', 'init', 'frozen_stages', 'remat', 'conv', 'head_convs'
    other += 'fpn_channels', 'fpn_extra', 'fpn_norm'
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
        turned = source.files.turned.get(position, '')
        digest.update(
            os.fsencode(f'{os.path.abspath(name)}\0{source.files.stamp(position)}\0{turned}')
        )
    return digest.hexdigest()[:16]
