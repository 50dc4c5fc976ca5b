"""Compares the network with torchvision's: every block, the pyramid, the head, the proposals.

Needs torch and torchvision beside this project. Both get the same weights (random, or a file that
weights.load reads) and the same image; of each layer it prints the largest difference of any number
over the largest number. Exit code 1 where one is beyond the tolerance.

    python -m experiments.compare_torchvision [--fpn] [--depths 50 101] [--size N] [--weights FILE]
"""

import itertools
import sys

import jax
import numpy as np

try:
    import torch

    from experiments.bench.torchvision_worker import Network
except ImportError as error:
    sys.exit(f'error: {error}; install torch and torchvision beside this project')

from experiments.bench.ours import Case, config_of, variables_of
from experiments.program import Parser, at_least, run
from rpn_jax import weights
from rpn_jax.models import rpn
from rpn_jax.ops.proposals import propose

TOLERANCE = 1e-4  # of the largest number of a layer
PIXELS = 1e-2  # of a proposal's side


def main(argv):
    parser = Parser('experiments.compare_torchvision', __doc__)
    parser.add_argument('--depths', type=int, nargs='+', default=[50, 101], choices=(50, 101, 152))
    parser.add_argument(
        '--size', type=at_least(32), default=256, help='a multiple of 16, with --fpn of 64'
    )
    parser.add_argument('--fpn', action='store_true', help='a pyramid; default: C4, dilated conv5')
    parser.add_argument('--weights', default='', help='a file of one depth; default: random ones')
    arguments = parser.parse_args(argv)
    stages, least = (('fpn',), 64) if arguments.fpn else (('c4', 'dc5'), 16)
    if arguments.size % least:  # torchvision's strides would be others
        parser.error(f'--size {arguments.size} is not a multiple of {least}')
    tensors, beyond = weights.load(arguments.weights) if arguments.weights else None, 0
    for depth, stage in itertools.product(arguments.depths, stages):
        if tensors is None or stage != 'dc5' or 'layer4.0.conv1.weight' in tensors:
            for layer, value in compare(depth, stage, arguments.size, tensors).items():
                unit, most = (' px', PIXELS) if layer == 'proposals' else ('', TOLERANCE)
                verdict = '' if value <= most else f'  beyond {most:.0e}'  # NaN is beyond it
                beyond += bool(verdict)
                print(f'ResNet-{depth} {stage:4} {layer:14} {value:.1e}{unit}{verdict}')
    print(f'{beyond} beyond tolerance' if beyond else 'all within tolerance')
    return int(beyond > 0)


def compare(depth, stage, size, tensors=None):
    """Returns {layer: largest relative difference} of one network; proposals in pixels."""
    case = Case('predict', depth, stage, 0, 1, (size, size), 'float32')
    config = config_of(case)
    limits = config.proposals.pre_nms, config.proposals.post_nms
    peer = Network(case._asdict() | {'proposals': limits}).eval()
    model = rpn.build(config.model, config.anchors)
    variables = variables_of(model)
    if tensors is not None:
        variables = weights.to_variables(weights.from_variables(variables) | tensors, variables)
    take(peer, weights.from_variables(variables))

    image = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    theirs, levels, *answers, boxes = outputs_of(peer, torch.from_numpy(image))
    apply = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))
    maps, seen = apply(variables, image.transpose(0, 2, 3, 1))
    differences = {}
    for name, value in theirs.items():
        block = output(seen['intermediates']['backbone'], name)
        differences[name] = relative(block, value.permute(0, 2, 3, 1))
    for number, value in enumerate(levels, start=2):
        level = seen['intermediates']['fpn']['__call__'][0][number - 2]
        differences[f'P{number}'] = relative(level, value.permute(0, 2, 3, 1))
    logits, deltas = (
        np.concatenate([x.permute(0, 2, 3, 1).numpy().ravel() for x in each]) for each in answers
    )
    differences['logits'] = relative(maps[0].ravel(), logits)
    differences['deltas'] = relative(maps[1].ravel(), deltas)

    # Of the peer's own logits. It ranks by their sigmoid: what rounds alike may change places.
    kept = jax.jit(propose, static_argnames=('pre_nms', 'post_nms'))(
        logits,
        deltas.reshape(-1, 4),
        rpn.anchors_of(model, (size, size)),
        np.float32([size, size]),
        **config.proposals,
    )
    own = np.asarray(kept.boxes)[np.asarray(kept.valid)]
    apart = np.abs(own[:, None] - boxes[None]).max(axis=-1)
    nearest = max(apart.min(axis=0).max(), apart.min(axis=1).max())
    return differences | {'proposals': nearest if len(own) == len(boxes) else np.inf}


def output(layers, name):
    """Returns the output of a block, or of the stem: its convolution, shifted by its norm."""
    if name == 'stem':
        _, shift = layers['stem_norm']['__call__'][0]
        return np.asarray(layers['stem_conv']['__call__'][0]) + np.asarray(shift)
    return layers[name]['__call__'][0]


def relative(ours, theirs):
    """Returns max |a - b| / max |b|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def take(peer, tensors):
    """Loads tensors by name, strictly: each of the peer's, and no others."""
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    head = {name: tensor for name, tensor in state.items() if name.startswith('rpn.')}
    body = {k.removeprefix('backbone.'): t for k, t in state.items() if k not in head}
    peer.body.load_state_dict(body, strict=True)
    peer.rpn.load_state_dict({k.removeprefix('rpn.'): t for k, t in head.items()}, strict=True)


@torch.no_grad()
def outputs_of(peer, image):
    """Returns the blocks' outputs by our names, those of a pyramid, the head's, and the boxes."""
    blocks, x = {}, image
    for name, part in (peer.body.body if peer.is_pyramid else peer.body).named_children():
        if name == 'relu':
            x = torch.relu(x)  # `part` would write into the stem's output
        elif name.startswith('layer'):
            for number, block in enumerate(part):
                x = blocks[f'conv{int(name[-1]) + 1}_block{number}'] = block(x)
        else:
            x = part(x)
        if name == 'bn1':
            blocks['stem'] = x
    maps = peer.body(image) if peer.is_pyramid else {'0': x}
    boxes, _ = peer.propose(maps, image)
    levels = [*maps.values()] if peer.is_pyramid else []
    return blocks, levels, *peer.rpn.head([*maps.values()]), boxes[0].numpy()


if __name__ == '__main__':
    sys.exit(run(main, None))
