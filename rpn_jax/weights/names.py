"""Names of tensors: those of Caffe2, detectron2 and mmdetection -> torchvision's; anchors' order.

torchvision, Caffe2, mmdetection and this project number the anchors of a cell by aspect ratio
first, then size; detectron2 by size first. The channels of a detectron2 head are put in our order,
which with one size is the same.
"""

import re
from collections import Counter

import numpy as np

from rpn_jax.weights.formats import Tensors

EPSILON = 1e-5  # of every norm
SHOWN = 20  # networks, or parts of a file, that a message lists
TORCHVISION = re.compile(
    r'(conv1|bn1|layer\d\.\d+\.(conv\d|bn\d|downsample\.[01])|fc|'
    r'fpn\.(inner|layer)_blocks\.\d+\.[01]|rpn\.head\.(conv\.\d+\.0|cls_logits|bbox_pred))\.'
    r'(weight|bias|running_mean|running_var|num_batches_tracked)'
)
UNUSED = re.compile(r'(^|\.)(fc\.(weight|bias)|num_batches_tracked)$')  # classifier, counters
# Dropped: other parts of a detector, what is computed anyhow, the former optimizer's state, and the
# bias that Caffe2's ResNet-50 keeps before a norm that has one (some 1e-9; unused there too).
DROPPED = re.compile(
    r'(.*_momentum|conv1_b|lr|weight_order|pixel_(mean|std)|(proposal_generator|rpn)\.'
    r'anchor_generator\..*|roi_heads\..*|(cls_score|bbox_pred)_[wb])$'
)
# The first block of a ResNet, after what a trainer's modules put before all names.
FIRST = re.compile(
    r'((?:.*?\.)??)(backbone\.(body\.|bottom_up\.)?|bottom_up\.)?(layer1|res2)\.0\.conv1\.weight',
    re.DOTALL,
)
PART = re.compile(  # of a file, by the beginning of a name; or all its counters, its momentum
    r'.*?(num_batches_tracked|momentum)$|'
    r'((?:(?:module|model|backbone|body|rpn|proposal_generator)\.)*[^.]*).*',
    re.DOTALL,
)
LATERAL = re.compile(r'fpn\.inner_blocks\.(\d+)\.')
VALUES = {'rpn.head.cls_logits': 1, 'rpn.head.bbox_pred': 4}  # for each anchor


def block(match):
    """Returns torchvision's name of a block, whose stage (conv2, ..) and number are matched."""
    return f'layer{int(match[1]) - 1}.{match[2]}.'


def level(match):
    """Returns torchvision's name of a pyramid's layer: of what kind, its number, if it is a norm.

    The number is that of a level, or of a stage: _from_finest takes the first from all.
    """
    kind, number, norm = match.groups()
    blocks = 'inner' if kind in ('lateral', 'inner_') else 'layer'
    return f'fpn.{blocks}_blocks.{number}.{int(norm not in (None, "conv"))}'


SUBSTITUTIONS = (  # names of Caffe2 (Detectron, MSRA's), detectron2, mmdetection -> torchvision's
    (r'^backbone\.(body\.)?', ''),  # of torchvision's detectors, too
    (r'^bottom_up\.', ''),
    (r'^(stem\.|res_)', ''),
    (r'^res(\d)[._](\d+)[._]', block),
    (r'\.(branch1|shortcut)', '.downsample.0'),
    (r'\.branch2a', '.conv1'),
    (r'\.branch2b', '.conv2'),
    (r'\.branch2c', '.conv3'),
    (r'downsample\.0(_[bg]n|\.norm)', 'downsample.1'),
    (r'conv(\d)(_[bg]n|\.norm)', r'bn\1'),
    (r'(^|\.)gn(\d)\.', r'\1bn\2.'),
    (r'^(fc1000|pred)_', 'fc_'),
    (r'^proposal_generator\.rpn_head\.', 'rpn.head.'),
    (r'^rpn\.head\.conv\.conv(\d)', r'rpn.head.conv.\1.0'),
    (r'\.objectness_logits\.', '.cls_logits.'),
    (r'\.anchor_deltas\.', '.bbox_pred.'),
    (r'^conv_rpn_(fpn\d_)?', 'rpn.head.conv_'),
    (r'^rpn_(cls_logits|bbox_pred)_(fpn\d_)?', r'rpn.head.\1_'),
    (r'^rpn_head\.rpn_conv\.(\d)\.conv\.', r'rpn.head.conv.\1.0.'),
    (r'^rpn_head\.rpn_conv\.', 'rpn.head.conv.'),
    (r'^rpn_head\.rpn_cls\.', 'rpn.head.cls_logits.'),
    (r'^rpn_head\.rpn_reg\.', 'rpn.head.bbox_pred.'),
    (r'^fpn_(inner_)?res(\d)_\d+_sum(?:_lateral)?(_gn)?(?=_)', level),
    (r'^fpn_(lateral|output)(\d)(\.norm)?(?=\.)', level),
    (r'^neck\.(lateral|fpn)_convs\.(\d+)\.(conv|bn|gn)(?=\.)', level),
    (r'_(w|s|gamma)$', '.weight'),
    (r'_(b|beta)$', '.bias'),
    (r'_(rm|running_mean)$', '.running_mean'),
    (r'_(riv|running_var)$', '.running_var'),
    # torchvision's of earlier versions
    (r'^rpn\.head\.conv\.(weight|bias)$', r'rpn.head.conv.0.0.\1'),
    (r'^(fpn\.(inner|layer)_blocks\.\d+)\.(weight|bias)$', r'\1.0.\3'),
)


def plain(name):
    """Returns a torchvision name without what its detectors put before the names of a backbone.

    Names that torchvision does not have stay as they are.
    """
    short = re.sub(r'^backbone\.(body\.)?', '', name)
    return short if TORCHVISION.fullmatch(short) else name


def of_detector(tensors):
    """Returns tensors of plain names by those of torchvision's detectors, if a pyramid is there.

    Names that torchvision does not have stay as they are.
    """
    if not any(map(LATERAL.match, tensors)):
        return tensors
    prefixes = {'rpn': '', 'fpn': 'backbone.'}
    return {
        prefixes.get(name.partition('.')[0], 'backbone.body.') + name
        if TORCHVISION.fullmatch(name)
        else name: tensor
        for name, tensor in tensors.items()
    }


def to_torchvision(tensors, aspect_ratios):
    """Returns Tensors under torchvision's names: of a ResNet, with fpn.*, rpn.head.* where given.

    aspect_ratios is how many a cell has, which a detectron2 head is put in order by; None takes it
    from the anchors in the file, or else 3. Names that no rule knows stay as they are. Raises
    ValueError where two tensors get one name, where there are several networks, or where a head has
    other anchors.
    """
    tensors, origin = _unwrapped(tensors), {}
    passed_over = [name for name in tensors if DROPPED.match(name)]
    renamed = Tensors({}, tensors.passed_over + passed_over)
    news = {n: rename(n, SUBSTITUTIONS) for n in tensors if not DROPPED.match(n)}
    for name, new in _from_finest(news).items():
        if new in renamed:
            raise ValueError(f'{origin[new]} and {name} are the same tensor {new}')
        renamed[new], origin[new] = tensors[name], name
    if any(name.endswith(('_bn_s', '_bn_gamma')) for name in tensors):
        renamed |= _statistics(renamed)
    if any(name.startswith('proposal_generator.rpn_head.') for name in tensors):
        cells = [t for name, t in tensors.items() if '.cell_anchors.' in name]
        counts = {_ratios_of(cell) for cell in cells} or {aspect_ratios or 3}
        if counts != {aspect_ratios or min(counts)}:
            found = ' and '.join(map(str, sorted(counts)))
            wanted = aspect_ratios or 'one number for all levels'
            raise ValueError(f"its head's anchors have {found} aspect ratios, not {wanted}")
        _reorder(renamed, min(counts))
    return renamed


def _unwrapped(tensors):
    """Returns the Tensors of one network without the modules around it.

    A head and a pyramid may stand outside.

    Of MoCo's two encoders it is the one that learns, encoder_q.
    """
    starts = {match[1] for name in tensors if (match := FIRST.fullmatch(name))}
    if not starts and all(name.startswith('module.') for name in tensors):  # of DataParallel
        starts = {'module.'}
    start = '' if '' in starts or not starts else min(starts, key=len)
    if len(starts) > 1 and start:
        start = next((s for s in starts if s.endswith('encoder_q.')), '')
        if {start, start.replace('encoder_q.', 'encoder_k.')} != starts:
            networks = ', '.join(sorted(start[:-1] for start in starts)[:SHOWN])
            raise ValueError(f'several networks: {networks}; pretrained_key picks one of them')
    inner, passed_over = {}, list(getattr(tensors, 'passed_over', ()))
    for name, tensor in tensors.items():
        if name.startswith(start) or rename(name, SUBSTITUTIONS).startswith(('rpn.head.', 'fpn.')):
            inner[name.removeprefix(start)] = tensor
        else:
            passed_over.append(name)
    return Tensors(inner, passed_over)


def _from_finest(names):
    """Returns {name: torchvision's} with the levels of a pyramid counted from the finest."""
    first = min((int(m[1]) for m in map(LATERAL.match, names.values()) if m), default=0)
    return {
        name: re.sub(
            r'^(fpn\.(?:inner|layer)_blocks\.)(\d+)', lambda m: m[1] + str(int(m[2]) - first), new
        )
        for name, new in names.items()
    }


def parts(names):
    """Returns the parts of a file that names of tensors belong to: 'roi_heads (6), lr, ..'."""
    counts = Counter(PART.sub(r'\1\2', name, count=1) for name in names)
    listed = [f'{part} ({n})' if n > 1 else part for part, n in counts.items()]
    more = f' and {len(listed) - SHOWN} more' if len(listed) > SHOWN else ''
    return ', '.join(listed[:SHOWN]) + more


def rename(name, substitutions):
    """Returns what the substitutions, in their order, make of a name if torchvision has such names.

    Other names stay as they are.
    """
    new = name
    for pattern, replacement in substitutions:
        new = re.sub(pattern, replacement, new)
    return new if TORCHVISION.fullmatch(new) else name


def _statistics(tensors):
    """Returns the statistics of norms that were folded: with these a norm is its scale and bias."""
    statistics = {}
    for name, scale in tensors.items():
        norm, _, parameter = name.rpartition('.')
        is_norm = re.fullmatch(r'(layer\d\.\d+\.)?(bn\d|downsample\.1)', norm)
        if is_norm and parameter == 'weight' and f'{norm}.running_var' not in tensors:
            statistics[f'{norm}.running_mean'] = np.zeros(scale.shape, np.float32)
            statistics[f'{norm}.running_var'] = np.full(scale.shape, 1 - EPSILON, np.float32)
    return statistics


def _ratios_of(cell):
    """Returns the number of aspect ratios of base anchors [K, 4]: one size has one area."""
    cell = np.asarray(cell, np.float64)
    if cell.ndim != 2 or cell.shape[1] != 4 or not len(cell) or not np.all(np.isfinite(cell)):
        raise ValueError('cell_anchors that are no boxes')
    areas = (cell[:, 2] - cell[:, 0]) * (cell[:, 3] - cell[:, 1])
    same = np.isclose(areas, areas[0], rtol=0.05)
    count = len(areas) if same.all() else int(np.argmin(same))
    if len(areas) % count or not np.allclose(
        areas.reshape(-1, count), areas[::count, None], rtol=0.05
    ):
        raise ValueError('cell_anchors that are not some aspect ratios of some sizes')
    return count


def _reorder(tensors, aspect_ratios):
    """Puts the anchors of a head's channels from size-major into ratio-major order."""
    for name, tensor in tensors.items():
        values = VALUES.get(name.rpartition('.')[0])
        if values is None:
            continue
        if tensor.ndim == 0 or len(tensor) % (values * aspect_ratios):
            raise ValueError(
                f'{name} {tensor.shape} of a detectron2 head is not of {aspect_ratios} aspect '
                'ratios; aspect_ratios must be those of the head'
            )
        split = tensor.reshape(-1, aspect_ratios, values, *tensor.shape[1:])
        tensors[name] = split.swapaxes(0, 1).reshape(tensor.shape)
