"""Golden figures are what their program makes, where torch is installed."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from rpn_jax.weights import formats

GOLDEN = ROOT / 'tests' / 'golden'
QUICK = ('anchors', 'coding', 'match', 'nms', 'proposals')


@pytest.mark.skipif(not importlib.util.find_spec('torchvision'), reason='torchvision is missing')
def test_golden_figures_are_made_again(tmp_path):
    subprocess.run([sys.executable, GOLDEN / 'make.py', tmp_path, *QUICK], check=True)
    for name in (*QUICK, 'torch'):
        ours, stored = (np.load(folder / f'{name}.npz') for folder in (tmp_path, GOLDEN))
        assert set(ours) == set(stored)
        for key in stored:
            np.testing.assert_allclose(ours[key], stored[key], rtol=1e-5, atol=1e-5, err_msg=key)
    for name in ('torch', 'torch_checkpoint', 'torch_legacy'):
        ours, stored = (formats.read(folder / f'{name}.pth') for folder in (tmp_path, GOLDEN))
        assert ours.keys() == stored.keys()
        for key in stored:
            np.testing.assert_array_equal(ours[key], stored[key])
