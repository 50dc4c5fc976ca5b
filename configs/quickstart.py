"""A small network on drawn scenes: trains from nothing in a few minutes on two CPU cores."""

from configs import default


def get_config():
    """Returns the config of `make demo`: ResNet-26 with a dilated conv4, at stride 8."""
    config = default.get_config()
    config.steps = 800
    config.model.update(depth=26, width=16, dilations=(1, 1, 2, 1))
    config.model.update(norm='batch', frozen_stages=0)  # nothing is pretrained
    config.anchors.sizes = (32, 48, 64, 96)
    config.targets.samples = 128
    config.loss.box_weight = 2.0
    config.proposals.update(pre_nms=3000, post_nms=300, nms_iou=0.5)
    config.data.update(source='shapes', train_split='train', eval_split='val')
    config.data.update(image_size=192, batch_size=8, max_boxes=16)
    config.optim.update(learning_rate=0.06, schedule='cosine', warmup_steps=50)
    config.checkpoint.every = 200
    return config
