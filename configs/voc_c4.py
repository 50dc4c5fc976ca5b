"""ResNet-101 C4 on VOC 2007 and 2012, by SGD with a learning rate from 0.001 to 0.0001."""

from configs import default


def get_config():
    """Returns the config: trainval of both years, evaluated on the test of 2007, at 600 x 600."""
    config = default.get_config()
    config.steps = 20_000
    config.model.update(depth=101, last_stage=4, frozen_stages=3)  # conv4 and the head learn
    config.model.pretrained = 'imagenet'
    config.data.update(source='tfds', name='voc/2007+2012', path='data')
    config.optim.update(learning_rate=0.001, schedule='step', decay_at=(0.75,), decay_factor=0.1)
    return config
