"""Names of tensors: those of Caffe2 and detectron2 -> torchvision's, and the order of anchors.

torchvision and this project number the anchors of a cell by aspect ratio first, then size;
detectron2 by size first. The channels of a detectron2 head are put in our order.
"""

import re

import numpy as np

EPSILON = 1e-5  # of every norm
LAYERS = {'1': 'downsample.0', '2a': 'conv1', '2b': 'conv2', '2c': 'conv3'}  # Caffe2's branches
NORM = {  # Caffe2's, detectron2's suffixes
    's': 'weight',
    'b': 'bias',
    'w': 'weight',
    'rm': 'running_mean',
    'riv': 'running_var',
    'gamma': 'weight',
    'beta': 'bias',
    'running_mean': 'running_mean',
    'running_var': 'running_var',
}
PART = f'({"|".join(NORM)})'
BOTTOM_UP = r'(?:backbone\.)?(?:bottom_up\.)?'  # how detectron2's names begin
RPN_HEAD = r'proposal_generator\.rpn_head\.'
UNUSED = re.compile(r'(^|\.)(fc\.(weight|bias)|num_batches_tracked)$')  # classifier, counters
# Dropped: other parts of a detector, what is computed anyhow, the former optimizer's state, and the
# bias that Caffe2's ResNet-50 keeps before a norm that has one (some 1e-9; unused there too).
DROPPED = re.compile(
    r'(.*_momentum|conv1_b|lr|weight_order|pixel_(mean|std)|(proposal_generator|rpn)\.'
    r'anchor_generator\..*|roi_heads\..*|(cls_score|bbox_pred)_[wb])$'
)


def to_torchvision(tensors, aspect_ratios):
    """Returns the tensors under torchvision's names: of a ResNet, with rpn.head.* where given.

    aspect_ratios is how many a cell has, which a detectron2 head is put in order by; None takes it
    from the anchors in the file, or else 3. Names that no rule knows stay as they are. Raises
    ValueError where two tensors get one name, or where a head has other anchors.
    """
    if all(name.startswith('module.') for name in tensors):  # of torch's DataParallel
        tensors = {name.removeprefix('module.'): tensor for name, tensor in tensors.items()}
    renamed, origin = {}, {}
    for name, tensor in tensors.items():
        if DROPPED.match(name):
            continue
        new = _rename(name)
        if new in renamed:
            raise ValueError(f'{origin[new]} and {name} are the same tensor {new}')
        renamed[new], origin[new] = tensor, name
    if any(name.endswith(('_bn_s', '_bn_gamma')) for name in tensors):
        renamed |= _statistics(renamed)
    if any(name.startswith('proposal_generator.rpn_head.') for name in tensors):
        cells = [t for name, t in tensors.items() if '.cell_anchors.' in name]
        count = _ratios_of(cells[0]) if len(cells) == 1 else aspect_ratios or 3
        if aspect_ratios and count != aspect_ratios:
            raise ValueError(f"its head's anchors have {count} aspect ratios, not {aspect_ratios}")
        _reorder(renamed, count)
    return renamed


def _rename(name):
    for pattern, replacement in RULES:
        if match := pattern.fullmatch(name):
            return replacement(*match.groups())
    return name


def _norm(conv):
    """conv2 -> bn2, downsample.0 -> downsample.1: the norm after a convolution."""
    return 'downsample.1' if conv == 'downsample.0' else conv.replace('conv', 'bn')


def _block(stage, block, layer, kind, parameter):
    """Names a tensor of a block: its convolution's, or where kind is set, its norm's."""
    parameter = NORM.get(parameter, parameter)
    layer = LAYERS.get(layer, layer).replace('shortcut', 'downsample.0')
    return f'layer{int(stage) - 1}.{block}.{_norm(layer) if kind else layer}.{parameter}'


RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Caffe2 (Detectron, MSRA's files)
        (r'conv1_(w)', lambda p: f'conv1.{NORM[p]}'),
        (f'(?:res_conv1_bn|conv1_gn)_{PART}', lambda p: f'bn1.{NORM[p]}'),
        (rf'res(\d)_(\d+)_branch(1|2[abc])(_[bg]n)?_{PART}', _block),
        (r'conv_rpn_(w|b)', lambda p: f'rpn.head.conv.0.0.{NORM[p]}'),
        (r'rpn_(cls_logits|bbox_pred)_(w|b)', lambda m, p: f'rpn.head.{m}.{NORM[p]}'),
        (r'(?:fc1000|pred)_(w|b)', lambda p: f'fc.{NORM[p]}'),
        # detectron2
        (rf'{BOTTOM_UP}stem\.conv1\.(weight)', lambda p: f'conv1.{p}'),
        (rf'{BOTTOM_UP}stem\.conv1\.norm\.(\w+)', lambda p: f'bn1.{p}'),
        (rf'{BOTTOM_UP}res(\d)\.(\d+)\.(conv\d|shortcut)(\.norm)?\.(\w+)', _block),
        (rf'{RPN_HEAD}conv(?:\.conv(\d))?\.(\w+)', lambda i, p: f'rpn.head.conv.{i or 0}.0.{p}'),
        (rf'{RPN_HEAD}objectness_logits\.(\w+)', lambda p: f'rpn.head.cls_logits.{p}'),
        (rf'{RPN_HEAD}anchor_deltas\.(\w+)', lambda p: f'rpn.head.bbox_pred.{p}'),
        (r'(?:stem|backbone)\.(fc\.\w+)', lambda rest: rest),
        # torchvision's detectors, and its head before 0.14
        (r'backbone\.(?:body\.)?((?:conv1|bn1|layer\d)\..+)', lambda rest: rest),
        (r'rpn\.head\.conv\.(weight|bias)', lambda p: f'rpn.head.conv.0.0.{p}'),
    )
]


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
    for name, values in (('cls_logits', 1), ('bbox_pred', 4)):
        for parameter in ('weight', 'bias'):
            key = f'rpn.head.{name}.{parameter}'
            if key not in tensors:
                continue
            tensor = tensors[key]
            if tensor.ndim == 0 or len(tensor) % (values * aspect_ratios):
                raise ValueError(
                    f'{key} {tensor.shape} of a detectron2 head is not of {aspect_ratios} aspect '
                    'ratios; aspect_ratios must be those of the head'
                )
            split = tensor.reshape(-1, aspect_ratios, values, *tensor.shape[1:])
            tensors[key] = split.swapaxes(0, 1).reshape(tensor.shape)
