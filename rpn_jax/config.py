"""The config: a table of what its keys may be, and its way from a file to a run.

Defaults and comments of the keys are in configs/default.py. A config is read from a file (`read`)
or a workdir (`read_run`), changed by the command line (`override`), checked (`check`) and resolved
(`resolve`), in this order. Nothing changes it after that.
"""

import ast
import difflib
import importlib.util
import logging
import math
import os
import re
import sys
import types
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from rpn_jax.errors import InputError

logger = logging.getLogger(__name__)
# Installed, the configs are a part of this package; in a checkout their folder stands beside it.
FOLDER = Path(__file__).parent / 'configs'
FOLDER = FOLDER if FOLDER.is_dir() else Path(__file__).parent.parent / 'configs'
PREFIX = '--config.'  # of the command line, before a key
NAME = str | int  # of a category, or its id
MESSAGE = 2000  # letters of a message in which keywords are looked for
MOST = 2**31 - 1  # of an int32, as JAX counts


class Key(NamedTuple):
    """What the value of a key may be; bounds are inclusive and hold for every item of a tuple."""

    type: type
    least: float = -math.inf
    most: float = math.inf
    choices: tuple = ()
    items: type = float  # of a tuple: float, int or NAME
    lengths: tuple = ()  # of a tuple; () any
    nested: bool = False  # whether a tuple may hold tuples of its items
    filled: bool = False  # whether a tuple, and each in it, has an item at least


FIGURES = (  # of an evaluation during training; the number is one of proposals
    *(f'AR@{n}' for n in (10, 100, 300, 1000, 2000)),
    *(f'ABO@{n}' for n in (10, 100, 300, 1000, 2000)),
    'top10_max_iou',
)
KEYS = {
    'seed': Key(int, 0, 2**32 - 1),
    'steps': Key(int, 1, MOST),
    'log_every': Key(int, 1),
    'model.depth': Key(int, choices=(26, 50, 101, 152)),
    'model.width': Key(int, 1),
    'model.last_stage': Key(int, choices=(3, 4, 5)),
    'model.dilations': Key(tuple, 1, items=int, lengths=(4,)),
    'model.dilate_first_block': Key(bool),
    'model.norm': Key(str, choices=('frozen', 'batch', 'group')),
    'model.stride_in_1x1': Key(bool),
    'model.frozen_stages': Key(int, 0, 5),
    'model.fpn_stages': Key(tuple, 2, 5, items=int),
    'model.fpn_channels': Key(int, 1),
    'model.fpn_extra': Key(int, 0, 4),
    'model.fpn_norm': Key(str, choices=('', 'frozen', 'batch', 'group')),
    'model.head_convs': Key(int, 1, 8),
    'model.init': Key(str, choices=('normal', 'uniform')),
    'model.pretrained': Key(str),
    'model.pretrained_key': Key(str),
    'model.dtype': Key(str, choices=('float32', 'bfloat16')),
    'model.conv': Key(str, choices=('auto', 'xla')),
    'model.remat': Key(tuple, 2, 5, items=int),
    'anchors.sizes': Key(tuple, 1, nested=True, filled=True),
    'anchors.aspect_ratios': Key(tuple, 1e-3, filled=True),
    'targets.positive_iou': Key(float, 0, 1),
    'targets.negative_iou': Key(float, 0, 1),
    'targets.crowd_overlap': Key(float),
    'targets.border': Key(int),
    'targets.samples': Key(int, 1, MOST),
    'targets.positive_fraction': Key(float, 0, 1),
    'loss.objectness_weight': Key(float, 0, 1e6),
    'loss.box_weight': Key(float, 0, 1e6),
    'loss.beta': Key(float, 0, 1e6),
    'proposals.pre_nms': Key(int, 1, MOST),
    'proposals.post_nms': Key(int, 1, 10**6),
    'proposals.nms_iou': Key(float, 0, 1),
    'proposals.min_size': Key(float),
    'features.keep': Key(str, choices=('', 'device', 'host', 'disk')),
    'features.gigabytes': Key(float, 0),
    'data.source': Key(str, choices=('tfds', 'voc', 'coco', 'yolo', 'shapes', 'images')),
    'data.path': Key(str),
    'data.name': Key(str),
    'data.categories': Key(tuple, items=NAME),
    'data.train_split': Key(str),
    'data.eval_split': Key(str),
    'data.images': Key(str),
    'data.annotations': Key(str),
    'data.scenes': Key(tuple, 1, items=int, lengths=(2,)),
    'data.resize': Key(str, choices=('square', 'short_side')),
    'data.image_size': Key(int, 1),
    'data.max_size': Key(int, 1),
    'data.canvases': Key(int, 1),
    'data.canvas_multiple': Key(int, 1),
    'data.batch_size': Key(int, 1),
    'data.max_boxes': Key(int, 1),
    'data.flip': Key(bool),
    'data.pixels': Key(str, choices=('auto', 'torchvision', 'caffe')),
    'data.mean': Key(tuple, lengths=(0, 3)),
    'data.std': Key(tuple, lengths=(0, 3)),
    'data.on_bad': Key(str, choices=('error', 'skip', 'clip')),
    'data.orientation': Key(str, choices=('annotation', 'apply', 'ignore')),
    'data.eval_path': Key(str),
    'data.eval_images': Key(str),
    'data.eval_annotations': Key(str),
    'optim.optimizer': Key(str, choices=('sgd', 'adam')),
    'optim.learning_rate': Key(float, 0, 1e6),
    'optim.momentum': Key(float, 0, 1),
    'optim.weight_decay': Key(float, 0, 1e6),
    'optim.skip_nonfinite': Key(int, 0),
    'optim.schedule': Key(str, choices=('constant', 'step', 'cosine', 'cyclical', 'one_cycle')),
    'optim.schedule_steps': Key(int, 0, MOST),
    'optim.warmup_steps': Key(int, 0, MOST),
    'optim.warmup_factor': Key(float, 0, 1e6),
    'optim.decay_at': Key(tuple),
    'optim.decay_factor': Key(float, 0, 1e6),
    'optim.final_factor': Key(float, 0, 1e6),
    'optim.cycles': Key(float, 0, 1e6),
    'optim.low_factor': Key(float, 0, 1e6),
    'checkpoint.every': Key(int, 1),
    'checkpoint.keep': Key(int, 1),
    'checkpoint.best': Key(str, choices=('', *FIGURES)),
    'evaluation.every': Key(int, 0),
    'evaluation.images': Key(int, 0),
}
FOLDERS, COSINES = ('tfds', 'voc', 'coco', 'yolo'), ('cosine', 'one_cycle')
ONLY_WITH = {  # keys that have an effect only where another has one of these values
    **dict.fromkeys(('data.path', 'data.images'), ('data.source', (*FOLDERS, 'images'))),
    'data.name': ('data.source', ('tfds',)),
    'data.scenes': ('data.source', ('shapes',)),
    **dict.fromkeys(
        (f'data.{key}' for key in ('annotations', 'eval_path', 'eval_images', 'eval_annotations')),
        ('data.source', FOLDERS),
    ),
    **dict.fromkeys(('data.max_size', 'data.canvases'), ('data.resize', ('short_side',))),
    **dict.fromkeys(('optim.decay_at', 'optim.decay_factor'), ('optim.schedule', ('step',))),
    'optim.final_factor': ('optim.schedule', COSINES),
    'optim.cycles': ('optim.schedule', ('cyclical',)),
    'optim.low_factor': ('optim.schedule', ('cyclical', 'one_cycle')),
    'features.gigabytes': ('features.keep', ('device', 'host', 'disk')),
}


def default():
    """Returns the config of configs/default.py."""
    return _execute(FOLDER / 'default.py').get_config()


def read(name):
    """Returns the config of a Python file, or of an installed one by its name, such as 'voc_c4'.

    Raises InputError unless the file's get_config() returns every key, with a value of its type.
    """
    path, where = Path(os.path.expanduser(name)), f'--config {name}'
    installed = sorted(path.stem for path in FOLDER.glob('[!_]*.py'))
    if name in installed and not path.is_file():
        path = FOLDER / f'{name}.py'
    if not path.is_file() or path.suffix != '.py':
        near = _hint(str(name), installed) or f'; installed are {", ".join(installed)}'
        raise InputError(f'{where}: no such Python file{near}')
    _make_importable()
    try:
        config = _execute(path).get_config()
    except (Exception, SystemExit) as error:  # it runs a stranger's code
        raise InputError(f'{where}: {_one_line(error)}') from error
    if not isinstance(config, ConfigDict):
        raise InputError(f'{where}: get_config() returned no ConfigDict')
    _check_types(config, where)
    if missing := [key for key in KEYS if key not in items(config)]:
        raise InputError(f'{where}: config key {missing[0]} is missing; see configs/default.py')
    return config


def read_run(workdir):
    """Returns the config of a workdir; keys that are younger than it take their default."""
    from rpn_jax.training.workdir import read_config

    content = read_config(workdir)
    try:
        config = ConfigDict(content)
    except ValueError as error:  # of a key with a dot
        raise InputError(f'{workdir}/config.json: not a config ({error})') from error
    _check_types(config, f'{workdir}/config.json')
    completed = default()
    completed.update_from_flattened_dict(items(config))
    return completed


def override(config, changes):
    """Returns a copy of the config with changes {'section.key': text}, read as the key's type."""
    config = config.copy_and_resolve_references()
    for name, text in changes.items():
        if name not in KEYS:
            if inside := [key for key in KEYS if key.startswith(f'{name}.')]:
                raise InputError(f'config key {name} is a section; it has {", ".join(inside)}')
            raise InputError(f'no config key {name!r}{_hint(name, KEYS)}')
        try:
            config.update_from_flattened_dict({name: _parse(name, text)})
        except OverflowError as error:
            raise InputError(f'config key {name}: the number is too large') from error
    return config


def check(config, where='', changed=()):
    """Raises InputError naming the first key whose value is not allowed.

    where is what was read, for the message; changed are the keys that it does not answer for.
    """
    values = items(config)
    for key, value in values.items():
        if problem := _problem(KEYS[key], value):
            start = f'{where}: ' if where and key not in changed else ''
            raise InputError(f'{start}config key {key}: {problem}')
    low, high = (values[f'targets.{name}_iou'] for name in ('negative', 'positive'))
    if low > high:
        raise InputError(f'config key targets.negative_iou: {low} is above positive_iou, {high}')
    best = values['checkpoint.best']
    number = int('0' + best.partition('@')[2])
    if best and not values['evaluation.every']:
        raise InputError(f'config key checkpoint.best: {best} needs an evaluation.every above 0')
    if number > values['proposals.post_nms']:
        raise InputError(
            f'config key checkpoint.best: {best} needs {number} proposals of an image; '
            f'proposals.post_nms is {values["proposals.post_nms"]}'
        )


def without_effect(config, changes):
    """Yields a warning for each changed key that the values of other keys make ineffective."""
    values = items(config)
    for key in (key for key in changes if not has_effect(values, key)):
        other, choices = ONLY_WITH[key]
        needed = ' or '.join(map(repr, choices))
        yield f'{key} has no effect: {other} is {values[other]!r}, not {needed}'


def has_effect(values, key):
    """Returns whether a key has an effect beside the {'section.key': value} of a config."""
    other, choices = ONLY_WITH.get(key, ('', ()))
    return not other or values[other] in choices


def resolve(config, workdir=''):
    """Returns the frozen config, with the weights' pixels where data.pixels is 'auto'.

    They are those of the checkpoints in the workdir, if there are any, else those that the weights
    of model.pretrained want; mean and std come along. Weights that contradict the config's pixels
    or strides are a warning.
    """
    from rpn_jax.training import checkpoint, pretrained
    from rpn_jax.training.workdir import read_config

    config = config.copy_and_resolve_references()
    where, key, wanted = config.model.pretrained, config.model.pretrained_key, {}
    if workdir and checkpoint.steps(workdir):
        settled = read_config(workdir).get('data', {})
    else:
        if key and not where:
            raise InputError(f'pretrained_key: {key!r} needs weights, model.pretrained')
        wanted = pretrained.expects(where, config.anchors.aspect_ratios, key) if where else {}
        settled = wanted.get('data', {})
    if config.data.pixels == 'auto':
        pixels = settled.get('pixels', 'auto')
        config.data.pixels = 'torchvision' if pixels == 'auto' else pixels
        for key in ('mean', 'std'):
            config.data[key] = config.data[key] or settled.get(key, ())
    for section, keys in wanted.items():
        for key, value in keys.items():
            if (given := config[section][key]) != value:
                logger.warning(f'the weights {where} want {section}.{key}={value}, it is {given}')
    return FrozenConfigDict(config)


def items(config):
    """Returns {'section.key': value} of every value in a config."""
    found = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            found |= {f'{name}.{key}': inner for key, inner in items(value).items()}
        else:
            found[name] = value
    return found


def comments():
    """Returns {'section.key': comment} of configs/default.py."""
    found, section = {}, ''
    for line in (FOLDER / 'default.py').read_text().splitlines():
        code, _, comment = line.partition('  # ')
        if begun := re.match(r'def (\w+)|    config\.(\w+) = ConfigDict', code):
            section = begun[1] or begun[2]
        elif assigned := re.match(r' +(config\.)?(\w+) ?=', code):
            found[assigned[2] if assigned[1] else f'{section}.{assigned[2]}'] = comment
    return {key: found[key] for key in KEYS}


def with_keys(message):
    """Returns a message of a library function with the keys of the keywords that it names.

    Found are a keyword that it begins with, as `path: ..`, those with an underscore, and `depth=`;
    not what stands in the name of a file or folder.
    """
    location, _, rest = message.partition(': ')
    text = re.sub(r'(?<!\S)\S*/\S*', '', rest if '/' in location else message)[:MESSAGE]
    keys = {key.rpartition('.')[2]: key for key in reversed(KEYS)}
    first = re.match(r"(\w+)(?=: | ['(\d-])", text)
    words = [
        *(first.groups() if first else ()),
        *re.findall(r'(?<![\w./-])(?:\w+_\w+(?![\w/]|\.\w)|\w+(?==))', text),
    ]
    named = dict.fromkeys(keys[word] for word in words if word in keys)
    if not named or any(key in text for key in KEYS if '.' in key):
        return message
    return f'{message} (config {"keys" if len(named) > 1 else "key"} {", ".join(named)})'


def _execute(path):
    """Runs a config file and returns its module."""
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _make_importable():
    """Lets a config file say `from configs import default`, wherever the configs are installed."""
    known = sys.modules.get('configs')
    if known is None or str(FOLDER) not in known.__path__:
        for name in [name for name in sys.modules if name.partition('.')[0] == 'configs']:
            del sys.modules[name]  # somebody else's
        sys.modules['configs'] = types.ModuleType('configs')
        sys.modules['configs'].__path__ = [str(FOLDER)]


def _check_types(config, where):
    """Raises InputError unless the config's keys are those of the table, with values of a type."""
    for key, value in items(config).items():
        if key not in KEYS:
            raise InputError(f'{where}: no config key {key!r}{_hint(key, KEYS)}')
        if not _fits(KEYS[key], value):
            raise InputError(f'{where}: config key {key}: {value!r} is not {_named(KEYS[key])}')


def _parse(name, text):
    """Reads the text of a command line as the value of a key."""
    key = KEYS[name]
    if key.type is str:
        return text
    try:
        value = ast.literal_eval(text.capitalize() if key.type is bool else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        words = tuple(word.strip() for word in text.split(',') if word.strip())
        value = words if key.items is NAME else None
    if key.type is tuple and value is not None:
        value = _tuples(value) if isinstance(value, tuple | list) else (value,)
    if not _fits(key, value):
        raise InputError(f'config key {name}: {text!r} is not {_named(key)}')
    return value


def _fits(key, value):
    """Says whether a value is of a key's type; whole numbers are numbers, too."""
    if key.type is tuple:
        own = key._replace(type=key.items)
        inner = (key._replace(nested=False), own) if key.nested else (own,)
        return isinstance(value, tuple) and all(
            any(_fits(each, item) for each in inner) for item in value
        )
    kinds = (int, float) if key.type is float else key.type
    return isinstance(value, kinds) and isinstance(value, bool) == (key.type is bool)


def _problem(key, value):
    """Returns what is wrong with a value of a key's type, '' if nothing is."""
    if key.choices and value not in key.choices:
        near = _hint(value, key.choices) if isinstance(value, str) else ''
        return f'{value!r} is not one of {", ".join(map(repr, key.choices))}{near}'
    if key.type is tuple and key.lengths and len(value) not in key.lengths:
        return f'{value!r} is not {_named(key)}'
    if key.filled and any(each == () for each in (value, *value)):
        return f'{value!r} has no number'
    bounds = f'{key.least} to {key.most:.10g}' if key.most < math.inf else f'at least {key.least}'
    numbers = key.type in (int, float) or (key.type is tuple and key.items is not NAME)
    for number in _flat(value) if numbers else ():
        if not (abs(number) <= sys.float_info.max and key.least <= number <= key.most):
            allowed = 'a finite number' if math.isinf(key.least) else bounds
            return f'{value} is out of bounds; it must be {allowed}'
    return ''


def _named(key):
    """Returns what a value of a key is called in messages: 'an integer'."""
    if key.type is not tuple:
        names = {int: 'an integer', float: 'a number', bool: 'True or False', str: 'a string'}
        return names[key.type]
    kind = {int: 'integers', float: 'numbers', NAME: 'names or ids'}[key.items]
    count = ' or '.join(map(str, key.lengths))
    return f'a tuple of {count} {kind}' if count else f'a tuple of {kind}'


def _flat(value):
    return [n for item in value for n in _flat(item)] if isinstance(value, tuple) else [value]


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, tuple | list) else value


def _hint(word, known):
    """Returns '; did you mean ..?' with the names that are nearest to a word, '' without any."""
    last = word.rpartition('.')[2]
    near = [name for name in known if last and name.rpartition('.')[2] == last]
    near += [n for n in difflib.get_close_matches(word, known, n=3, cutoff=0.6) if n not in near]
    return f'; did you mean {" or ".join(near[:3])}?' if near else ''


def _one_line(error):
    if isinstance(error, SyntaxError):
        return f'line {error.lineno}: {error.msg}'
    return ' '.join(f'{type(error).__name__}: {error}'.split())
