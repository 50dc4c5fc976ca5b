"""Region proposal networks in JAX.

The pipeline, each arrow a module:

    records     data        annotated images of a source          [height, width, 3] uint8, boxes
    [n, 4] -> batch    data        resized, flipped, padded              [B, H, W, 3] uint8, boxes
    [B, G, 4] -> features resnet      normalised, through the backbone      [B, h, w, C] -> head
    rpn         an objectness and deltas per anchor   logits [B, A], deltas [B, A, 4] -> targets
    targets     match anchors, sample some of them    index, labels, matched [B, S] -> loss
    losses      over the sampled anchors; then train.make_update or -> proposals            top-k,
    decode, clip, NMS              boxes [B, P, 4] -> figures  metrics     against objects, beside
    baselines

Shapes: B images per device, H W canvas, h w feature map, K anchors per cell, A anchors in all, S
sampled anchors, G object rows (padded), P proposal rows (padded).

    boxes    [..., 4] float32 (x0, y0, x1, y1) in pixels of the canvas, half open: width = x1 - x0
    size     [2] (height, width) of the real image inside the canvas, which is zero elsewhere kind
    [G] 0 padding, 1 object, 2 difficult (VOC), 3 crowd (COCO) anchors  [A, 4] cell by cell, the K
    anchors of a cell contiguous logits   [A] objectness before the sigmoid      deltas [A, 4] (dx,
    dy, dw, dh) relative to anchors labels   1 object, 0 background, -1 not used    matched [A] the
    object an anchor is matched to
"""

__version__ = '0.1.0'
__all__ = ['restore']


def __getattr__(name):
    # Geometry alone must not wait for Flax, Orbax and OpenCV to be imported.
    if name == 'restore':
        from rpn_jax.trained import restore

        return restore
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
