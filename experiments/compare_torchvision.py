"""Compares the network with torchvision's: every block, the head, the proposals.

Needs torch and torchvision beside this project. Both get the same weights (random, or a file that
weights.load reads) and the same image; each cell is the largest difference of any number over the
largest number. Exit code 1 where one is beyond the tolerance.

    python -m experiments.compare_torchvision [--depths 50 101] [--size 256] [--weights FILE]
"""

import re
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

STAGES = {'c4': 'C4', 'dc5': 'dilated conv5'}
TOLERANCE = 1e-4  # of the largest number of a layer
LAST = ('logits', 'deltas', 'proposals')  # below the blocks
PIXELS = 1e-2  # of a proposal's side


def main(argv):
    parser = Parser('experiments.compare_torchvision', __doc__)
    parser.add_argument('--depths', type=int, nargs='+', default=[50, 101], choices=(50, 101, 152))
    parser.add_argument('--size', type=at_least(32), default=256, help='a multiple of 16')
    parser.add_argument('--weights', default='', help='a file of one depth; default: random ones')
    arguments = parser.parse_args(argv)
    if arguments.size % 16:
        parser.error(f'--size {arguments.size} is not a multiple of 16')
    tensors = weights.load(arguments.weights) if arguments.weights else None
    columns = {
        f'ResNet-{depth} {name}': compare(depth, stage, arguments.size, tensors)
        for depth in arguments.depths
        for stage, name in STAGES.items()
        if tensors is None or stage == 'c4' or 'layer4.0.conv1.weight' in tensors
    }
    print(table(columns))
    worst = [
        f'{column}: {layer}'
        for column, layers in columns.items()
        for layer, value in layers.items()
        if not value <= (PIXELS if layer == 'proposals' else TOLERANCE)  # so NaN is beyond it
    ]
    print('\n'.join(f'beyond tolerance: {line}' for line in worst) or 'all within tolerance')
    return 1 if worst else 0


def table(columns):
    """Returns the table: a row per layer, from the stem to the proposals, which are in pixels."""
    blocks = {layer for layers in columns.values() for layer in layers} - set(LAST)
    order = sorted(blocks, key=lambda name: [int(n) for n in re.findall(r'\d+', name)])
    lines = [f'{"largest difference":20}' + ''.join(f'{name:>26}' for name in columns)]
    for layer in (*order, *LAST):
        values = [layers.get(layer) for layers in columns.values()]
        shown = ('-' if value is None else f'{value:.1e}' for value in values)
        unit = ' (px)' if layer == 'proposals' else ''
        lines.append(f'{layer + unit:20}' + ''.join(f'{cell:>26}' for cell in shown))
    return '\n'.join(lines)


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
    theirs, *outputs, boxes = outputs_of(peer, torch.from_numpy(image))
    apply = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))
    (logits, deltas), seen = apply(variables, image.transpose(0, 2, 3, 1))
    differences = {}
    for name, value in theirs.items():
        block = output(seen['intermediates']['backbone'], name)
        differences[name] = relative(block, value.permute(0, 2, 3, 1))
    outputs = [maps.permute(0, 2, 3, 1).reshape(-1).numpy() for maps in outputs]
    for row, mine, other in zip(LAST, (logits, deltas), outputs, strict=False):
        differences[row] = relative(np.ravel(mine), other)

    # The peer's own logits: two that differ by rounding may change places.
    kept = jax.jit(propose, static_argnames=('pre_nms', 'post_nms'))(
        outputs[0],
        outputs[1].reshape(-1, 4),
        rpn.anchors_of(model, (size, size)),
        np.float32([size, size]),
        **config.proposals,
    )
    own = np.asarray(kept.boxes)[np.asarray(kept.valid)]
    differences['proposals'] = np.abs(own - boxes).max() if own.shape == boxes.shape else np.inf
    return differences


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
    peer.body.load_state_dict({k: t for k, t in state.items() if k not in head}, strict=True)
    peer.rpn.load_state_dict({k.removeprefix('rpn.'): t for k, t in head.items()}, strict=True)


@torch.no_grad()
def outputs_of(peer, image):
    """Returns the blocks' outputs by our names, the head's two, and the boxes of the proposals."""
    blocks, x = {}, image
    for name, part in peer.body.named_children():
        if name == 'relu':
            x = torch.relu(x)  # `part` would write into the stem's output
        elif name.startswith('layer'):
            for number, block in enumerate(part):
                x = blocks[f'conv{int(name[-1]) + 1}_block{number}'] = block(x)
        else:
            x = part(x)
        if name == 'bn1':
            blocks['stem'] = x
    logits, deltas = (maps[0] for maps in peer.rpn.head([x]))
    boxes, _ = peer.propose({'0': x}, image)
    return blocks, logits, deltas, boxes[0].numpy()


if __name__ == '__main__':
    sys.exit(run(main, None))
