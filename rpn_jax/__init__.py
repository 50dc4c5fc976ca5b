"""Region proposal networks in JAX.

The pipeline, each line a module:

    data       a source's records -> batches: image [B, H, W, 3] uint8, boxes [B, G, 4], kind, size
    resnet     normalised images -> features [B, h, w, C]
    rpn        features -> an objectness and deltas per anchor: logits [B, A], deltas [B, A, 4]
    targets    match anchors with objects, sample some: index, labels, matched [B, S]
    losses     over the sampled anchors; train.make_update makes a step of it
    proposals  logits, deltas -> top-k, decode, clip, NMS: boxes [B, P, 4]
    metrics    proposals against objects; baselines: boxes that never saw the image

Shapes: B images per device, H W canvas, h w feature map, K anchors per cell, A anchors in all,
S sampled anchors, G object rows (padded), P proposal rows (padded).

    boxes    [..., 4] float32 (x0, y0, x1, y1) in pixels of the canvas, half open
    size     [2] (height, width) of the real image inside the canvas, which is zero elsewhere
    kind     [G] 0 padding, 1 object, 2 difficult (VOC), 3 crowd (COCO)
    anchors  [A, 4] cell by cell, row by row; the K anchors of a cell are contiguous
    logits   [A] objectness before the sigmoid
    deltas   [A, 4] (dx, dy, dw, dh) relative to anchors
    labels   1 object, 0 background, -1 not used
    matched  [A] the object that an anchor is matched to
"""

__version__ = '0.1.0'
__all__ = ['restore']


def __getattr__(name):
    # Geometry alone must not wait for Flax, Orbax and OpenCV to be imported.
    if name == 'restore':
        from rpn_jax.inference import restore

        return restore
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
