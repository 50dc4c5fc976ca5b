"""torchvision itself, where it is installed: it takes our weights and gives the same numbers."""

import jax
import numpy as np
import pytest

import main
from experiments import program
from experiments.bench.ours import Case, config_of, variables_of
from rpn_jax import weights
from rpn_jax.training import checkpoint, loop, workdir
from rpn_jax.training.parallel import place
from rpn_jax.training.step import TrainState

torch = pytest.importorskip('torch')
try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError) as error:  # a build that does not belong to this torch
    pytest.skip(f'torchvision: {error}', allow_module_level=True)

from experiments import compare_torchvision as compare  # noqa: E402

CASE = Case('predict', 50, 'c4', 0, 1, (64, 64), 'float32')


@pytest.fixture
def exported(tmp_path):
    """Returns the file that --mode=export writes of a ResNet-50 C4 with random weights."""
    config = config_of(CASE)
    variables = variables_of(loop.build(config)[0])
    state = TrainState(np.int32(7), *variables.values(), {'none': np.zeros(1)})
    workdir.begin(tmp_path / 'run', config)
    with checkpoint.Checkpoints(tmp_path / 'run', every=1, keep=1) as checkpoints:
        checkpoints.save(7, place(state, jax.local_devices()))
    output = tmp_path / 'rpn.safetensors'
    flags = [f'--workdir={tmp_path / "run"}', '--mode=export', f'--output={output}']
    assert main.main(flags) == 0
    return output


def test_an_exported_file_loads_strictly_and_gives_the_same_numbers(exported):
    """compare() loads the tensors into torchvision's modules with strict=True."""
    tensors = weights.load(exported)
    rows = compare.compare(50, 'c4', 64, tensors)
    assert len(rows) == 1 + 3 + 4 + 6 + 3  # stem, blocks, logits, deltas, proposals
    for row, value in rows.items():
        assert value <= (compare.PIXELS if row == 'proposals' else 1e-5), row
    peer = compare.Network(CASE._asdict() | {'proposals': (6000, 1000)}).eval()
    with pytest.raises(RuntimeError, match='layer3.5.conv2.weight'):
        compare.take(peer, {k: t for k, t in tensors.items() if k != 'layer3.5.conv2.weight'})


def test_the_comparison_names_what_is_beyond_tolerance(monkeypatch, capsys):
    words = ['--depths', '50', '--size', '64']
    assert program.run(compare.main, words) == 0
    out = capsys.readouterr().out
    assert 'ResNet-50 c4' in out and 'ResNet-50 dc5' in out
    assert out.endswith('all within tolerance\n')
    monkeypatch.setattr(compare, 'TOLERANCE', 1e-9)
    assert program.run(compare.main, words) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any('c4   conv4_block5' in line and 'beyond 1e-09' in line for line in lines)
