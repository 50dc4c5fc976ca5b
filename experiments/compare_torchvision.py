"""Compares the network with torchvision's: every block, the head, the proposals.

Needs torch and torchvision beside this project. Both get the same weights (random, or a file that
pretrained.load reads) and the same image; each cell is the largest difference of any number over
the largest number. Exit code 1 where one is beyond the tolerance.

    python experiments/compare_torchvision.py [--depths 50 101] [--size 256] [--weights FILE]
"""

import argparse
import re
import sys
from pathlib import Path

import jax
import numpy as np

try:
    import torch
    import torchvision
    from torchvision.models.detection import image_list, rpn
except ImportError as error:
    sys.exit(f'error: {error}; install torch and torchvision beside this project')

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

from configs import default  # noqa: E402
from rpn_jax import weights  # noqa: E402
from rpn_jax.errors import InputError  # noqa: E402
from rpn_jax.models import rpn as ours  # noqa: E402
from rpn_jax.ops.proposals import propose  # noqa: E402

VARIANTS = {'C4': (4, (1, 1, 1, 1)), 'dilated conv5': (5, (1, 1, 1, 2))}  # last stage, dilations
TOLERANCE = 1e-4  # of the largest number of a layer
LAST = ('logits', 'deltas', 'proposals')  # below the blocks
PIXELS = 1e-2  # of a proposal's side


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--depths', type=int, nargs='+', default=[50, 101], choices=(50, 101, 152))
    parser.add_argument('--size', type=int, default=256, help='of the image, a multiple of 16')
    parser.add_argument('--weights', default='', help='a file of one depth; default: random ones')
    arguments = parser.parse_args()
    if arguments.size < 32 or arguments.size % 16:
        parser.error(f'--size {arguments.size} is not a multiple of 16, and at least 32')
    try:
        tensors = weights.load(arguments.weights) if arguments.weights else None
        columns = {
            f'ResNet-{depth} {name}': compare(depth, *variant, arguments.size, tensors)
            for depth in arguments.depths
            for name, variant in VARIANTS.items()
            if tensors is None or f'layer{variant[0] - 1}.0.conv1.weight' in tensors
        }
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
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


def compare(depth, last_stage, dilations, size, tensors):
    """Returns {layer: largest relative difference} of one network; proposals in pixels."""
    config = default.get_config()
    config.model.update(depth=depth, last_stage=last_stage, dilations=dilations)
    model = ours.build(config)
    peer = Peer(depth, last_stage, len(config.anchors.sizes) * len(config.anchors.aspect_ratios))
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32))
    variables = jax.tree.map(lambda shape: np.zeros(shape.shape, np.float32), shapes)
    random = peer.random()
    head = {name: tensor for name, tensor in random.items() if name.startswith('rpn.')}
    variables = weights.to_variables(random if tensors is None else head | tensors, variables)
    peer.take(weights.from_variables(variables))

    image = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    theirs = peer.look(torch.from_numpy(image))
    look = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))
    (logits, deltas), seen = look(variables, image.transpose(0, 2, 3, 1))
    found = {}
    for name, value in theirs['blocks'].items():
        block = output(seen['intermediates']['backbone'], name)
        found[name] = relative(block, value.permute(0, 2, 3, 1))
    channels_last = [part.permute(0, 2, 3, 1).reshape(-1) for part in theirs['head']]
    for row, mine, other in zip(('logits', 'deltas'), (logits, deltas), channels_last, strict=True):
        found[row] = relative(np.ravel(mine), other)

    # The peer's own logits: two that differ by rounding may change places.
    logits, deltas = (part.numpy() for part in channels_last)
    kept = jax.jit(propose, static_argnames=('pre_nms', 'post_nms'))(
        logits,
        deltas.reshape(-1, 4),
        ours.anchors(model, (size, size)),
        np.float32([size, size]),
        **config.proposals,
    )
    boxes = np.asarray(kept.boxes)[np.asarray(kept.valid)]
    same = boxes.shape == theirs['boxes'].shape
    found['proposals'] = float(np.abs(boxes - theirs['boxes']).max()) if same else np.inf
    return found


def output(layers, name):
    """Returns what a block gave, or the stem: its convolution, shifted as its folded norm says."""
    if name == 'stem':
        _, shift = layers['stem_norm']['__call__'][0]
        return np.asarray(layers['stem_conv']['__call__'][0]) + np.asarray(shift)
    return layers[name]['__call__'][0]


def relative(ours, theirs):
    """Returns max |a - b| / max |b|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


class Peer(torch.nn.Module):
    """torchvision's ResNet with frozen norms, cut after a stage, and its RPN."""

    def __init__(self, depth, last_stage, anchors_per_cell):
        super().__init__()
        dilated = [False, False, last_stage == 5]
        self.resnet = getattr(torchvision.models, f'resnet{depth}')(
            norm_layer=torchvision.ops.FrozenBatchNorm2d, replace_stride_with_dilation=dilated
        )
        del self.resnet.fc
        for stage in range(last_stage + 1, 6):
            delattr(self.resnet, f'layer{stage - 1}')
        self.last_stage = last_stage
        sizes, ratios = ((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)
        limits = {'training': 6000, 'testing': 6000}, {'training': 1000, 'testing': 1000}
        self.rpn = rpn.RegionProposalNetwork(
            rpn.AnchorGenerator(sizes, ratios),
            rpn.RPNHead(256 * 2 ** (last_stage - 2), anchors_per_cell),
            *(0.7, 0.3, 256, 0.5, *limits, 0.7),
        )
        self.eval()

    def random(self):
        """Returns tensors of random weights by name, scaled so that a deep network stays tame."""
        rng, tensors = np.random.default_rng(0), {}
        for name, tensor in self._named():
            n = rng.standard_normal(tensor.shape).astype(np.float32)
            if tensor.ndim == 4:
                scale = 0.003 if name.startswith('rpn') else (2 / np.prod(tensor.shape[1:])) ** 0.5
                tensors[name] = n * np.float32(scale)
            elif name.endswith('running_var'):
                tensors[name] = np.exp(0.2 * n)
            elif name.endswith('weight'):
                tensors[name] = (1 + 0.1 * n) * (0.2 if '.bn3.' in name else 1)
            else:
                tensors[name] = 0.1 * n
        return tensors

    def take(self, tensors):
        """Loads tensors by name, strictly."""
        state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
        head = {k.removeprefix('rpn.'): v for k, v in state.items() if k.startswith('rpn.')}
        body = {name: tensor for name, tensor in state.items() if not name.startswith('rpn.')}
        self.resnet.load_state_dict(body, strict=True)
        self.rpn.load_state_dict(head, strict=True)

    @torch.no_grad()
    def look(self, image):
        """Returns the blocks' outputs by our names, the head's, and the boxes of the proposals."""
        net, blocks = self.resnet, {}
        blocks['stem'] = net.bn1(net.conv1(image))
        x = net.maxpool(torch.relu(blocks['stem']))  # net.relu would write into it
        for stage in range(2, self.last_stage + 1):
            for number, block in enumerate(getattr(net, f'layer{stage - 1}')):
                x = blocks[f'conv{stage}_block{number}'] = block(x)
        head = [part[0] for part in self.rpn.head([x])]
        images = image_list.ImageList(image, [tuple(image.shape[2:])])
        boxes, _ = self.rpn(images, {'0': x})
        return {'blocks': blocks, 'head': head, 'boxes': boxes[0].numpy()}

    def _named(self):
        yield from self.resnet.state_dict().items()
        yield from ((f'rpn.{name}', tensor) for name, tensor in self.rpn.state_dict().items())


if __name__ == '__main__':
    sys.exit(main())
