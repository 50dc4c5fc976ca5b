"""Prepare VOC and COCO as a directory of TensorFlow Datasets, in array_record files.

It is made without TensorFlow: with a ShardBasedBuilder, in a folder beside it that is renamed.
"""

import collections
import contextlib
import functools
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np

from rpn_jax import console
from rpn_jax.data.check import forget, lint
from rpn_jax.data.prepare import official
from rpn_jax.data.records import Kind
from rpn_jax.data.sources.voc import listed
from rpn_jax.errors import InputError
from rpn_jax.files import locked, read_json, write_json

logger = logging.getLogger(__name__)
NAME, VERSION = 'detection', '1.0.0'
SHARD = 2048  # images of a file: 200 to 350 MiB
INFO, METADATA = 'dataset_info.json', 'metadata.json'
BOXES = (
    '(ymin, xmin, ymax, xmax) over (height, width, height, width) of the image; half open: '
    'corners in pixels count from 0, and xmax - xmin is the width of the box'
)


@functools.cache
def library():
    """Imports TensorFlow Datasets, which takes a second, and silences its bars."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import tensorflow_datasets
    tensorflow_datasets.disable_progress_bar()
    return tensorflow_datasets


def directory(dataset, path):
    """Returns the folder of a Dataset's prepared directory at `path`."""
    return path / NAME / dataset.config / VERSION


def prepared_splits(directory):
    """Returns what INFO says of the splits in a prepared directory, by name; {} without one."""
    info = directory / INFO
    try:
        return {split['name']: split for split in read_json(info)['splits']}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{info}: damaged ({error}); remove {directory}') from error


def prepare(dataset, splits, path, *, on_bad='error'):
    """Prepares those of a Dataset's splits that its directory lacks; returns the directory.

    The images come from unpacked folders at `path`, which is absolute, from the official archives,
    or from their hosts; splits that need no more than what is there are prepared with them. Raises
    InputError where that fails, and leaves nothing that the next start would trust.
    """
    final, folder = directory(dataset, path), path / NAME
    if set(splits) <= prepared_splits(final).keys():
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = f'waiting for the process that prepares {folder}'
        with locked(folder / f'.{dataset.config}.lock', waiting) as is_held:
            prefix = f'.{dataset.config}.preparing-'
            for stale in folder.glob(f'{prefix}*') if is_held else ():
                shutil.rmtree(stale)
            with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as work:
                _prepare(dataset, splits, path, Path(work), on_bad)
    except OSError as error:
        raise InputError(
            f'{final}: cannot be prepared ({error}); path needs a folder to write to; raw data may '
            'be linked there'
        ) from error
    return final


def _prepare(dataset, splits, path, work, on_bad):
    final = directory(dataset, path)
    present = prepared_splits(final)  # also by the process that was waited for
    if set(splits) <= present.keys():
        return

    def needed(split):
        """Returns the archives of those releases that have no unpacked folder."""
        releases = [r for r in dataset.prepared[split] if not official.unpacked(r, path)]
        return {name for release in releases for name in release.archives}

    names = set().union(*(needed(split) for split in splits if split not in present))
    archives = official.archives(sorted(names), path)
    splits = [s for s in dataset.prepared if s not in present and needed(s) <= names]
    content, left_out = collections.defaultdict(list), collections.defaultdict(list)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        left_out |= read_json(final / METADATA)['left_out']
    for split in splits:
        left_out.pop(split, None)  # of a preparation that was stopped at its end
        for release in dataset.prepared[split]:
            folder = official.unpacked(release, path)
            keywords = folder or official.unpack(release, archives, work / 'raw')
            _check_trainval(release, keywords)
            source = official.open_release(release, keywords)
            checked = lint(source, on_bad)
            if not folder:
                forget(source)
            content[split].append((release, checked))
            if count := len(source.records) - len(checked.records):
                note = f'{release.folder}: {count} of {len(source.records)} images left out'
                left_out[split].append(f'{note} when it was prepared')
                logger.info(f'{dataset.config} {split}: {left_out[split][-1]}')
    logger.info(f'preparing {final}: {", ".join(splits)}')
    _write(dataset.config, content, left_out, work)
    _publish(directory(dataset, work), final)


def _check_trainval(release, keywords):
    """Raises InputError where trainval is not train and val together, as which it is prepared."""
    lists = keywords['path'] / 'ImageSets/Main'
    whole, *halves = (lists / f'{split}.txt' for split in ('trainval', 'train', 'val'))
    is_known = release.is_voc and release.split != 'test' and whole.is_file()
    if is_known and all(map(Path.is_file, halves)):
        if set(listed(whole)) != set().union(*map(listed, halves)):
            raise InputError(
                f'{whole}: not the images of train and val together, as in VOC; set '
                f"source='voc' and path={str(keywords['path'])!r}"
            )


def _write(config, content, left_out, work):
    """Writes splits with TFDS into the folder work."""
    tfds = library()
    total = sum(len(source.records) for parts in content.values() for _, source in parts)
    with console.counter(total, 'prepared') as advance:
        shards = {
            split: [
                functools.partial(_examples, *part, start, advance)
                for part in parts
                for start in range(0, len(part[1].records), SHARD)
            ]
            for split, parts in content.items()
        }
        builder = _builder_class()(data_dir=work, config=config)
        builder.shards = shards
        builder.info.metadata.update(boxes=BOXES, left_out=left_out)
        builder.download_and_prepare(
            file_format='array_record',
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )


def _examples(release, source, start, advance):
    """Yields (key, example) of a shard's images."""
    bbox = library().features.BBox
    for position in range(len(source.records))[start : start + SHARD]:
        record = source.records[position]
        height, width = record.size
        file_name = Path(source.files.names[position]).name
        objects = [
            {
                'bbox': bbox(*map(float, (y0 / height, x0 / width, y1 / height, x1 / width))),
                'is_difficult': bool(kind == Kind.DIFFICULT),
                'is_crowd': bool(kind == Kind.CROWD),
                'label': label,
            }
            for (x0, y0, x1, y1), kind, label in zip(
                record.boxes.astype(float), record.kind, record.classes, strict=True
            )
        ]
        yield (
            position,
            {
                'image': source.files.load(position),
                'image/filename': file_name if release.is_voc else record.image_id,
                'image/folder': release.folder,
                'image/id': record.image_id,
                'height': height,
                'width': width,
                'objects': objects,
                'remarks': list(record.remarks),
            },
        )
        advance()


@functools.cache
def _builder_class():
    tfds = library()
    features = tfds.features
    text = features.Text()
    objects = {
        'bbox': features.BBoxFeature(doc=BOXES),
        'is_crowd': features.Scalar(np.bool_),
        'is_difficult': features.Scalar(np.bool_),
        'label': text,
    }
    example = {
        'image': features.Image(doc='the file as it was, not encoded again'),
        'image/filename': text,
        'image/folder': text,
        'image/id': text,
        'height': features.Scalar(np.int32),
        'width': features.Scalar(np.int32),
        'objects': features.Sequence(objects),
        'remarks': features.Sequence(text),
    }

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self):
            """Does not ask TFDS's servers."""

    class Detection(tfds.core.ShardBasedBuilder, skip_registration=True):
        """Detection data sets as rpn_jax prepares them."""

        name = NAME
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [
            tfds.core.BuilderConfig(name=dataset.config) for dataset in official.DATASETS.values()
        ]

        def _info(self):
            return Info(
                builder=self,
                description=f'Objects with boxes {BOXES}.',
                features=features.FeaturesDict(example),
                metadata=tfds.core.MetadataDict(),
            )

        def _shard_iterators_per_split(self, dl_manager):
            return self.shards

        def _log_download_bytes(self):
            """Prints nothing."""

        _log_download_done = _log_download_bytes

    return Detection


def _publish(made, final):
    """Renames a prepared directory to `final`, or adds its splits to the directory there.

    Only splits that its INFO lists are used, so INFO is written last.
    """
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(made, final)
        return
    info = read_json(made / INFO)
    splits = prepared_splits(final) | prepared_splits(made)
    for file in made.iterdir():
        if file.name != INFO:
            os.replace(file, final / file.name)
    write_json(final / INFO, info | {'splits': list(splits.values())}, indent=2)
