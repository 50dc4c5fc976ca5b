"""Which data a run has seen: a short hash of every record, to name what has changed since."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from rpn_jax.data.records import with_all_categories
from rpn_jax.errors import InputError
from rpn_jax.files import read_json, write_json

logger = logging.getLogger(__name__)
NAME = 'data.json'  # in a workdir: {'train' or 'eval': {'name': .., 'records': [digest, ..]}}
SPLITS = {'train': 'training', 'eval': 'evaluation'}
ID = 8  # hexadecimal digits of a digest that are the id's; as many follow of the rest


def digests(records):
    """Returns a digest of each record: 8 hexadecimal digits of its id, 8 of the rest."""
    return [_hash(record.image_id) + _hash(_content(record)) for record in records]


def summary(sources):
    """Returns {'training data' or 'evaluation data': name, count and hash} of sources as in write.

    Sources whose records are the same, in the same order, have the same.
    """
    return {
        f'{SPLITS[split]} data': f'{source.name}, {len(source.records)} images, hash '
        + _hash(''.join(digests(with_all_categories(source))))
        for split, source in sources.items()
    }


def write(folder, sources):
    """Keeps the digests of sources {'train' or 'eval': Source} in a workdir, beside others."""
    own = {
        split: {'name': source.name, 'records': digests(with_all_categories(source))}
        for split, source in sources.items()
    }
    try:
        own = _read(folder) | own
    except ValueError:
        pass  # it is damaged, and written anew
    write_json(Path(folder) / NAME, own)


def check(folder, sources, strict=False):
    """Warns where sources are not those of the workdir, and names the first difference.

    sources are as in write; workdirs of earlier versions know none. With `strict` raises InputError
    instead.
    """
    path = Path(folder) / NAME
    try:
        known = _read(folder)
        messages = [
            f'{path}: the {SPLITS[split]} data were {known[split]["name"]} with '
            f'{len(known[split]["records"])} images, and are {source.name} with '
            f'{len(source.records)}: {found}; put them back, or name another --workdir'
            for split, source in sources.items()
            if split in known
            if (found := difference(known[split]['records'], with_all_categories(source)))
        ]
    except ValueError:
        messages = [f'{path}: is damaged, so that the data cannot be compared; delete it']
    if messages and strict:
        raise InputError('; '.join(messages))
    for message in messages:
        logger.warning(str(InputError(message)))  # which escapes what an id may hold


def difference(before, records):
    """Returns what differs first between digests and records, '' where nothing does."""
    now, count = digests(records), min(len(before), len(records))
    at = next((i for i in range(count) if before[i] != now[i]), count)
    old, new = ([digest[:ID] for digest in each] for each in (before, now))
    image_id = records[at].image_id if at < len(now) else ''
    if at == len(before) == len(now):
        return ''
    if at < count and old[at] == new[at]:
        return f'image {image_id} has another size or other boxes'
    if at < len(now) and new[at] not in set(old):
        return f'image {image_id}, number {at + 1}, was not there'
    if at == len(now) or old[at] not in set(new):
        return f'number {at + 1}, {f"before image {image_id}" if image_id else "the last"}, is gone'
    return f'image {image_id}, which was number {old.index(new[at]) + 1}, is number {at + 1}'


def _content(record):
    """Returns the bytes of what is annotated of an image."""
    arrays = np.float32(record.boxes), np.int32(record.kind)
    if record.areas is not None:
        arrays += (np.float64(record.areas),)
    numbers = f'{tuple(map(int, record.size))} {len(record.boxes)}'
    return numbers.encode() + b''.join(array.tobytes() for array in arrays)


def _hash(content):
    content = content.encode(errors='surrogatepass') if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()[:ID]


def _read(folder):
    """Returns the content of the file, {} where there is none; raises ValueError if damaged."""
    path = Path(folder) / NAME
    try:
        known = read_json(path) if path.exists() else {}
        for each in known.values():
            if not isinstance(each['name'], str) or {*map(type, each['records'])} - {str}:
                raise ValueError
    except (OSError, AttributeError, KeyError, TypeError) as error:
        raise ValueError from error
    return known
