"""torchvision itself, where it is installed: it takes our weights and gives the same numbers."""

import jax
import numpy as np
import pytest

import main
from configs import default
from experiments import program
from experiments.bench.ours import Case, config_of, variables_of
from rpn_jax import weights
from rpn_jax.training import checkpoint, loop, pretrained, workdir
from rpn_jax.training.parallel import replicate
from rpn_jax.training.step import TrainState

torch = pytest.importorskip('torch')
try:
    import torchvision
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
        checkpoints.save(7, replicate(state, jax.local_devices()))
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


@pytest.mark.parametrize('changes', [{}, {'fpn_norm': 'batch', 'head_convs': 2}])
def test_an_exported_pyramid_is_whole_for_torchvisions_detector(tmp_path, changes):
    config = default.get_config()
    pyramid = dict(depth=50, last_stage=5, fpn_stages=(2, 3, 4, 5))
    config.model.update(**pyramid, **changes)
    config.anchors.sizes = tuple((32 * 2**i,) for i in range(5))
    model = loop.build(config)[0]
    variables = variables_of(model)
    names = 'fasterrcnn_resnet50_fpn', 'fasterrcnn_resnet50_fpn_v2'
    make = getattr(torchvision.models.detection, names[bool(changes)])
    peer = make(weights=None, weights_backbone=None).eval()
    exported = {n: torch.from_numpy(t) for n, t in weights.from_variables(variables).items()}
    missing, unexpected = peer.load_state_dict(exported, strict=False)
    assert not unexpected and not [n for n in missing if n.startswith(('backbone.', 'rpn.'))]
    image = np.random.default_rng(0).standard_normal((1, 64, 96, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = peer.rpn.head(
            [*peer.backbone(torch.from_numpy(image).permute(0, 3, 1, 2)).values()]
        )
    for own, levels, values in zip(
        jax.jit(model.apply)(variables, image), theirs, (1, 4), strict=True
    ):
        rows = [level.permute(0, 2, 3, 1).reshape(-1, values).numpy() for level in levels]
        assert compare.relative(np.reshape(own, (-1, values)), np.concatenate(rows)) < 1e-5

    torch.save({'model': peer.state_dict()}, tmp_path / 'x.pth')
    tensors = pretrained.load(str(tmp_path / 'x.pth'), 50, (0.5, 1, 2))
    pretrained.check('', tensors, model)
    taken = pretrained.complete(tensors, model)
    jax.tree.map(np.testing.assert_array_equal, taken, jax.device_get(variables))


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
