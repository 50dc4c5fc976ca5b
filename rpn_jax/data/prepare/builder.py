"""Prepare VOC and COCO as a directory of TensorFlow Datasets, in array_record files.

It is made without TensorFlow: with a ShardBasedBuilder, in a folder beside it that is renamed.
"""

import contextlib
import functools
import json
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from rpn_jax import console
from rpn_jax.data.check import forget, lint
from rpn_jax.data.prepare import official
from rpn_jax.data.records import Kind
from rpn_jax.errors import InputError
from rpn_jax.files import locked, write_atomically

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
    return Path(path) / NAME / dataset.config / VERSION


def prepared_splits(directory):
    """Returns the names of the splits in a prepared directory; none where there is none."""
    return list(_splits(Path(directory) / INFO))


def prepare(dataset, splits, path, *, on_bad='error'):
    """Prepares those of a Dataset's splits that its directory lacks; returns the directory.

    The images come from unpacked folders at `path`, from the official archives, or from their
    hosts; splits that need no more than what is there are prepared with them. Raises InputError
    where that fails, and leaves nothing that the next start would trust.
    """
    path = Path(path).absolute()  # TFDS joins relative ones twice
    final, folder = directory(dataset, path), path / NAME
    if set(splits) <= set(prepared_splits(final)):
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = f'waiting for the process that prepares {folder}'
        with locked(folder / f'.{dataset.config}.lock', waiting) as is_held:
            present = prepared_splits(final)
            if set(splits) <= set(present):
                return final
            prefix = f'.{dataset.config}.preparing-'
            for stale in folder.glob(f'{prefix}*') if is_held else ():
                shutil.rmtree(stale)
            with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as work:
                missing = [split for split in splits if split not in present]
                _prepare(dataset, missing, present, path, Path(work), on_bad)
    except OSError as error:
        raise InputError(
            f'{final}: cannot be prepared ({error}); path needs a folder to write to; raw data may '
            'be linked there'
        ) from error
    return final


def _prepare(dataset, splits, present, path, work, on_bad):
    def unpacked(split):
        return {each: official.unpacked(each, path) for each in dataset.prepared[split]}

    def needed(split):
        absent = [each for each, keywords in unpacked(split).items() if not keywords]
        return {name for each in absent for name in each.archives}

    names = dict.fromkeys(name for split in splits for name in sorted(needed(split)))
    archives = official.archives(names, path) if names else {}
    splits = [s for s in dataset.prepared if s not in present and needed(s) <= set(names)]
    content, left_out = {}, {}
    for split in splits:
        content[split] = []
        for release, keywords in unpacked(split).items():
            is_temporary = keywords is None
            keywords = keywords or official.unpack(release, archives, work / 'raw')
            _check_trainval(release, keywords)
            source = official.open_release(release, keywords)
            checked = lint(source, on_bad)
            if is_temporary:
                forget(source)
            if count := len(source.records) - len(checked.records):
                note = f'{release.folder}: {count} of {len(source.records)} images left out'
                left_out[split] = [*left_out.get(split, ()), f'{note} when it was prepared']
                logger.info(f'{dataset.config} {split}: {left_out[split][-1]}')
            content[split].append((release, checked, _labels(release, keywords)))
    logger.info(f'preparing {directory(dataset, path)}: {", ".join(splits)}')
    made = _write(dataset.config, content, left_out, work)
    _publish(made, directory(dataset, path))


def _write(config, content, left_out, work):
    """Writes splits with TFDS into the folder work; returns their directory."""
    total = sum(len(source.records) for sources in content.values() for _, source, _ in sources)
    with console.counter(total, 'prepared') as advance:

        def shards(release, source, labels):
            for start in range(0, len(source.records), SHARD):
                positions = range(len(source.records))[start : start + SHARD]
                yield functools.partial(_examples, release, source, labels, positions, advance)

        builder = _builder_class()(data_dir=work, config=config)
        builder.shards = {
            split: [shard for each in sources for shard in shards(*each)]
            for split, sources in content.items()
        }
        builder.info.metadata.update(boxes=BOXES, left_out=left_out)
        builder.download_and_prepare(
            file_format='array_record',
            download_config=library().download.DownloadConfig(try_download_gcs=False),
        )
    return work / NAME / config / VERSION


def _examples(release, source, labels, positions, advance):
    """Yields (key, example) of the images at these positions, which make a shard."""
    bbox = library().features.BBox
    for position in positions:
        record = source.records[position]
        (height, width), names = record.size, labels(record)
        objects = [
            {
                'bbox': bbox(*map(float, (y0 / height, x0 / width, y1 / height, x1 / width))),
                'is_difficult': bool(kind == Kind.DIFFICULT),
                'is_crowd': bool(kind == Kind.CROWD),
                'label': name,
            }
            for (x0, y0, x1, y1), kind, name in zip(
                record.boxes.astype(float), record.kind, names, strict=True
            )
        ]
        file_name = Path(source.files.names[position]).name
        is_voc = release.folder.startswith('VOC')
        example = {
            'image': source.files.load(position),
            'image/filename': file_name if is_voc else record.image_id,
            'image/folder': release.folder,
            'image/id': record.image_id,
            'height': height,
            'width': width,
            'objects': objects,
            'remarks': list(record.remarks),
        }
        yield position, example
        advance()


@functools.cache
def _builder_class():
    tfds = library()
    features = tfds.features

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
            objects = {
                'bbox': features.BBoxFeature(doc=BOXES),
                'is_crowd': features.Scalar(np.bool_),
                'is_difficult': features.Scalar(np.bool_),
                'label': features.Text(),
            }
            texts = 'image/filename', 'image/folder', 'image/id'
            everything = {
                'image': features.Image(doc='the file as it was, not encoded again'),
                **{key: features.Text() for key in texts},
                **{key: features.Scalar(np.int32) for key in ('height', 'width')},
                'objects': features.Sequence(objects),
                'remarks': features.Sequence(features.Text()),
            }
            return Info(
                builder=self,
                description=f'Objects with boxes {BOXES}.',
                features=features.FeaturesDict(everything),
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
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = json.loads((final / METADATA).read_text())['left_out']
        metadata = json.loads((made / METADATA).read_text())
        metadata['left_out'] = before | metadata['left_out']
        (made / METADATA).write_text(json.dumps(metadata))
    info = json.loads((made / INFO).read_text())
    splits = _splits(final / INFO) | {split['name']: split for split in info['splits']}
    for file in made.iterdir():
        if file.name != INFO:
            os.replace(file, final / file.name)
    write_atomically(final / INFO, json.dumps(info | {'splits': list(splits.values())}, indent=2))


def _splits(info):
    """Returns the splits of an INFO by name."""
    try:
        return {split['name']: split for split in json.loads(info.read_text())['splits']}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{info}: damaged ({error}); remove {info.parent}') from error


def _check_trainval(release, keywords):
    """Raises InputError where trainval is not train and val together, as which it is prepared."""
    lists = {
        split: keywords['path'] / 'ImageSets/Main' / f'{split}.txt'
        for split in ('trainval', 'train', 'val')
    }
    if release.split not in lists or not all(map(Path.is_file, lists.values())):
        return
    ids = {
        split: {
            line.split()[0]
            for line in path.read_text(errors='replace').splitlines()
            if line.strip()
        }
        for split, path in lists.items()
    }
    if ids['trainval'] != ids['train'] | ids['val']:
        raise InputError(
            f'{lists["trainval"]}: not the images of train and val together, as in VOC; set '
            f"source='voc' and path={str(keywords['path'])!r}"
        )


def _labels(release, keywords):
    """Returns the function record -> names of its objects' classes."""
    if release.folder.startswith('VOC'):
        folder = keywords['path'] / 'Annotations'

        def names(record):
            root = ElementTree.parse(folder / f'{record.image_id}.xml').getroot()
            return [(item.findtext('name') or '').strip() for item in root.findall('object')]

        return names
    folder = Path(keywords.get('annotations') or keywords['path'] / 'annotations')
    content = json.loads((folder / f'instances_{release.split}.json').read_text('utf-8'))
    classes = {}
    with contextlib.suppress(KeyError, TypeError):  # nothing is trained on classes
        classes = {entry['id']: str(entry['name']) for entry in content['categories']}
    images = {int(entry['id']): entry['file_name'] for entry in content['images']}
    labels = {name: [] for name in images.values()}
    for entry in content['annotations']:
        # A damaged annotation belongs to no image that is left.
        wrong = KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError
        with contextlib.suppress(*wrong):
            name, label = images[int(entry['image_id'])], classes.get(entry.get('category_id'), '')
            if float(entry['bbox'][2]) and float(entry['bbox'][3]):  # the reader drops the empty
                labels[name].append(label)

    def names(record):  # two images of one file have mixed theirs
        own = labels[record.image_id]
        return own if len(own) == len(record.boxes) else [''] * len(record.boxes)

    return names
