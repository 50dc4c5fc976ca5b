"""Trains, evaluates and shows region proposal networks.

python main.py --config=configs/voc_dilated.py [--workdir=runs/NAME] [--mode=MODE]
[--config.section.key=value]
"""

import argparse
import ast
import difflib
import importlib.util
import os
import signal
import sys
from pathlib import Path

from ml_collections import ConfigDict

from configs import default
from rpn_jax import commands
from rpn_jax.errors import InputError
from rpn_jax.training.progress import Interrupted
from rpn_jax.training.workdir import keep_compilations, read_config


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f'{message}; see python main.py --help')


def main(argv=None):
    """Runs one mode and returns the exit code; a user's error becomes one line on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments, overrides = _parse(argv)
        if arguments.mode == 'compare':
            runs = [run.strip() for run in arguments.runs.split(',')]
            runs = [os.path.expanduser(run) for run in runs if run]
            commands.compare_mode(runs, arguments.output)
            return 0
        config = _override(_load(arguments), overrides)
        extra = {'output': arguments.output, 'paths': arguments.paths}
        commands.run(arguments.mode, config, Path(arguments.workdir).expanduser(), **extra)
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
    parser.add_argument('--mode', default='train', help=', '.join([*commands.MODES, 'compare']))
    parser.add_argument(
        '--output',
        default='',
        help='what export, predict or compare write; of evaluate, the proposals as COCO results',
    )
    parser.add_argument('--runs', default='', help='workdirs that --mode=compare compares: A,B,..')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    parser.epilog = (
        'Any key of the config: --config.section.key=value; '
        'with --mode=predict also images, and folders of them'
    )
    arguments, rest = parser.parse_known_args(argv)
    arguments.paths = []
    if arguments.mode == 'predict':  # not argparse's: it takes --config.key=(1, 2) for one as well
        arguments.paths = [word for word in rest if not word.startswith('--')]
        rest = [word for word in rest if word.startswith('--')]
    unknown = [word for word in rest if not word.startswith('--config.') or '=' not in word]
    if unknown:
        raise InputError(
            f'unknown argument {unknown[0]!r}; overrides look like --config.section.key=value'
        )
    if arguments.runs and arguments.mode != 'compare':
        raise InputError(f'--runs belongs to --mode=compare, not to --mode={arguments.mode}')
    if arguments.mode == 'compare':
        if rest:
            raise InputError(f'{rest[0]}: --mode=compare takes no config, only --runs and --output')
        return arguments, rest
    if arguments.mode not in commands.MODES:
        known = ', '.join([*commands.MODES, 'compare'])
        raise InputError(f'no mode {arguments.mode!r}; there are {known}')
    if not arguments.config and not arguments.workdir:
        raise InputError('name a --config (see configs/), or the --workdir of a run')
    if not arguments.config and arguments.mode == 'train':
        raise InputError('--mode=train needs a --config (see configs/)')
    arguments.workdir = arguments.workdir or f'runs/{Path(arguments.config).stem}'
    return arguments, rest


def _load(arguments):
    if not arguments.config:
        where = f'{arguments.workdir}/config.json'
        return _complete(read_config(arguments.workdir), where, fill=True)
    path = Path(arguments.config)
    if not path.is_file() or path.suffix != '.py':
        raise InputError(f'--config {path}: no such Python file; see configs/')
    spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (Exception, SystemExit) as error:  # it runs a stranger's code
        raise InputError(f'--config {path}: {_one_line(error)}') from error
    if not isinstance(config, ConfigDict):
        raise InputError(f'--config {path}: get_config() returned no ConfigDict')
    return _complete(config, f'--config {path}')


def _complete(config, where, fill=False):
    """Returns the config; raises InputError unless it has the default's keys and types.

    With `fill`, a missing key takes the default: the config is of a run made before the key was.
    """
    expected, given = dict(_items(default.get_config())), dict(_items(config))
    for key in sorted(given.keys() - expected.keys()):
        raise InputError(f'{where}: no config key {key!r}{_hint(key, expected)}')
    for key, before in expected.items():
        if key not in given and fill:
            _put(config, key, before)
        elif key not in given:
            raise InputError(f'{where}: config key {key} is missing; see configs/default.py')
        elif not _fits(given[key], before):
            kind = type(before).__name__
            raise InputError(f'{where}: config key {key}: {given[key]!r} is not a {kind}')
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
            raise InputError(f'no config key {key!r}{_hint(key, dict(_items(config)))}')
        try:
            parent[section] = _read(text, parent[section])
        except (ValueError, SyntaxError, TypeError) as error:
            kind = type(parent[section]).__name__
            raise InputError(f'config key {key}: {text!r} is not a {kind}') from error
    return config


def _read(text, before):
    """Reads text as the type of the value before it."""
    if isinstance(before, str):
        return text
    if isinstance(before, ConfigDict):
        raise TypeError('a section')
    value = {'true': True, 'false': False}.get(text.lower()) if isinstance(before, bool) else None
    value = ast.literal_eval(text) if value is None else value
    if isinstance(before, tuple):
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not _fits(value, before):
        raise TypeError('another type')
    return value


def _fits(value, before):
    """Says whether a value may stand where `before` stands; tuples are of numbers."""
    if isinstance(before, tuple):
        return isinstance(value, tuple) and all(_fits(item, 0.0) for item in value)
    kinds = (int, float) if isinstance(before, float) else type(before)
    return isinstance(value, kinds) and isinstance(value, bool) == isinstance(before, bool)


def _items(config, prefix=''):
    """Yields ('section.key', value) of every value in a config."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _items(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def _put(config, key, value):
    section, _, name = key.rpartition('.')
    with config.unlocked():
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[name] = value


def _hint(key, keys):
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    return f'; did you mean {near[0]}?' if near else ''


def _one_line(error):
    if isinstance(error, SyntaxError):
        return f'line {error.lineno}: {error.msg}'
    return ' '.join(f'{type(error).__name__}: {error}'.split())


if __name__ == '__main__':
    code = 0
    keep_compilations()
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        code = 128 + signal.SIGPIPE
    sys.exit(code)
