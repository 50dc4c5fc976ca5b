"""An exported function runs without this project and gives the detector's proposals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from helpers import finished_run

import main
import rpn_jax

PROGRAM = """
import sys
sys.modules['rpn_jax'] = sys.modules['flax'] = None  # cannot be imported
import jax.export
import numpy as np
function = jax.export.deserialize(open(sys.argv[1], 'rb').read())
given = np.load(sys.argv[2])
results = function.call(given['image'], given['size'])
np.savez(sys.argv[3], *results)
print(*function.platforms)
"""


def test_an_exported_function_runs_with_jax_alone(tmp_path, capsys):
    workdir, output = finished_run().folder, tmp_path / 'new' / 'rpn.stablehlo'
    assert main.main(['export', f'--workdir={workdir}', f'--output={output}']) == 0
    assert f'{output}: step 8, images of 64 x 64 pixels to proposals' in capsys.readouterr().out
    about = json.loads(Path(f'{output}.json').read_text())
    assert 'upper left corner' in about['inputs'][0]['is']
    assert 'pixels of the canvas' in about['outputs'][0]['is']
    (shape, size_shape) = (each['shape'] for each in about['inputs'])
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.savez(tmp_path / 'in.npz', image=image, size=np.float32(shape[:2]))
    words = [output, tmp_path / 'in.npz', tmp_path / 'out.npz']
    process = subprocess.run(
        [sys.executable, '-c', PROGRAM, *words], check=True, capture_output=True, text=True
    )
    assert process.stdout.split() == about['platforms'] == ['cpu', 'cuda', 'tpu']
    expected = rpn_jax.restore(workdir).propose(image)
    with np.load(tmp_path / 'out.npz') as found:
        for array, own, told in zip(found.values(), expected, about['outputs'], strict=False):
            assert list(array.shape) == told['shape'] and array.dtype == told['dtype']
            np.testing.assert_allclose(array, own, rtol=1e-4, atol=1e-3)
    assert expected.valid.any() and size_shape == [2]
