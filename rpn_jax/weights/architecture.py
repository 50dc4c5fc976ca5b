"""What tensors tell of their network, in the keywords of a config's section `model`."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from rpn_jax.models.resnet import BLOCKS, ResNet
from rpn_jax.weights import names

NORMS = {'': 'without norms', 'batch': 'with batch norm', 'group': 'with group norm'}


class Architecture(NamedTuple):
    """A ResNet, a pyramid and a head; None or empty is what is not there, or cannot be told."""

    blocks: dict  # {stage: number of blocks, 0 where some in between are not there}
    width: int | None  # channels of the stem
    fpn_stages: tuple
    fpn_channels: int | None
    fpn_norm: str | None  # '', 'batch' (which may be frozen) or 'group'
    head_convs: int


def of_tensors(tensors):
    """Returns the Architecture that tensors by torchvision's names are of."""
    shapes = {names.plain(name): np.shape(tensor) for name, tensor in tensors.items()}
    numbers = defaultdict(set)
    for match in filter(None, map(re.compile(r'layer(\d)\.(\d+)\.').match, shapes)):
        numbers[int(match[1]) + 1].add(int(match[2]))
    blocks = {s: len(each) if max(each) < len(each) else 0 for s, each in numbers.items()}
    width = next(iter(shapes.get('conv1.weight', ())), None)
    stages, channels, norm = (), None, None
    laterals = sorted(filter(None, map(names.LATERAL.match, shapes)), key=lambda m: int(m[1]))
    kernels = [shapes.get(f'{m[0]}0.weight', ()) for m in laterals if m.string.endswith('0.weight')]
    if kernels and width and all(len(kernel) == 4 for kernel in kernels):
        # A stage has twice the channels of the one before; conv2 has 4 * width.
        stages = tuple(round(math.log2(kernel[1] / width)) for kernel in kernels)
        channels = kernels[0][0]
        scale, variance = (f'fpn.inner_blocks.0.1.{each}' for each in ('weight', 'running_var'))
        norm = '' if scale not in shapes else 'batch' if variance in shapes else 'group'
    convs = sum(bool(re.fullmatch(r'rpn\.head\.conv\.\d+\.0\.weight', name)) for name in shapes)
    return Architecture(dict(sorted(blocks.items())), width, stages, channels, norm, convs)


def disagreement(tensors, model):
    """Returns what tensors by torchvision's names hold, and what to set in a config for an RPN.

    The tensors are those that the RPN would take. The text is '' where they can be its own, as far
    as their names and a few shapes tell, and where its backbone is no ResNet of ours.
    """
    if not isinstance(model.backbone, ResNet):
        return ''
    held, backbone, fpn = of_tensors(tensors), model.backbone, model.fpn
    last = max(held.blocks, default=backbone.last_stage)
    depths = [d for d, counts in BLOCKS.items() if held.blocks and _fits(held.blocks, counts)]
    own = {stage: n for stage, n in held.blocks.items() if stage <= backbone.last_stage}
    stages = tuple(int(name.removeprefix('conv')) for name in model.reads) if fpn else ()
    convs = getattr(model.head, 'convs', held.head_convs)
    wanted = {}
    if depths and not _fits(own, BLOCKS[backbone.depth]):
        wanted['depth'] = depths[0]
    if held.width and held.width != backbone.width:
        wanted['width'] = held.width
    if fpn and held.fpn_stages:
        if held.fpn_stages != stages:
            wanted['fpn_stages'] = held.fpn_stages
            if held.fpn_stages[-1] != backbone.last_stage:
                wanted['last_stage'] = held.fpn_stages[-1]
        if held.fpn_channels != fpn.channels:
            wanted['fpn_channels'] = held.fpn_channels
        if held.fpn_norm != fpn.norm.replace('frozen', 'batch'):
            wanted['fpn_norm'] = held.fpn_norm
    elif last < backbone.last_stage:
        wanted |= {'fpn_stages': tuple(s for s in stages if s <= last)} if stages else {}
        wanted['last_stage'] = last
    if held.head_convs and held.head_convs != convs:
        wanted['head_convs'] = held.head_convs
    if not wanted:
        return ''
    depth = wanted.get('depth', backbone.depth)
    named = f'ResNet-{depth}' if depth in depths else 'a ResNet'
    settings = ', '.join(f'{key}={value!r}' for key, value in wanted.items())
    return f'{named}{_described(held, wanted, last)}; set {settings}'


def _fits(blocks, counts):
    """Says whether stages of so many blocks can be those of a ResNet with `counts` from conv2."""
    return all(counts[stage - 2 : stage - 1] == (n,) for stage, n in blocks.items())


def _described(held, wanted, last):
    """Returns what a message says of an Architecture after its depth."""
    text = f' of width {held.width}' if 'width' in wanted else ''
    text += f' up to conv{last}' if last < 5 else ''
    if held.fpn_stages:
        text += f' with a pyramid on conv{held.fpn_stages[0]} to conv{held.fpn_stages[-1]}'
        text += f' of {held.fpn_channels} channels' if 'fpn_channels' in wanted else ''
        text += f' {NORMS[held.fpn_norm]}' if 'fpn_norm' in wanted else ''
    if held.head_convs and (held.fpn_stages or 'head_convs' in wanted):
        text += ' and' if held.fpn_stages else ' with'
        text += f' {held.head_convs} head convolution{"s" if held.head_convs > 1 else ""}'
    return text
