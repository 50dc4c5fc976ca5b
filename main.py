"""Trains, evaluates and shows region proposal networks.

python main.py --config=configs/voc_dilated.py [--workdir=runs/NAME] [--mode=MODE]
[--config.section.key=value]
"""

import argparse
import ast
import difflib
import importlib.util
import sys
from pathlib import Path

from ml_collections import ConfigDict

from rpn_jax import modes
from rpn_jax.errors import InputError
from rpn_jax.progress import Interrupted
from rpn_jax.workdir import read_config


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f'{message}; see python main.py --help')


def main(argv=None):
    """Runs one mode and returns the exit code; a user's error becomes one line on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments, overrides = _parse(argv)
        config = _override(_load(arguments), overrides)
        modes.run(arguments.mode, config, Path(arguments.workdir))
    except InputError as error:
        if '--debug' in argv:
            raise
        print(f'error: {error}', file=sys.stderr)
        return 1
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        return interruption.code
    return 0


def _parse(argv):
    parser = _Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        '--config', default='', help="a file of configs/; default: the workdir's own"
    )
    parser.add_argument('--workdir', default='', help='default: runs/NAME of the config')
    parser.add_argument('--mode', default='train', help=', '.join(modes.MODES))
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    parser.epilog = 'Any key of the config: --config.section.key=value'
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if not word.startswith('--config.') or '=' not in word]
    if unknown:
        raise InputError(
            f'unknown argument {unknown[0]!r}; overrides look like --config.section.key=value'
        )
    if arguments.mode not in modes.MODES:
        raise InputError(f'no mode {arguments.mode!r}; there are {", ".join(modes.MODES)}')
    if not arguments.config and not arguments.workdir:
        raise InputError('name a --config (see configs/), or the --workdir of a run')
    if not arguments.config and arguments.mode == 'train':
        raise InputError('--mode=train needs a --config (see configs/)')
    arguments.workdir = arguments.workdir or f'runs/{Path(arguments.config).stem}'
    return arguments, rest


def _load(arguments):
    if not arguments.config:
        return read_config(arguments.workdir)
    path = Path(arguments.config)
    if not path.is_file():
        raise InputError(f'--config {path}: no such file; see configs/')
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (KeyError, AttributeError, TypeError, SyntaxError, ImportError) as error:
        raise InputError(f'--config {path}: {_one_line(error)}') from error
    if not isinstance(config, ConfigDict):
        raise InputError(f'--config {path}: get_config() returned no ConfigDict')
    return config


def _override(config, overrides):
    """Sets --config.section.key=value, read as the type that the key has in the config."""
    for word in overrides:
        key, text = word[len('--config.') :].split('=', 1)
        section, *path = key.split('.')
        parent = config
        for name in path:
            parent, section = parent.get(section, None), name
            if not isinstance(parent, ConfigDict):
                break
        if not isinstance(parent, ConfigDict) or section not in parent:
            near = difflib.get_close_matches(key, _keys(config), n=1, cutoff=0.5)
            hint = f'; did you mean {near[0]}?' if near else ''
            raise InputError(f'no config key {key!r}{hint}')
        try:
            parent[section] = _read(text, parent[section])
        except (ValueError, SyntaxError, TypeError) as error:
            kind = type(parent[section]).__name__
            raise InputError(f'config key {key}: {text!r} is not a {kind}') from error
    return config


def _read(text, before):
    """Reads text as the type of the value before it; numbers of a tuple keep the tuple's."""
    if isinstance(before, str):
        return text
    if isinstance(before, ConfigDict):
        raise TypeError('a section')
    value = {'true': True, 'false': False}.get(text.lower()) if isinstance(before, bool) else None
    value = ast.literal_eval(text) if value is None else value
    if isinstance(before, tuple):
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
        numbers = all(isinstance(item, int | float) for item in value)
        whole = before and all(isinstance(item, int) for item in before)
        if not numbers or (whole and not all(isinstance(item, int) for item in value)):
            raise TypeError('not numbers')
        return value
    if isinstance(before, float) and type(value) is int:
        return float(value)
    if type(value) is not type(before):
        raise TypeError('another type')
    return value


def _keys(config):
    for name, value in config.items():
        yield from (
            (f'{name}.{k}' for k in _keys(value)) if isinstance(value, ConfigDict) else (name,)
        )


def _one_line(error):
    return ' '.join(str(error.args[0] if error.args else error).split())


if __name__ == '__main__':
    sys.exit(main())
