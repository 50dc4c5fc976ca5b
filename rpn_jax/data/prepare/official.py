"""PASCAL VOC and COCO as their makers give them out: archives, and what a split needs of them."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rpn_jax import files
from rpn_jax.data.prepare.archives import extract
from rpn_jax.data.sources.coco import coco
from rpn_jax.data.sources.voc import voc
from rpn_jax.errors import InputError

logger = logging.getLogger(__name__)
VOC_HOST = 'http://host.robots.ox.ac.uk/pascal/VOC'
COCO_HOST = 'http://images.cocodataset.org'


class Archive(NamedTuple):
    """A file of the official hosts."""

    url: str
    size: int  # bytes
    sha256: str


ARCHIVES = {
    'VOCtrainval_06-Nov-2007.tar': Archive(
        f'{VOC_HOST}/voc2007/VOCtrainval_06-Nov-2007.tar',
        460032000,
        '7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508',
    ),
    'VOCtest_06-Nov-2007.tar': Archive(
        f'{VOC_HOST}/voc2007/VOCtest_06-Nov-2007.tar',
        451020800,
        '6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892',
    ),
    'VOCtrainval_11-May-2012.tar': Archive(
        f'{VOC_HOST}/voc2012/VOCtrainval_11-May-2012.tar',
        1999639040,
        'e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb',
    ),
    'train2014.zip': Archive(
        f'{COCO_HOST}/zips/train2014.zip',
        13510573713,
        'ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775',
    ),
    'val2014.zip': Archive(
        f'{COCO_HOST}/zips/val2014.zip',
        6645013297,
        'fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0',
    ),
    'annotations_trainval2014.zip': Archive(
        f'{COCO_HOST}/annotations/annotations_trainval2014.zip',
        252872794,
        '031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009',
    ),
    'train2017.zip': Archive(
        f'{COCO_HOST}/zips/train2017.zip',
        19336861798,
        '69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929',
    ),
    'val2017.zip': Archive(
        f'{COCO_HOST}/zips/val2017.zip',
        815585330,
        '4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05',
    ),
    'annotations_trainval2017.zip': Archive(
        f'{COCO_HOST}/annotations/annotations_trainval2017.zip',
        252907541,
        '113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268',
    ),
}


class Part(NamedTuple):
    """A split of one release: what the folder reader is asked for, and where it lies."""

    folder: str  # 'VOC2007', 'train2017'
    split: str  # of voc() or coco()
    archives: tuple[str, ...]


class Dataset(NamedTuple):
    """A data set by its name in the config."""

    config: str  # the name of its prepared folder
    stored: Mapping[str, tuple[Part, ...]]  # by the name of the split in that folder
    splits: Mapping[str, tuple[str, ...]]  # what can be asked for -> what is stored


VOC_ARCHIVES = {
    ('VOC2007', 'test'): 'VOCtest_06-Nov-2007.tar',
    ('VOC2007', 'train'): 'VOCtrainval_06-Nov-2007.tar',
    ('VOC2007', 'val'): 'VOCtrainval_06-Nov-2007.tar',
    ('VOC2012', 'train'): 'VOCtrainval_11-May-2012.tar',
    ('VOC2012', 'val'): 'VOCtrainval_11-May-2012.tar',
}


def _voc(config, *folders):
    """Returns a Dataset of these folders; trainval is stored as train and val, each image once."""
    stored = {
        split: tuple(
            Part(folder, split, (VOC_ARCHIVES[folder, split],))
            for folder in folders
            if (folder, split) in VOC_ARCHIVES
        )
        for split in ('train', 'val', 'test')
    }
    stored = {split: parts for split, parts in stored.items() if parts}
    return Dataset(config, stored, {'trainval': ('train', 'val')} | {s: (s,) for s in stored})


def _coco(config, year):
    stored = {
        split: (
            Part(
                f'{split}{year}',
                f'{split}{year}',
                (f'{split}{year}.zip', f'annotations_trainval{year}.zip'),
            ),
        )
        for split in ('train', 'val')
    }
    return Dataset(config, stored, {s: (s,) for s in stored} | {f'{s}{year}': (s,) for s in stored})


DATASETS = {
    'voc/2007': _voc('voc_2007', 'VOC2007'),
    'voc/2012': _voc('voc_2012', 'VOC2012'),
    'voc/2007+2012': _voc('voc_2007_2012', 'VOC2007', 'VOC2012'),
    'coco/2014': _coco('coco_2014', 2014),
    'coco/2017': _coco('coco_2017', 2017),
}


def unpacked(part, path):
    """Returns the places of a part's unpacked folder as keywords of its reader, None without it."""
    path = Path(path)
    if part.folder.startswith('VOC'):
        folder = path / 'VOCdevkit' / part.folder
        parts = folder / 'JPEGImages', folder / 'Annotations'
        there = (folder / 'ImageSets/Main' / f'{part.split}.txt').is_file()
        return {'path': folder} if there and all(map(Path.is_dir, parts)) else None
    for folder in (path, path / 'coco'):
        labels = folder / 'annotations' / f'instances_{part.split}.json'
        if labels.is_file() and (folder / part.split).is_dir():
            return {'path': folder}
    return None


def archives(names, path):
    """Returns {name: path} of official archives at `path`, downloaded where they are not there.

    Raises InputError where one is not the official one, or cannot be downloaded.
    """
    path = Path(path)
    folders = path, path / 'downloads', path / 'downloads' / 'manual'
    places = {n: p for n in names for f in reversed(folders) if (p := f / n).is_file()}
    absent = [name for name in names if name not in places]
    for name, place in places.items():
        logger.info(f'checking {place}')
        url, size, sha256 = ARCHIVES[name]
        if not files.is_whole(place, sha256=sha256, size=size):
            what = (
                f'not the official archive of {size} bytes, or cut off; remove it, or fetch {url}'
            )
            raise InputError(f'{place}: {what} anew')
    for name in absent:
        url, size, sha256 = ARCHIVES[name]
        places[name] = path / 'downloads' / name
        try:
            files.fetch(url, places[name], sha256=sha256, size=size)
        except InputError as error:
            others = [other for other in absent if other != name]
            besides = f'; {path / "downloads"} needs besides: {", ".join(others)}' if others else ''
            raise InputError(f'{error}{besides}') from error
    return places


def unpack(part, archives, work):
    """Unpacks a part's archives (name -> path) below the folder `work`, unless that is done.

    Returns the places as keywords of the part's reader. Raises InputError as extract() does.
    """
    folders = [Path(work) / Path(name).stem for name in part.archives]
    for name, folder in zip(part.archives, folders, strict=True):
        if not folder.is_dir():
            logger.info(f'unpacking {archives[name]}')
            extract(archives[name], folder, _is_needed)
    if part.folder.startswith('VOC'):
        return {'path': folders[0] / 'VOCdevkit' / part.folder}
    images, labels = folders
    places = {'images': str(images / part.split), 'annotations': str(labels / 'annotations')}
    return {'path': Path(work) / 'coco'} | places  # whose name alone counts


def open_part(part, places):
    """Returns the Source of a part whose files lie at `places`."""
    reader = voc if part.folder.startswith('VOC') else coco
    return reader(part.split, **places)


def _is_needed(name):
    """Says whether boxes or images are in a file of an archive, by its name."""
    parts = os.path.normpath(name).split('/')
    if parts[0] == 'VOCdevkit':
        return (
            'JPEGImages' in parts or 'Annotations' in parts or parts[2:4] == ['ImageSets', 'Main']
        )
    return parts[0] != 'annotations' or parts[-1].startswith('instances_')
