"""A forum's recipe that learnt very slowly: `python main.py doctor --config=forum_recipe`."""

from configs import voc_c4


def get_config():
    """Returns voc_c4 as the published code trained it; nothing here is advice."""
    config = voc_c4.get_config()
    config.anchors.sizes = (32,)  # its five tuples were for five maps, and there was one
    config.model.update(norm='batch', frozen_stages=2)  # its count of layers missed conv3
    config.targets.negative_iou = 0.2
    config.data.update(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))  # 0..1, no more
    config.optim.update(optimizer='adam', learning_rate=0.01, schedule='constant')
    config.optim.weight_decay = 0.0
    return config
