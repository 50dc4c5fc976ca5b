"""From the command line to a trained network and back; here is the tiny run that others look at."""

import atexit
import functools
import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import main
from configs import quickstart

ROOT = Path(__file__).parent.parent
TINY = {  # of quickstart: a fraction of a second for its steps, seconds to compile
    'steps': 8,
    'log_every': 1,
    'model.width': 8,
    'model.last_stage': 3,
    'anchors.sizes': (16, 32),
    'targets.samples': 48,  # fewer than cells: the head looks only where it has to
    'proposals.pre_nms': 200,
    'proposals.post_nms': 50,
    'data.image_size': 64,
    'data.batch_size': 4,
    'data.scenes': (10, 6),
    'checkpoint.every': 2,
    'checkpoint.keep': 3,
    'evaluation.every': 4,
    'optim.warmup_steps': 2,
}


class Run(NamedTuple):
    """A workdir that main.py made, and the names of the functions that were compiled for it."""

    folder: Path
    compiled: list[str]


def tiny_config(**changes):
    """Returns the config of the tiny run; changes are by dotted key, with __ for the dot."""
    config = quickstart.get_config()
    named = {key.replace('__', '.'): value for key, value in changes.items()}
    config.update_from_flattened_dict(TINY | named)
    return config


def tiny_flags(folder, **changes):
    """Returns the command line of a run of tiny_config(**changes)."""
    named = {key.replace('__', '.'): value for key, value in changes.items()}
    overrides = [f'--config.{key}={value}' for key, value in (TINY | named).items()]
    return [f'--config={ROOT}/configs/quickstart.py', f'--workdir={folder}', *overrides]


def scratch():
    """Returns a folder that lives as long as the tests."""
    folder = tempfile.mkdtemp(prefix='rpn_jax_')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def finished_run():
    """Trains the tiny config once for all tests: they must not write there."""
    folder = scratch() / 'tiny'
    with compilations() as compiled:
        assert main.main(tiny_flags(folder)) == 0
    return Run(folder, compiled)


class compilations(logging.Handler):
    """Collects the names of the functions that XLA compiles inside the context."""

    def __enter__(self):
        super().__init__()
        self.names = []
        self._context = jax.log_compiles()
        self._context.__enter__()
        logging.getLogger('jax').addHandler(self)
        return self.names

    def __exit__(self, *error):
        logging.getLogger('jax').removeHandler(self)
        self._context.__exit__(*error)

    def emit(self, record):
        if found := re.match(r'Finished XLA compilation of (\S+)', record.getMessage()):
            self.names.append(found[1])


@functools.cache
def _compiled():
    return scratch()


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
    """Compiles carelessly, and nothing twice: compiling takes most of these tests' time."""
    options = {  # inside, and after
        'jax_disable_most_optimizations': (True, False),
        'jax_compilation_cache_dir': (str(_compiled()), None),
        'jax_persistent_cache_min_compile_time_secs': (0.0, 1.0),
    }
    for name, (inside, _) in options.items():
        jax.config.update(name, inside)
    yield
    for name, (_, after) in options.items():
        jax.config.update(name, after)
    compilation_cache.reset_cache()
