"""Notebooks: stored without outputs, and what they claim holds when they are executed."""

import json
import re

import nbclient
import nbformat
import pytest
from helpers import ROOT, finished_run

NOTEBOOKS = sorted((ROOT / 'experiments').glob('*.ipynb'))


def outputs(name, monkeypatch, tmp_path, **environment):
    """Executes a notebook and returns the outputs of its cells."""
    places = {'IPYTHONDIR': str(tmp_path / 'ipython'), 'PYTHONPATH': str(ROOT)}
    for variable, value in (places | environment).items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(ROOT / 'experiments' / name, 4)
    resources = {'metadata': {'path': str(ROOT / 'experiments')}}
    nbclient.NotebookClient(notebook, kernel_name='python3', resources=resources).execute()
    return [output for cell in notebook.cells for output in cell.get('outputs', ())]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_clean(path):
    notebook = json.loads(path.read_text())
    assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
    names = [cell['id'] for cell in notebook['cells']]
    assert len(set(names)) == len(names) > 4
    code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert code and not any(cell['outputs'] or cell['execution_count'] for cell in code)


@pytest.mark.slow
def test_a_notebook_looks_inside_a_workdir(monkeypatch, tmp_path):
    found = outputs(
        'restore.ipynb',
        monkeypatch,
        tmp_path,
        RPN_JAX_WORKDIR=str(finished_run().folder),
        JAX_DISABLE_MOST_OPTIMIZATIONS='1',
    )
    printed = ''.join(output.get('text', '') for output in found)
    assert 'image_size: 64' in printed and 'step 8\n' in printed and 'objects' in printed
    assert sum('image/png' in output.get('data', {}) for output in found) == 2


@pytest.mark.slow
def test_a_backbone_of_ones_own_beats_blind_boxes(monkeypatch, tmp_path):
    found = outputs('own_backbone.ipynb', monkeypatch, tmp_path, RPN_JAX_STEPS='150')
    printed = ''.join(output.get('text', '') for output in found)
    figures = {name: float(value) for name, value in re.findall(r'(\w+) .*AR@100 (\S+)', printed)}
    network = figures.pop('network')
    assert len(figures) == 4 and network > 0.2 > max(figures.values())
