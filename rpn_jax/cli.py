"""The command line: a mode, a config, values of its keys; messages; exit codes."""

import argparse
import contextlib
import difflib
import errno
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import NamedTuple

from rpn_jax import config as configs
from rpn_jax.console import show
from rpn_jax.errors import InputError, Interrupted, disk_line, leave

HOSTS = 'rpn_jax.training.hosts'  # a module that takes seconds to import
SHARED_MODES = 'train', 'evaluate', 'predict'  # modes that several processes can share
TIMEOUTS = {'meet': 300, 'heartbeat': 45}  # seconds
LONGEST_TIMEOUT = 1_000_000
AGAIN = 1  # seconds after which a signal is sent again
USAGE = '[MODE] --config=FILE [--workdir=runs/NAME] [--config.section.key=value] [PATH ..]'
FULL = (
    'the memory of a device is full (--debug shows where); config keys data.batch_size and '
    'data.image_size: lower, or model.remat'
)
logger = logging.getLogger(__name__)


class Mode(NamedTuple):
    """What a mode does, for the help, and which options it takes beside the config."""

    help: str
    options: tuple = ()


MODES = {
    'train': Mode('trains, or resumes the workdir, evaluates and writes a report', ('strict',)),
    'evaluate': Mode('evaluates a checkpoint of the workdir', ('step', 'output', 'strict')),
    'compare': Mode('puts the workdirs --runs=A,B,.. side by side', ('runs', 'output')),
    'inspect': Mode(
        'checks and draws the first training batches as the network gets them', ('batch',)
    ),
    'doctor': Mode('finds why a config and its data learn slowly or not at all', ('strict',)),
    'lr_range': Mode('trains while the learning rate grows, to find those that learn'),
    'schedule': Mode('shows the learning rate over the run; trains nothing'),
    'anchors': Mode('measures how the anchors fit the training objects, suggests better ones'),
    'statistics': Mode('counts the pixels and boxes of the training data'),
    'predict': Mode('writes proposals of PATH .. (images, folders)', ('step', 'output', 'paths')),
    'verify': Mode('reads all checkpoints of the workdir and names those that are damaged'),
    'export': Mode(
        'writes a checkpoint as --output=FILE.safetensors or .stablehlo', ('step', 'output')
    ),
}


def main(argv=None):
    """Runs one mode and returns the exit code; argv None are the words of the process."""
    if argv is None:
        _at_signals(leave)
        sys.unraisablehook = _ignore_lost
    try:
        try:
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, 'reconfigure'):
                    stream.reconfigure(errors='backslashreplace')  # an ASCII terminal
            with _Messages():
                return _run(sys.argv[1:] if argv is None else list(argv), process=argv is None)
        finally:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        if isinstance(error, BrokenPipeError):  # whoever read it has left, as `head` does
            return 128 + signal.SIGPIPE
        if error.errno != errno.ENOSPC or '--debug' in (sys.argv if argv is None else argv):
            raise
        show(f'error: the output cannot be written ({error})', file=sys.stderr)
        return 1


def _at_signals(handler):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(number, _):
    """Raises KeyboardInterrupt, and again a second later where that got lost.

    A callback, as that of JAX at a gc, has nowhere to raise it, and libraries catch everything.
    """
    again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
    raise KeyboardInterrupt(number)


def _ignore_lost(unraisable):
    """Prints an exception that a callback could not raise, but not that of a signal."""
    if not isinstance(unraisable.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _run(words, process):
    """Runs the mode that the words name; a user's error becomes one line on stderr."""
    try:
        arguments, changes = _parse(words)
        if arguments.help:
            _print_help()
            return 0
        options = {name: getattr(arguments, name) for name in MODES[arguments.mode].options}
        if arguments.distributed and not arguments.print_config:
            _start(arguments, process)
        if arguments.mode != 'compare':
            options |= _config(arguments, changes)
        if not arguments.print_config:
            getattr(_commands(process), f'{arguments.mode}_mode')(**options)
    except (InputError, OSError, MemoryError) as error:
        if '--debug' in words or isinstance(error, BrokenPipeError):
            if not _prefix():
                raise
            traceback.print_exc()
        if isinstance(error, MemoryError):
            error = InputError('the memory is full (--debug shows where)')
        if not isinstance(error, InputError):  # a disk that is full, say
            error = InputError(disk_line(error))
        line = configs.with_keys(str(error))
        return _end(1, f'error: {_prefix()}{line}', line)
    except Interrupted as interruption:
        return _end(interruption.code, f'{_prefix()}{interruption}')
    except KeyboardInterrupt as interruption:
        if process:
            _at_signals(signal.SIG_IGN)  # what is on its way
        code = 128 + next(iter(interruption.args), signal.SIGINT)
        _end(code, f'{_prefix()}interrupted', 'interrupted')
        if process:  # the end of the interpreter may crash while XLA's threads still compile
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(code)
        return code
    except Exception as error:
        if 'RESOURCE_EXHAUSTED' in str(error) and '--debug' not in words:  # as JAX and XLA say it
            return _end(1, f'error: {_prefix()}{FULL}', FULL)
        if not _prefix():
            raise
        sys.modules[HOSTS].await_end(error)  # where another is lost, the line of that ends this one
        traceback.print_exc()
        line = f'{type(error).__name__}: {error}'.partition('\n')[0]
        return _end(1, f'error: {_prefix()}{line}', line)
    return _end(0)


def _start(arguments, process):
    """Connects the processes of a run; from then on process 0 alone prints what is no error."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # JAX's coordinator warns of what we want
    _commands(process)
    given = {name: getattr(arguments, name) for name in ('coordinator', 'processes', 'process')}
    timeouts = {f'{name}_timeout': getattr(arguments, f'{name}_timeout') for name in TIMEOUTS}
    hosts = sys.modules[HOSTS]
    hosts.start(**{k: v for k, v in given.items() if v not in ('', None)}, **timeouts)
    if not hosts.is_first():
        logging.getLogger('rpn_jax').setLevel(logging.ERROR)


def _prefix():
    """Returns which of several processes a line is of, '' where there is one."""
    return sys.modules[HOSTS].prefix() if HOSTS in sys.modules else ''


def _end(code, line='', failure=''):
    """Prints a last line and returns an exit code.

    Of several processes this one ends, and with a failure the others, too.
    """
    if _prefix():
        sys.modules[HOSTS].leave(code, line, failure)
    if line:
        show(line, file=sys.stderr)
    return code


def _commands(process):
    """Returns the module of the modes; its imports, which take seconds, wait for right words."""
    try:
        from rpn_jax import commands
        from rpn_jax.training.workdir import keep_compilations
    except ModuleNotFoundError as error:
        if error.name.partition('.')[0] == 'rpn_jax':
            raise
        raise InputError(f"{error}; it comes with pip install 'rpn_jax[train]'") from error
    if process:
        _at_signals(_interrupt)
        keep_compilations()
    return commands


def _config(arguments, changes):
    """Returns the config and the folder that a mode gets; prints it where that is asked for."""
    folder = arguments.workdir or f'runs/{Path(arguments.config).stem}'
    folder = Path(os.path.expanduser(folder))  # Path's raises where there is no such user
    if arguments.config:
        where, read = f'--config {arguments.config}', configs.read(arguments.config)
    else:
        where, read = f'{folder}/config.json', configs.read_run(folder)
    config = configs.override(read, changes)
    if arguments.mode != 'doctor':  # which says it among its findings
        configs.check(config, where, changes)
    for line in configs.without_effect(config, changes):
        logger.warning(line)
    if arguments.print_config:
        _print_config(read, config, configs.resolve(config, folder), where, changes)
    return {'config': config, 'folder': folder}


def _print_config(read, config, resolved, where, changes):
    """Prints every key of a config, its value, and where that comes from."""
    stages = map(configs.items, (configs.default(), read, config, resolved))
    default, read, config, resolved = stages
    for key in configs.KEYS:
        origin = 'default' if read[key] == default[key] else where
        origin = 'command line' if key in changes else origin
        origin = 'auto' if resolved[key] != config[key] else origin
        show(f'{key} = {resolved[key]!r}  # {origin}')


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f'{message}; see --help')


def _parse(words):
    """Returns the arguments, and the values of keys as {'section.key': text}."""
    rest, changes = key_values(words)
    parser = _Parser(allow_abbrev=False, add_help=False)
    for option in ('--config', '--workdir', '--mode', '--output', '--runs', '--batch'):
        parser.add_argument(option, default='')
    for option in ('--step', '--processes', '--process'):
        parser.add_argument(option, type=int)
    parser.add_argument('--coordinator', default='')
    for name, seconds in TIMEOUTS.items():
        parser.add_argument(f'--{name}-timeout', type=int, default=seconds)
    for option in ('--strict', '--print-config', '--debug', '--distributed'):
        parser.add_argument(option, action='store_true')
    parser.add_argument('--help', '-h', action='store_true')
    arguments, rest = parser.parse_known_args(rest)
    if arguments.help:
        return arguments, changes
    if rest and rest[0] == words[0] and not words[0].startswith('-') and not arguments.mode:
        arguments.mode = rest.pop(0)
    arguments.mode = arguments.mode or 'train'
    if arguments.mode not in MODES:
        near = difflib.get_close_matches(arguments.mode, MODES, n=1)
        near = f'; did you mean {near[0]}?' if near else f'; there are {", ".join(MODES)}'
        raise InputError(f'no mode {arguments.mode!r}{near}')
    if rest and rest[0] in MODES and arguments.mode != 'predict':
        raise InputError(f'the mode comes first, or as --mode={rest[0]}')
    paths = [word for word in rest if not word.startswith('--')]
    arguments.paths = paths if arguments.mode == 'predict' else []
    if unknown := [word for word in rest if word not in arguments.paths]:
        raise InputError(f'unknown argument {unknown[0]!r}; see --help')
    _check_options(arguments, changes)
    return arguments, changes


def key_values(words):
    """Returns the words that are no --config.section.key=value, and these as {key: text}.

    The `=` may be a space.
    """
    rest, changes, words = [], {}, list(words)
    while words:
        word = words.pop(0)
        if not word.startswith(configs.PREFIX):
            rest.append(word)
            continue
        key, equals, text = word[len(configs.PREFIX) :].partition('=')
        if not equals:
            if not words or words[0].startswith('--'):
                raise InputError(f'{word} needs a value: {word}=VALUE')
            text = words.pop(0)
        changes[key] = text
    return rest, changes


def _check_options(arguments, changes):
    """Raises InputError where a mode is given an option that it does not take, or lacks one."""
    mode = arguments.mode
    _check_hosts(arguments)
    for option in ('output', 'runs', 'step', 'strict', 'batch'):
        given = getattr(arguments, option)
        takes = [name for name in MODES if option in MODES[name].options]
        if given not in ('', None) and given is not False and mode not in takes:
            shown = f'--{option}' if given is True else f'--{option}={given}'
            raise InputError(f'{shown} belongs to {", ".join(takes)}, not to the mode {mode}')
    if mode == 'compare':
        runs = map(str.strip, arguments.runs.split(','))
        arguments.runs = [os.path.expanduser(run) for run in runs if run]
        if changes or arguments.print_config:
            raise InputError('the mode compare takes no config, only --runs and --output')
    elif not arguments.config and not arguments.workdir:
        raise InputError('name a --config (see configs/), or the --workdir of a run')


def _check_hosts(arguments):
    """Settles whether a run has several processes; raises InputError where options contradict."""
    names = 'coordinator', 'processes', 'process'
    given = [name for name in names if getattr(arguments, name) not in ('', None)]
    if not given and not arguments.distributed:
        for name, seconds in TIMEOUTS.items():
            if getattr(arguments, f'{name}_timeout') != seconds:
                raise InputError(f'--{name}-timeout needs --distributed or --coordinator')
        return
    if arguments.mode not in SHARED_MODES:
        option = given[0] if given else 'distributed'
        modes = ', '.join(SHARED_MODES)
        raise InputError(f'--{option} belongs to {modes}, not to the mode {arguments.mode}')
    if missing := [f'--{name}' for name in names if given and name not in given]:
        raise InputError(f'--{given[0]} needs {" and ".join(missing)}, too')
    if given and not 0 <= arguments.process < arguments.processes:
        raise InputError(
            f'--process={arguments.process} is not one of --processes={arguments.processes}; '
            'they are counted from 0'
        )
    for name in TIMEOUTS:
        if not 1 <= (seconds := getattr(arguments, f'{name}_timeout')) <= LONGEST_TIMEOUT:
            raise InputError(
                f'--{name}-timeout={seconds} is not from 1 to {LONGEST_TIMEOUT} seconds'
            )
    arguments.distributed = not given or arguments.processes > 1


def _print_help():
    """Prints the modes, the options, and every key of the config with its default."""
    defaults, comments = configs.items(configs.default()), configs.comments()
    program = 'rpn-jax' if Path(sys.argv[0]).stem == 'rpn-jax' else 'python main.py'
    print(f'usage: {program} {USAGE}\n\nTrains, evaluates and shows region proposal networks.\n')
    print('MODE, the first word or --mode=MODE:')
    print(*(f'  {name:<12}{mode.help}' for name, mode in MODES.items()), sep='\n')
    print(OPTIONS)
    for key in configs.KEYS:
        print(f'  {f"{configs.PREFIX}{key}={defaults[key]}":<44}  {comments[key]}'.rstrip())


OPTIONS = """
options:
  --config=FILE     a Python file as those in configs/, or the name of one of these (voc_dilated);
                    default: the config of the workdir
  --workdir=FOLDER  where a run is kept; default: runs/NAME of the config
  --step=N          evaluate, predict, export: the checkpoint of this step; default: the newest
  --output=PATH     what export, predict or compare write; of evaluate, proposals as COCO results
  --runs=A,B,..     workdirs that compare compares
  --batch=FILE      inspect: a batch whose loss was not finite, as a run keeps it in its workdir
  --strict          train, evaluate: other data than the workdir's are an error, not a warning;
                    doctor: a finding of level error gives exit code 1
  --print-config    print the resolved config, and where each value comes from, and exit
  --debug           show the traceback of an error
  --distributed     train, evaluate, predict: on many hosts, with the same command on each
                    (docs/scale.md); JAX finds the others in SLURM, Open MPI, TPU pod slices and
                    GKE; elsewhere name them by
  --coordinator=HOST:PORT, --processes=N, --process=I
                    where process 0 listens, how many there are, and which of 0 to N - 1 this is
  --meet-timeout=S, --heartbeat-timeout=S
                    seconds to wait for all to come (300), and for a sign of life of one (45)
  --help            show this

keys of the config, with their defaults (--config.section.key=value or .. value):"""


class _Messages(logging.Handler):
    """Prints what the package logs on stdout while the context lasts, warnings as such."""

    def __enter__(self):
        self._logger = logging.getLogger('rpn_jax')
        self._level, self._propagate = self._logger.level, self._logger.propagate
        self._logger.propagate = False  # libraries may have given the root logger a handler
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)

    def __exit__(self, *_):
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        self._logger.propagate = self._propagate

    def emit(self, record):
        start = 'warning: ' if record.levelno >= logging.WARNING else ''
        show(f'{start}{record.getMessage()}')
