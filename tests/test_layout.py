"""The rules of the house that a program can check."""

import ast
import subprocess
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GEOMETRY = 'boxes anchors targets losses anchor_types nms proposals parts'.split()
# A module imports only what stands above it, or beside it in its own package. Last comes '',
# the package itself, which may import everything.
HOUSE = [
    'errors',
    *GEOMETRY,
    *'metrics baselines bootstrap dialects misses coverage'.split(),
    *'convolution resnet devices rpn checkpoint'.split(),
    *'workdir stored downloads data.pixels pretrained data.images data.records'.split(),
    *'data limits optim features gallery evaluate trained progress train analysis modes'.split(),
    '',
]
LANGUAGE = ['collections', 'functools', 'math', 'typing']  # what a pure function needs of Python
WITHOUT_TEST_FILE = {'errors'}

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for part in ('main.py', 'configs/*.py', 'experiments/**/*.py', 'rpn_jax/**/*.py', 'tests/*.py')
    for path in sorted(ROOT.glob(part))
}
PACKAGE = {file: ast.parse(text) for file, text in SOURCES.items() if file.startswith('rpn_jax/')}


def module(file):
    """Returns the name of a module inside rpn_jax: rpn_jax/data/voc.py -> data.voc."""
    parts = Path(file).with_suffix('').parts[1:]
    return '.'.join(part for part in parts if part != '__init__')


def place(name):
    """Returns the entry of HOUSE for a module or for something inside one: boxes.iou -> boxes."""
    while name not in HOUSE:
        name = name.rpartition('.')[0]
    return name


def within(name, parents):
    """Returns whether a dotted name is one of `parents` or inside one."""
    return any(f'{name}.'.startswith(f'{parent}.') for parent in parents)


def imports(tree, package):
    """Returns the full names that a module of `package` imports, at the top or in a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name('.' * node.level + (node.module or ''), package)
            names |= {f'{origin}.{alias.name}' for alias in node.names}
    return names


IMPORTS = {
    file: imports(tree, file.rpartition('/')[0].replace('/', '.')) for file, tree in PACKAGE.items()
}


def importers(package):
    """Returns the modules of rpn_jax that import `package` or something inside it."""
    return {
        module(file)
        for file, names in IMPORTS.items()
        if any(within(name, [package]) for name in names)
    }


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


def test_imports_are_seen_in_every_form():
    source = """
import flax.linen as nn
from jax import numpy as jnp
from . import records
def later():
    from ..boxes import area, iou
"""
    names = 'flax.linen jax.numpy rpn_jax.data.records rpn_jax.boxes.area rpn_jax.boxes.iou'
    assert imports(ast.parse(source), 'rpn_jax.data') == set(names.split())


def test_files_and_functions_are_short():
    assert [file for file, text in SOURCES.items() if text.count('\n') > 350] == []
    assert [
        f'{file}: {node.name}'
        for file, text in SOURCES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.end_lineno - node.lineno >= 60
    ] == []


def test_every_module_has_a_place_in_the_house():
    assert [file for file in PACKAGE if module(file) and not place(module(file))] == []
    assert [file for file in SOURCES if 'utils' in Path(file).with_suffix('').parts] == []


def test_modules_import_only_what_stands_above_them():
    wrong = []
    for file, names in IMPORTS.items():
        here = place(module(file))
        for name in names:
            inner = name.removeprefix('rpn_jax').removeprefix('.')
            if within(name, ['rpn_jax']) and not within(inner, [here]):
                if HOUSE.index(place(inner)) >= HOUSE.index(here):
                    wrong.append(f'{file} imports {name}')
    assert wrong == []


def test_only_the_modes_import_the_analysis():
    assert {
        name for name in importers('rpn_jax.report') if not within(name, ['analysis', 'modes'])
    } == set()


@pytest.mark.parametrize(
    ('modules', 'allowed'),
    [(GEOMETRY, ['jax', *(f'rpn_jax.{name}' for name in GEOMETRY)]), (['metrics'], ['numpy'])],
    ids=['geometry', 'metrics'],
)
def test_pure_modules_import_only_their_library(modules, allowed):
    assert [
        f'{file} imports {name}'
        for file, names in IMPORTS.items()
        for name in names
        if module(file) in modules and not within(name, allowed + LANGUAGE)
    ] == []


@pytest.mark.parametrize(
    ('library', 'owners'), [('flax.linen', {'resnet', 'rpn'}), ('orbax', {'checkpoint'})]
)
def test_a_library_is_used_in_its_own_place(library, owners):
    assert importers(library) - owners == set()


def test_public_names_say_what_they_are():
    silent = []
    for file, tree in PACKAGE.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_'):
                line = (ast.get_docstring(node) or ' ').splitlines()[0]
                if not (line[0].isupper() and line.endswith(('.', ':'))):
                    silent.append(f'{file}: {node.name}')
    assert silent == []


def test_no_file_can_run_code():
    """Weights and configs come from strangers; reading them must stay harmless."""
    forbidden = {'pickle.load', 'pickle.loads', 'torch.load', 'eval', 'exec'}
    found = {}
    for file, tree in PACKAGE.items():
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if used := forbidden & (calls | IMPORTS[file]):
            found[file] = used
    assert found == {}


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
    names = {Path(file).stem for file in PACKAGE} - {'__init__'} - WITHOUT_TEST_FILE
    assert {f'tests/test_{name}.py' for name in names} - SOURCES.keys() == set()
