"""Notebooks: stored without outputs, and what they claim holds when they are executed."""

import json
import re

import nbclient
import nbformat
import pytest
from helpers import ROOT

NOTEBOOKS = sorted((ROOT / 'experiments').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_clean(path):
    notebook = json.loads(path.read_text())
    assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
    names = [cell['id'] for cell in notebook['cells']]
    assert len(set(names)) == len(names) > 4
    code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert code and not any(cell['outputs'] or cell['execution_count'] for cell in code)


@pytest.mark.slow
def test_a_backbone_of_ones_own_beats_blind_boxes(monkeypatch, tmp_path):
    monkeypatch.setenv('RPN_JAX_STEPS', '150')
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    notebook = nbformat.read(ROOT / 'experiments/own_backbone.ipynb', 4)
    resources = {'metadata': {'path': str(ROOT / 'experiments')}}
    nbclient.NotebookClient(notebook, kernel_name='python3', resources=resources).execute()
    printed = ''.join(
        output.get('text', '') for cell in notebook.cells for output in cell.get('outputs', ())
    )
    figures = {name: float(value) for name, value in re.findall(r'(\w+) .*AR@100 (\S+)', printed)}
    network = figures.pop('network')
    assert len(figures) == 4 and network > 0.2 > max(figures.values())
