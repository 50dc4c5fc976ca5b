"""Check a source before it is used: what would train wrongly is an error, what is odd a note."""

import collections
import contextlib
import hashlib
import logging
import os
import warnings

import numpy as np

from rpn_jax import console
from rpn_jax.data import images
from rpn_jax.data.batches import threaded
from rpn_jax.data.images import BadRecord, Facts
from rpn_jax.data.records import UNSIZED, Kind, Problem, reader, select
from rpn_jax.errors import InputError
from rpn_jax.files import cache_folder, read_json, write_json

logger = logging.getLogger(__name__)
ON_BAD = ('error', 'skip', 'clip')
ORIENTATIONS = ('annotation', 'apply', 'ignore')
SHOWN = 20  # problems that are logged
VERSION = 4  # of the cache: a new one where the facts are others
TWICE = 'image that is there under another name too'
THIN = 'box of at most 1 pixel in width or height'
DOUBLED = 'box that its image has twice'
APPLIED = 'image that its EXIF tag turns; the tag is applied'
IGNORED = 'image that its EXIF tag turns; the tag is ignored'
WITHOUT = 'image without objects'
LISTED = 'image that is listed twice'


def lint(source, on_bad='error', orientation='annotation', files=True):
    """Returns a checked source, with notes on what is odd in it and harmless.

    Every image file is decoded once; the outcome is kept in the cache folder and holds as long as
    the file does not change. An image that would train wrongly raises InputError, once the first
    twenty problems are logged; with on_bad='skip' such images are left out. orientation is what to
    do with EXIF's: 'apply', 'ignore', or 'annotation', which applies it where the annotated size is
    the turned one. With files=False only annotations are checked, and no image file is opened.
    """
    facts = examined(source) if files else []
    turned, problems = _file_problems(source, facts, orientation)
    if turned:
        files = source.files._replace(turned=turned)
        source = source._replace(files=files, read=reader(source.records, files))
    known = {problem.position for problem in source.problems}
    problems = [*source.problems, *(each for each in problems if each.position not in known)]
    bad, total = {problem.position for problem in problems}, len(source.records)
    good = [position for position in range(total) if position not in bad]
    kinds = collections.Counter(problem.kind for problem in problems)
    counts = ', '.join(f'{kind}: {count}' for kind, count in kinds.most_common())
    if problems and on_bad != 'skip':
        raise InputError(_refusal(source, problems, counts))
    if not good:
        raise InputError(f'{source.name}: no image is left without the bad ones ({counts})')
    if problems:
        source = select(source, good)
        facts = [facts[position] for position in good] if facts else facts
    _check_scale(source)
    notes = [*source.notes, *remarks(source, facts)]
    if problems:
        lost = sum(problem.position < 0 for problem in problems)
        what = f'{total - len(good)} of {total} images'
        what += f' and {lost} annotations of unlisted images' if lost else ''
        notes.append(f"{source.name}: {what} left out, as on_bad='skip' ({counts})")
    return source._replace(notes=tuple(notes))


def examined(source):
    """Returns the Facts of every image file, from the cache where a file has not changed."""
    if source.files is None:
        return []
    names, cache = _names(source), _cache_file(source)
    stamps = list(map(source.files.stamp, range(len(names))))
    known = {}  # name: [stamp, *Facts]
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # none that can be read
        content = read_json(cache)
        known = dict(content['files']) if content['version'] == VERSION else {}
    kept = [(known.get(name) or [''])[0] for name in names]
    stale = {names[i]: i for i, stamp in enumerate(stamps) if not stamp or stamp != kept[i]}
    stale = list(stale.values())  # each file once, however often it is listed

    def examine(number):
        position = stale[number]
        try:
            return images.examine(source.files.load(position), source.files.names[position])
        except BadRecord as problem:
            return Facts((0, 0), '', problem=(problem.kind, str(problem)))

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, on damaged tags: they become remarks
        facts = threaded(examine, range(len(stale)))
        facts = console.progress(facts, len(stale), f'{source.name}: checked')
        for position, fact in zip(stale, facts, strict=True):
            known[names[position]] = [stamps[position], *fact]
    if stale:
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_json(cache, {'version': VERSION, 'files': known})
    return [Facts(tuple(size), *rest) for _, size, *rest in (known[name] for name in names)]


def forget(source):
    """Removes from the cache a source's folder, which will not come back."""
    _cache_file(source).unlink(missing_ok=True)


def _file_problems(source, facts, orientation):
    """Returns ({position: EXIF orientation to apply}, Problems of the image files).

    A file is missing, unreadable or of another size than annotated, or it is not known whether its
    boxes are turned as its EXIF tag turns it.
    """
    turned, problems = {}, []
    for position, (record, fact) in enumerate(zip(source.records, facts, strict=False)):
        try:
            if fact.problem:
                raise BadRecord(*fact.problem)
            where = source.files.names[position]
            size = fact.size
            if _is_applied(record, fact, orientation, where):
                turned[position] = fact.orientation
                size = size[::-1] if fact.orientation > 4 else size
            images.check_size(size, record.size, where)
        except BadRecord as error:
            problems.append(Problem(error.kind, str(error), position))
    return turned, problems


def _is_applied(record, fact, orientation, where):
    """Returns whether the EXIF orientation of an image is applied; raises BadRecord if unknown."""
    if orientation != 'annotation' or fact.orientation == 1:
        return orientation == 'apply' and fact.orientation != 1
    upright = fact.size[::-1] if fact.orientation > 4 else fact.size
    is_known = UNSIZED not in record.remarks and upright != fact.size
    if not is_known and len(record.boxes):
        what = (
            'its EXIF tag turns it; its annotated size does not tell whether its boxes are turned'
        )
        remedy = "set orientation='apply' if they are, 'ignore' if they are not"
        raise BadRecord('image turned by EXIF', f'{where}: {what}; {remedy}')
    return is_known and record.size == upright


def remarks(source, facts):
    """Returns a line for each kind of harmless oddity: how often, and where first."""
    ids_of = collections.defaultdict(list)
    first_of, annotated = {}, source.annotations or any(len(r.boxes) for r in source.records)
    for position, record in enumerate(source.records):
        own = list(record.remarks)
        sides = record.boxes[:, 2:] - record.boxes[:, :2]
        own += [THIN] * int((sides <= 1).any(axis=1).sum())
        own += [DOUBLED] * (len(record.boxes) - len({*map(bytes, record.boxes)}))
        if facts:
            own += facts[position].remarks
            if facts[position].orientation != 1:
                own.append(APPLIED if position in source.files.turned else IGNORED)
            digest = facts[position].digest
            first = first_of.setdefault(digest, position) if digest else position
            same = record.image_id == source.records[first].image_id
            own += [LISTED if same else TWICE] if first != position else []
        own += [WITHOUT] if annotated and Kind.OBJECT not in record.kind else []
        for remark in own:
            ids_of[remark].append(record.image_id)
    return [
        f'{source.name}: {remark}: {len(ids)} ({ids[0]}{", .." if len(ids) > 1 else ""})'
        for remark, ids in ids_of.items()
    ]


def _check_scale(source):
    """Raises InputError where most boxes are hardly a pixel: they are in other units."""
    boxes = np.concatenate([np.zeros((0, 4), 'f4'), *(r.boxes for r in source.records)])
    sides = boxes[:, 2:] - boxes[:, :2]
    if len(sides) and np.mean(np.all(sides <= 1, axis=1)) > 0.5:
        raise InputError(
            f'{source.name}: most of its {len(sides)} boxes are at most 1 pixel wide and high; '
            'their numbers must be pixels, in files of YOLO shares of the image'
        )


def _refusal(source, problems, counts):
    """Logs the first problems; returns the message of the error."""
    if len(problems) == 1:
        what = 'image' if problems[0].position >= 0 else 'annotation'
        return f"{problems[0].message}; on_bad='skip' leaves the {what} out"
    for problem in problems[:SHOWN]:
        logger.info(f'bad: {InputError(problem.message)}')
    if len(problems) > SHOWN:
        logger.info(f'bad: .. and {len(problems) - SHOWN} more')
    return (
        f'{problems[0].message}; {source.name} has {len(problems)} such problems ({counts}); mend '
        "them, or leave the images out with on_bad='skip'"
    )


def _names(source):
    return list(map(os.path.abspath, source.files.names))


def _cache_file(source):
    """Returns the cache file for a source's images: one for a folder, whatever the split."""
    folder = os.path.commonpath(list(map(os.path.dirname, _names(source))))
    return cache_folder() / 'lint' / f'{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json'
