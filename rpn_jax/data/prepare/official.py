"""PASCAL VOC and COCO as their makers publish them: archives, and what a split needs of them."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rpn_jax import files
from rpn_jax.data.prepare.archives import extract
from rpn_jax.data.sources import coco, voc
from rpn_jax.errors import InputError

logger = logging.getLogger(__name__)
VOC_2007 = 'http://host.robots.ox.ac.uk/pascal/VOC/voc2007'
VOC_2012 = 'http://host.robots.ox.ac.uk/pascal/VOC/voc2012'
IMAGES = 'http://images.cocodataset.org/zips'
LABELS = 'http://images.cocodataset.org/annotations'


class Archive(NamedTuple):
    """A file of the official hosts."""

    url: str
    size: int  # bytes
    sha256: str


ARCHIVES = {
    name: archive._replace(url=f'{archive.url}/{name}')
    for name, archive in {
        'VOCtrainval_06-Nov-2007.tar': Archive(
            VOC_2007, 460032000, '7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508'
        ),
        'VOCtest_06-Nov-2007.tar': Archive(
            VOC_2007, 451020800, '6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892'
        ),
        'VOCtrainval_11-May-2012.tar': Archive(
            VOC_2012, 1999639040, 'e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb'
        ),
        'train2014.zip': Archive(
            IMAGES, 13510573713, 'ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775'
        ),
        'val2014.zip': Archive(
            IMAGES, 6645013297, 'fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0'
        ),
        'annotations_trainval2014.zip': Archive(
            LABELS, 252872794, '031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009'
        ),
        'train2017.zip': Archive(
            IMAGES, 19336861798, '69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929'
        ),
        'val2017.zip': Archive(
            IMAGES, 815585330, '4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05'
        ),
        'annotations_trainval2017.zip': Archive(
            LABELS, 252907541, '113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268'
        ),
    }.items()
}


class ReleaseSplit(NamedTuple):
    """A split of one release, such as VOC2007's val, and the archives that it is in."""

    folder: str  # 'VOC2007', 'train2017'
    split: str  # of voc() or coco()
    archives: tuple[str, ...]

    @property
    def is_voc(self):
        return self.folder.startswith('VOC')


class Dataset(NamedTuple):
    """A data set by its name in the config."""

    config: str  # the name of its prepared folder
    prepared: Mapping[str, tuple[ReleaseSplit, ...]]  # by the name of the split in that folder
    splits: Mapping[str, tuple[str, ...]]  # what can be opened -> splits in that folder


VOC = (
    ReleaseSplit('VOC2007', 'train', ('VOCtrainval_06-Nov-2007.tar',)),
    ReleaseSplit('VOC2007', 'val', ('VOCtrainval_06-Nov-2007.tar',)),
    ReleaseSplit('VOC2007', 'test', ('VOCtest_06-Nov-2007.tar',)),
    ReleaseSplit('VOC2012', 'train', ('VOCtrainval_11-May-2012.tar',)),
    ReleaseSplit('VOC2012', 'val', ('VOCtrainval_11-May-2012.tar',)),
)


def _voc(config, *folders):
    """Returns a Dataset of these folders; trainval is prepared as train and val."""
    prepared = {}
    for release in VOC:
        if release.folder in folders:
            prepared[release.split] = (*prepared.get(release.split, ()), release)
    return Dataset(config, prepared, {'trainval': ('train', 'val')} | {s: (s,) for s in prepared})


def _coco(config, year):
    labels = f'annotations_trainval{year}.zip'
    prepared = {
        split: (ReleaseSplit(f'{split}{year}', f'{split}{year}', (f'{split}{year}.zip', labels)),)
        for split in ('train', 'val')
    }
    years = {f'{split}{year}': (split,) for split in prepared}
    return Dataset(config, prepared, {split: (split,) for split in prepared} | years)


DATASETS = {
    'voc/2007': _voc('voc_2007', 'VOC2007'),
    'voc/2012': _voc('voc_2012', 'VOC2012'),
    'voc/2007+2012': _voc('voc_2007_2012', 'VOC2007', 'VOC2012'),
    'coco/2014': _coco('coco_2014', 2014),
    'coco/2017': _coco('coco_2017', 2017),
}


def unpacked(release, path):
    """Returns the keywords that open a release split's unpacked folder; None without one."""
    if release.is_voc:
        folder = path / 'VOCdevkit' / release.folder
        needed = folder / 'JPEGImages', folder / 'Annotations'
        is_listed = (folder / 'ImageSets/Main' / f'{release.split}.txt').is_file()
        return {'path': folder} if is_listed and all(map(Path.is_dir, needed)) else None
    for folder in (path, path / 'coco'):
        labels = folder / 'annotations' / f'instances_{release.split}.json'
        if labels.is_file() and (folder / release.split).is_dir():
            return {'path': folder}
    return None


def archives(names, path):
    """Returns {name: path} of official archives at `path`, downloaded where they are not there.

    Raises InputError where one is not the official one, or cannot be downloaded.
    """
    downloads = path / 'downloads'
    folders = path, downloads, downloads / 'manual'
    paths = {n: p for n in names for f in reversed(folders) if (p := f / n).is_file()}
    absent = [name for name in names if name not in paths]
    for name, archive in paths.items():
        logger.info(f'checking {archive}')
        url, size, sha256 = ARCHIVES[name]
        if not files.is_whole(archive, sha256=sha256, size=size):
            raise InputError(
                f'{archive}: not the official archive of {size} bytes, or cut off; remove it, or '
                f'fetch {url} anew'
            )
    for name in absent:
        url, size, sha256 = ARCHIVES[name]
        paths[name] = downloads / name
        try:
            files.fetch(url, paths[name], sha256=sha256, size=size)
        except InputError as error:
            others = ', '.join(other for other in absent if other != name)
            besides = f'; {downloads} needs besides: {others}' if others else ''
            raise InputError(f'{error}{besides}') from error
    return paths


def unpack(release, archives, work):
    """Unpacks a release split's archives (name -> path) below the folder `work`, once.

    Returns the keywords that open it. Raises InputError as extract() does.
    """
    folders = [work / Path(name).stem for name in release.archives]
    for name, folder in zip(release.archives, folders, strict=True):
        if not folder.is_dir():
            logger.info(f'unpacking {archives[name]}')
            extract(archives[name], folder, _is_needed)
    if release.is_voc:
        return {'path': folders[0] / 'VOCdevkit' / release.folder}
    images, labels = folders
    elsewhere = {'images': images / release.split, 'annotations': labels / 'annotations'}
    return {'path': work / 'coco'} | elsewhere  # of the path only the name is used


def open_release(release, keywords):
    """Returns the Source of a release split."""
    return (voc.voc if release.is_voc else coco.coco)(release.split, **keywords)


def _is_needed(name):
    """Returns whether boxes or images are in a file of an archive, by its name."""
    steps = os.path.normpath(name).split('/')
    if steps[0] == 'VOCdevkit':
        parts = {'JPEGImages', 'Annotations'}
        return not parts.isdisjoint(steps) or steps[2:4] == ['ImageSets', 'Main']
    return steps[0] != 'annotations' or steps[-1].startswith('instances_')
