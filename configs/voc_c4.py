"""The mission's starting point: ResNet-101 C4 on VOC at 600 x 600, SGD 0.001 falling to 0.0001."""

from configs import default


def get_config():
    """Returns the config; give the weights as model.pretrained, the folder as data.path."""
    config = default.get_config()
    config.steps = 20_000
    config.model.update(depth=101, last_stage=4, frozen_stages=3)  # conv4 and the head learn
    config.optim.update(learning_rate=0.001, schedule='step', decay_at=(0.75,), decay_factor=0.1)
    return config
