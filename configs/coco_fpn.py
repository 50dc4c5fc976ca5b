"""ResNet-50 (or, with model.depth=101, 101) with a pyramid on COCO 2017: detectron2's 1x recipe."""

from configs import voc_fpn


def get_config():
    """Returns voc_fpn on COCO: 90,000 steps of 16 images, L1 loss, short sides of 800 pixels."""
    config = voc_fpn.get_config()
    config.steps = 90_000
    config.model.depth = 50
    config.loss.beta = 0.0
    config.data.update(name='coco/2017', train_split='train2017', eval_split='val2017')
    config.data.update(resize='short_side', image_size=800, max_size=1333, batch_size=16)
    config.optim.update(learning_rate=0.02, weight_decay=1e-4, warmup_steps=1000)
    config.optim.decay_at = (2 / 3, 8 / 9)
    config.checkpoint.every = 5000
    return config
