"""The rules of the house that a program can check."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.util import resolve_name
from pathlib import Path

import pytest

import rpn_jax

ROOT = Path(__file__).parent.parent
# Folders are layers: a module imports only from its own and from those above it. Last come the
# modules beside the folders, which may import everything.
LAYERS = ['ops', 'models', 'weights', 'data', 'training', 'evaluation', 'diagnosis', 'report', '']
FOUNDATION = ['console', 'errors', 'files']  # beside the folders, but under all of them
LANGUAGE = ['collections', 'dataclasses', 'functools', 'math', 'typing']  # for pure functions
WITHOUT_TEST_FILE = {'errors'}

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in ('configs', 'experiments', 'rpn_jax', 'tests')
    for path in sorted(ROOT.glob(f'{folder}/**/*.py'))
}
TREES = {file: ast.parse(text) for file, text in SOURCES.items()}
PACKAGE = {file: tree for file, tree in TREES.items() if file.startswith('rpn_jax/')}
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def module(file):
    """Returns the name of a module inside rpn_jax: rpn_jax/data/voc.py -> data.voc."""
    parts = Path(file).with_suffix('').parts[1:]
    return '.'.join(part for part in parts if part != '__init__')


def layer(name):
    """Returns the number of a module's layer, by its name inside rpn_jax; -1 is the foundation."""
    first = name.partition('.')[0]
    return -1 if first in FOUNDATION else LAYERS.index(first if first in LAYERS else '')


def within(name, parents):
    """Returns whether a dotted name is one of `parents` or inside one."""
    return any(f'{name}.'.startswith(f'{parent}.') for parent in parents)


def imports(file):
    """Returns the full names that a module imports, at the top or in a function."""
    names, package = set(), file.rpartition('/')[0].replace('/', '.')
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name('.' * node.level + (node.module or ''), package)
            names |= {f'{origin}.{alias.name}' for alias in node.names}
    return names


IMPORTS = {file: imports(file) for file in TREES}


def repository_files():
    """Returns the files that git knows or would add; without git, those that it would."""
    command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listing.stdout.split('\0') if name]
    except (OSError, subprocess.CalledProcessError):
        ignored = {line.strip('/') for line in (ROOT / '.gitignore').read_text().splitlines()}
        ignored.add('.git')
        paths = [path for path in ROOT.rglob('*') if not ignored & {*path.relative_to(ROOT).parts}]
    return [path for path in paths if path.is_file()]


def test_files_and_functions_are_short():
    assert [file for file, text in SOURCES.items() if text.count('\n') > 500] == []
    assert [
        f'{file}: {node.name}'
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        if node.end_lineno - node.lineno >= 90
    ] == []


def test_every_folder_is_a_layer():
    folders = {file.split('/')[1] for file in PACKAGE if file.count('/') > 1}
    assert folders == set(LAYERS) - {''}
    assert [file for file in SOURCES if 'utils' in Path(file).with_suffix('').parts] == []


def test_modules_import_only_from_layers_above_them():
    assert [
        f'{file} imports {name}'
        for file in PACKAGE
        for name in IMPORTS[file]
        if within(name, ['rpn_jax']) and name != f'rpn_jax.{module(file)}'
        if file != 'rpn_jax/__init__.py'
        if layer(name.removeprefix('rpn_jax').removeprefix('.')) > layer(module(file))
    ] == []


@pytest.mark.parametrize(
    ('part', 'allowed'),
    [('ops', ['jax', 'rpn_jax.ops']), ('evaluation.metrics', ['numpy'])],
)
def test_pure_modules_import_only_their_library(part, allowed):
    names = {name for file in PACKAGE if within(module(file), [part]) for name in IMPORTS[file]}
    assert names and [name for name in names if not within(name, allowed + LANGUAGE)] == []


@pytest.mark.parametrize(
    ('library', 'owner'), [('flax.linen', 'models'), ('orbax', 'training.checkpoint')]
)
def test_a_library_is_used_in_its_own_place(library, owner):
    users = {module(f) for f in PACKAGE for name in IMPORTS[f] if within(name, [library])}
    assert users and [name for name in users if not within(name, [owner])] == []


def test_public_names_say_what_they_are():
    first_lines = {
        f'{file}: {node.name}': (ast.get_docstring(node) or ' ').splitlines()[0]
        for file, tree in PACKAGE.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_')
    }
    assert [
        name
        for name, line in first_lines.items()
        if not (line[0].isupper() and line.endswith(('.', ':')))
    ] == []


def test_no_file_can_run_code():
    """Weights and configs come from strangers; reading them must stay harmless.

    Pickles are read in one module, by an Unpickler of its own, which decides what may be called.
    """
    offenders = {}
    for file, tree in PACKAGE.items():
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        used = {'torch.load', 'eval', 'exec'} & (called | IMPORTS[file])
        for name in ('pickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib'):
            used |= {name} if any(within(i, [name]) for i in IMPORTS[file]) else set()
        if used:
            offenders[file] = used
    reader = 'rpn_jax/weights/pickles.py'
    assert offenders == {reader: {'pickle'}}
    nodes = list(ast.walk(PACKAGE[reader]))
    uses = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    assert {name for name in uses if name.startswith('pickle.')} == {'pickle.Unpickler'}
    readers = [
        node
        for node in nodes
        if isinstance(node, ast.ClassDef)
        and 'find_class' in [getattr(part, 'name', None) for part in node.body]
    ]
    assert [ast.unparse(base) for node in readers for base in node.bases] == ['pickle.Unpickler']


def test_the_repository_stands_alone():
    """Names no package registry, which is the user's choice, and no folder outside itself."""
    needles = ['pypi' + '.org', 'python' + 'hosted', 'anaconda' + '.org', '..' + '/shared']
    files = repository_files()
    assert ROOT / 'tests/test_layout.py' in files
    assert [
        f'{path.relative_to(ROOT)}: {needle}'
        for path in files
        for needle in needles
        if needle.encode() in path.read_bytes()
    ] == []


def test_every_module_has_its_test_file():
    """tests/ mirrors rpn_jax/: data/sources/voc.py is tested by data/sources/test_voc.py."""
    paths = [Path(file).relative_to('rpn_jax') for file in PACKAGE]
    assert [
        test
        for path in paths
        if path.stem not in {'__init__', *WITHOUT_TEST_FILE}
        if (test := f'tests/{(path.parent / f"test_{path.stem}.py").as_posix()}') not in SOURCES
    ] == []


def test_no_test_file_imports_another():
    """Helpers of several test files are in tests/helpers.py and beside it, fixtures in conftest."""
    assert [
        f'{file} imports {name}'
        for file, names in IMPORTS.items()
        for name in names
        if file.startswith('tests/') and any(part.startswith('test_') for part in name.split('.'))
    ] == []


def test_the_wheel_holds_every_folder():
    packages = set(PROJECT['tool']['setuptools']['packages'])
    folders = {file.rpartition('/')[0].replace('/', '.') for file in PACKAGE}
    assert packages == folders | {'rpn_jax.configs'}


def test_the_public_names_are_those_that_other_projects_import():
    names = """
        Anchors iou area encode decode clip nms ranked_nms match sample assign propose Proposals
        objectness_loss box_loss rpn_losses ResNet FPN RPNHead RPN
        load_weights to_variables from_variables restore
        average_recall recall average_best_overlap best_overlaps
    """
    assert set(rpn_jax.__all__) == set(names.split())


def test_what_is_installed_without_extras_is_enough_to_use_a_network():
    """The public names, inference among them, do not import what only training needs."""
    distributions = {
        re.match(r'[\w-]+', requirement)[0].lower().replace('-', '_')
        for requirement in PROJECT['project']['optional-dependencies']['train']
    }
    modules = (distributions - {'rich'}) | {'tensorboardX'}  # Flax brings rich
    program = f"""
import sys
sys.modules.update(dict.fromkeys({modules!r}))  # importing them is an error
import rpn_jax
assert not {{'jax', 'flax', 'numpy'}} & set(sys.modules)
rpn_jax.Anchors, rpn_jax.assign, rpn_jax.rpn_losses, rpn_jax.propose
assert not {{'flax', 'cv2', 'orbax', 'ml_collections'}} & set(sys.modules)
for name in rpn_jax.__all__:
    getattr(rpn_jax, name)
"""
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)


def test_imports_change_nothing_in_the_process():
    """Whatever module is imported; what others set when they are imported is theirs."""
    names = [f'rpn_jax.{module(file)}'.rstrip('.') for file in PACKAGE]
    program = f"""
import importlib, logging, os, signal, sys, threading, warnings
import cv2, flax, grain, jax, matplotlib, optax, orbax.checkpoint, tensorboardX
import numpy as np, tensorflow_datasets

def state():
    handled = {{number: signal.getsignal(number) for number in signal.valid_signals()}}
    return (
        dict(os.environ), handled, threading.active_count(), list(warnings.filters),
        list(sys.path), os.getcwd(), np.geterr(), dict(matplotlib.rcParams), cv2.getNumThreads(),
        dict(jax.config.values),
        list(logging.root.handlers), logging.root.level, sys.unraisablehook,
        logging.getLogger('rpn_jax').handlers, logging.getLogger('rpn_jax').level,
    )

before = state()
for name in {names!r}:
    importlib.import_module(name)
for was, now in zip(before, state(), strict=True):
    assert was == now, (was, now)
"""
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)


def test_all_that_is_printed_passes_the_function_that_escapes_names():
    prints = {
        f'{file}: {function.name}'
        for file, tree in PACKAGE.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'print'
    }
    assert prints == {'rpn_jax/console.py: show', 'rpn_jax/cli.py: _print_help'}
