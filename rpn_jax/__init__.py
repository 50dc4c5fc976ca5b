"""Region proposal networks in JAX.

The pipeline, and where each part lives:

    data        a source's records -> batches: image [B, H, W, 3] uint8, boxes [B, G, 4], kind, size
    models      normalised images -> feature maps [B, h, w, C] -> logits [B, A], deltas [B, A, 4]
    ops         match and sample anchors, losses of the sampled ones, proposals [B, P, 4]
    training    the update, the loop, checkpoints; inference.py restores them
    evaluation  proposals against the ground truth, beside boxes that never saw the image

Shapes: B images per device, H W canvas height and width, L feature levels, h w feature map, K
anchors per cell, A anchors in all, S sampled anchors, G ground-truth rows and P proposals (padded).

    boxes     [.., 4] float32 (x0, y0, x1, y1) in pixels of the canvas, half open
    size      [2] (height, width) of the real image inside the canvas, which is zero elsewhere
    kind      [G] 0 padding, 1 object, 2 difficult (VOC), 3 crowd (COCO)
    anchors   level after level, cell by cell; the K anchors of a cell are contiguous
    logits    [A] objectness before the sigmoid; deltas [A, 4] (dx, dy, dw, dh) relative to anchors
    labels    1 foreground, 0 background, -1 ignored
    matched   [A] the row of the ground truth that each anchor is matched to
"""

import importlib

__version__ = '0.1.0'

_PUBLIC = {  # module: the names that rpn_jax offers of it
    'ops.anchors': ('Anchors',),
    'ops.boxes': ('area', 'clip', 'decode', 'encode', 'iou'),
    'ops.losses': ('box_loss', 'objectness_loss', 'rpn_losses'),
    'ops.matching': ('assign', 'match', 'sample'),
    'ops.nms': ('nms', 'ranked_nms'),
    'ops.proposals': ('Proposals', 'propose'),
    'models.fpn': ('FPN',),
    'models.resnet': ('ResNet',),
    'models.rpn': ('RPN', 'RPNHead'),
    'weights': ('from_variables', 'to_variables'),
    'training.pretrained': ('load_weights',),
    'evaluation.metrics': ('average_best_overlap', 'average_recall', 'best_overlaps', 'recall'),
    'inference': ('restore',),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name):
    # Imported when they are first used: geometry need not wait for Flax, Orbax and OpenCV.
    if name in _MODULES:
        value = getattr(importlib.import_module(f'rpn_jax.{_MODULES[name]}'), name)
        globals()[name] = value
        return value
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted([*globals(), *__all__])
