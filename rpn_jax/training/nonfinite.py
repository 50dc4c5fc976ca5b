"""A step whose loss or gradient is not finite: where the numbers grow, and a file of its batch."""

import io
import math
import shlex
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.data.normalization import normalise
from rpn_jax.errors import InputError, disk_line
from rpn_jax.files import DAMAGED, make_folder, read_npz, write_atomically
from rpn_jax.models.fpn import Affine
from rpn_jax.models.resnet import FrozenBatchNorm, stage_of

FOLDER = 'nonfinite'  # in a workdir
MOST = 10  # files in it: of the first such steps, and of the newest
MEMBERS = {  # of a file: dtype, of which files need only the kind, and shape, -1 any length
    'step': ('int64', ()),
    'image_ids': ('U', (-1,)),
    'image_loss': ('float32', (-1,)),
    'parts': ('U', (-1,)),
    'largest': ('float32', (-1, -1)),
    'image': ('uint8', (-1, -1, -1, 3)),
    'boxes': ('float32', (-1, -1, 4)),
    'kind': ('int32', (-1, -1)),
    'size': ('float32', (-1, 2)),
}
PARTS = 'pixels', 'stem', 'conv2', 'conv3', 'conv4', 'conv5', 'fpn', 'head'
OF_BATCH = 'image', 'boxes', 'kind', 'size'


class Kept(NamedTuple):
    """What a file holds of a step that was not finite."""

    step: int
    image_ids: list[str]
    image_loss: np.ndarray  # [N]
    largest: dict[str, np.ndarray]  # of each part of the network, in order, [N]
    batch: dict[str, np.ndarray]  # its OF_BATCH, as data.batches.collate makes them


def make_largest(model, pixels):
    """Returns largest(variables, batch) -> {part: [N] the largest activations of each image}.

    The parts are 'pixels', normalised by the Pixels, 'stem', 'conv2', .., 'fpn' and 'head'; NaN is
    that of a part with a number that is not finite, of which a ReLU on a CPU would make 0. Batch
    norm takes its running statistics.
    """

    def is_map(module, method):
        return method == '__call__' and not isinstance(module, FrozenBatchNorm | Affine)

    def of_image(variables, row):
        inputs = normalise(row['image'][None], row['size'][None], pixels)
        options = {'mutable': ['intermediates'], 'capture_intermediates': is_map}
        _, found = model.apply(variables, inputs, **options)
        maps = {'pixels': [inputs]}
        for path, x in jax.tree_util.tree_leaves_with_path(found['intermediates']):
            parts = (_part_of(getattr(key, 'key', '')) for key in path)
            if part := next(filter(None, parts), ''):
                maps.setdefault(part, []).append(x)
        # Not jnp.maximum of them: on CPUs it may lose NaN.
        return {part: jnp.stack(list(map(_largest, own))) for part, own in maps.items()}

    @jax.jit
    def largest(variables, rows):
        return jax.lax.map(lambda row: of_image(variables, row), rows)

    def of_batch(variables, batch):
        found = largest(jax.device_get(variables), {key: batch[key] for key in ('image', 'size')})
        return {part: np.asarray(found[part]).max(1) for part in PARTS if part in found}

    return of_batch


def _largest(x):
    return jnp.where(jnp.isfinite(x).all(), jnp.abs(x).max(), jnp.nan).astype(jnp.float32)


def _part_of(name):
    """Returns the part that a module of this name belongs to, '' where it is of none."""
    if stage := stage_of(name):
        return 'stem' if stage == 1 else f'conv{stage}'
    return name if name in PARTS else ''


def line(largest, rows):
    """Returns the largest activations of each part over these rows, as text."""
    values = {part: float(each[rows].max()) for part, each in largest.items()}
    return ', '.join(f'{part} {number(value)}' for part, value in values.items())


def number(value):
    """Writes a number with three digits, one that is not finite in words."""
    return f'{value:.3g}' if math.isfinite(value) else 'not finite'


def keep(workdir, kept):
    """Writes what is kept of a step into the workdir; returns a text that says where it is.

    Of more than MOST steps the first ones and this one stay.
    """
    folder = Path(workdir) / FOLDER
    path = folder / f'step_{kept.step}.npz'
    values = [np.float32(x) for x in kept.largest.values()]
    arrays = {'step': np.int64(kept.step), 'image_ids': np.array(kept.image_ids, 'U')}
    arrays |= {'image_loss': np.float32(kept.image_loss), 'parts': np.array(list(kept.largest))}
    arrays |= {'largest': np.stack(values, 1)} | {key: kept.batch[key] for key in OF_BATCH}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    try:
        make_folder(folder)
        write_atomically(path, file.getvalue())
        others = sorted(
            {*folder.glob('step_*.npz')} - {path}, key=lambda each: (len(each.name), each)
        )
        for other in others[MOST - 1 :]:
            other.unlink()
    except OSError as error:
        return f'its batch is not kept ({disk_line(error)})'
    folder, path = shlex.quote(str(workdir)), shlex.quote(str(path))
    return f'look at its batch: --mode=inspect --workdir={folder} --batch={path}'


def read(path):
    """Returns the Kept of a file that keep wrote; raises InputError for any other."""
    try:
        arrays = read_npz(path, MEMBERS)
        ids, parts = arrays['image_ids'].tolist(), arrays['parts'].tolist()
        shapes = {len(arrays[key]) for key in ('image_loss', 'largest', *OF_BATCH)} | {len(ids)}
        if len(shapes) > 1 or not ids or arrays['largest'].shape[1] != len(set(parts)):
            raise ValueError('arrays of different lengths')
        if arrays['boxes'].shape[1] != arrays['kind'].shape[1] or not 1 <= arrays['step'] < 2**31:
            raise ValueError('boxes and kinds, or a step, that no batch has')
    except DAMAGED as error:
        what = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise InputError(f'--batch={path}: not a batch that a run has kept ({what})') from error
    return Kept(
        step=int(arrays['step']),
        image_ids=ids,
        image_loss=arrays['image_loss'],
        largest=dict(zip(parts, arrays['largest'].T, strict=True)),
        batch={key: arrays[key] for key in OF_BATCH},
    )


def compare_lines(path, kept, image_ids, batch):
    """Returns lines of text that compare a file's step with the batch that the data give today.

    kept is the Kept of the file at path, image_ids are those of the batch. Raises
    InputError where the file is of other images.
    """
    if image_ids != kept.image_ids:
        raise InputError(
            f'--batch={path}: step {kept.step} had the images {", ".join(kept.image_ids)}, with '
            f'this config it has {", ".join(image_ids)}; give the --workdir of its run'
        )
    width = max(map(len, ['image', *image_ids]))
    head = '  '.join(f'{name:>10}' for name in ('loss', *kept.largest))
    lines = [
        f'step {kept.step}: the loss, and the largest activation of each part of the network',
        f'{"image":<{width}}  {head}  as the data are today',
    ]
    for row, image_id in enumerate(image_ids):
        values = [kept.image_loss[row], *(each[row] for each in kept.largest.values())]
        cells = '  '.join(f'{number(value):>10}' for value in values)
        same = all(np.array_equal(own[row], batch[key][row]) for key, own in kept.batch.items())
        lines.append(f'{image_id:<{width}}  {cells}  {"yes" if same else "no"}')
    return lines
