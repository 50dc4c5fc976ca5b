"""Leave out the objects of other categories than those to learn from."""

import difflib
import logging

import numpy as np

from rpn_jax.errors import InputError

logger = logging.getLogger(__name__)
SHOWN = 20  # categories that an error lists
LONGEST = 60  # characters of their names in the name of a source


def only(source, categories, *, complete=False):
    """Returns a Source with only the objects of these categories, each a name or an id.

    Objects of others are left out as if they were not annotated, difficult ones and crowds too.
    Raises InputError where no image has an object of any of them, with `complete` of each.
    """
    if all(record.classes is None for record in source.records):
        raise InputError(f'categories: {source.name} has none; leave categories empty')
    classes = [record.classes or () for record in source.records]
    by_id = {str(number): name for number, name in source.categories.items()}
    seen = set().union(*classes) - {''}
    known = seen.union(by_id.values())
    if '' in categories:
        raise InputError("categories: '' names no category; () takes all")
    wanted = {name if name in known else by_id.get(name, name) for name in map(str, categories)}
    missing = sorted(wanted - seen)
    if missing and (complete or not wanted & seen):
        near = difflib.get_close_matches(missing[0], seen, n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else f'there are {_listed(seen)}'
        raise InputError(f'categories: no object of {source.name} is a {missing[0]!r}; {hint}')
    if missing:
        logger.warning(f'categories: {source.name} has no object of {", ".join(missing)}')
    records = [
        _selected(record, np.array([name in wanted for name in names], bool))
        for record, names in zip(source.records, classes, strict=True)
    ]
    kept, every = (sum(len(each.boxes) for each in rows) for rows in (records, source.records))
    names = ', '.join(sorted(wanted & seen))
    few = names if len(names) <= LONGEST else f'{len(wanted & seen)} categories'
    note = f'{source.name}: {kept} objects are {names}; {every - kept} others are left out'
    return source._replace(
        name=f'{source.name} ({few} only)',
        records=records,
        unfiltered=source.records,
        chosen=tuple(sorted(wanted)),
        notes=(*source.notes, note),
    )


def _listed(names):
    more = ', ..' if len(names) > SHOWN else ''
    return ', '.join(sorted(names)[:SHOWN]) + more if names else 'none'


def _selected(record, keep):
    """Returns a Record with the boxes for which keep [n] says so."""
    return record._replace(
        boxes=record.boxes[keep],
        kind=record.kind[keep],
        areas=None if record.areas is None else record.areas[keep],
        classes=tuple(np.array(record.classes or (), object)[keep]),
    )
