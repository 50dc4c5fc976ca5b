"""torch and torchvision themselves, where they are installed: files there and back, outputs."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

import main
from configs import default
from rpn_jax import weights
from rpn_jax.models import rpn
from rpn_jax.training import checkpoint, workdir
from rpn_jax.training.parallel import place
from rpn_jax.training.step import TrainState

torch = pytest.importorskip('torch')
try:
    import torchvision
except (ImportError, RuntimeError) as error:  # a build that does not belong to this torch
    pytest.skip(f'torchvision: {error}', allow_module_level=True)


@pytest.fixture(scope='module')
def compare():
    """Returns the module experiments/compare_torchvision.py."""
    path = Path(__file__).parents[2] / 'experiments' / 'compare_torchvision.py'
    spec = importlib.util.spec_from_file_location('compare_torchvision', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def exported(tmp_path):
    """Returns the file that --mode=export writes of a ResNet-50 C4 with random weights."""
    config = default.get_config()
    config.model.update(depth=50)
    config.data.pixels = 'torchvision'
    image = np.zeros((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(rpn.build(config.model, config.anchors).init, jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def random(path, shape):
        n = rng.standard_normal(shape.shape).astype(np.float32)
        fan_in = np.prod(shape.shape[:-1])
        named = {'kernel': n * fan_in**-0.5, 'scale': 0.5 + 0.1 * n, 'var': np.exp(0.2 * n)}
        return named.get(path[-1].key, 0.1 * n)

    variables = jax.tree_util.tree_map_with_path(random, shapes)
    state = TrainState(
        np.int32(7), variables['params'], variables['batch_stats'], {'none': np.zeros(1)}
    )
    workdir.begin(tmp_path / 'run', config)
    with checkpoint.Checkpoints(tmp_path / 'run', every=1, keep=1) as checkpoints:
        checkpoints.save(7, place(state, jax.local_devices()))
    output = tmp_path / 'rpn.safetensors'
    flags = [f'--workdir={tmp_path / "run"}', '--mode=export', f'--output={output}']
    assert main.main(flags) == 0
    return output


def test_an_exported_file_loads_strictly_and_gives_the_same_numbers(compare, exported):
    """compare() loads the tensors into torchvision's modules with strict=True."""
    tensors = weights.load(exported)
    rows = compare.compare(50, 4, (1, 1, 1, 1), 64, tensors)
    assert len(rows) == 1 + 3 + 4 + 6 + len(compare.LAST)  # stem, blocks, head
    for row, value in rows.items():
        assert value <= (compare.PIXELS if row == 'proposals' else 1e-5), row
    one = tensors['layer3.5.conv2.weight'].copy()
    one[0] *= 1.01  # torchvision takes other weights than ours: it shows
    peer = compare.Peer(50, 4, 15)
    peer.take(tensors)
    image = torch.ones(1, 3, 64, 64)
    before = peer.look(image)['blocks']['conv4_block5']
    peer.take(tensors | {'layer3.5.conv2.weight': one})
    assert compare.relative(peer.look(image)['blocks']['conv4_block5'], before) > 1e-5
    with pytest.raises(RuntimeError, match='layer3.5.conv2.weight'):
        peer.take({k: t for k, t in tensors.items() if k != 'layer3.5.conv2.weight'})


def test_the_comparison_says_what_is_beyond_tolerance(compare, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['compare_torchvision.py', '--depths', '50', '--size', '64'])
    assert compare.main() == 0
    said = capsys.readouterr().out
    assert 'ResNet-50 C4' in said and 'ResNet-50 dilated conv5' in said
    assert said.endswith('all within tolerance\n')
    monkeypatch.setattr(compare, 'TOLERANCE', 1e-9)
    assert compare.main() == 1
    assert 'beyond tolerance: ResNet-50 C4: conv4_block5' in capsys.readouterr().out


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_a_state_dict_as_torch_saves_it(tmp_path, dtype, zipped):
    net = torchvision.models.resnet50().to(dtype)
    path = tmp_path / 'resnet50.pth'
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    found = weights.load(path)
    assert found.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(found[name].astype(np.float32), tensor.float().numpy())
