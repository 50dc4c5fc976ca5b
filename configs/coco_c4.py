"""ResNet-101 C4 on COCO 2017."""

from configs import voc_c4


def get_config():
    """Returns voc_c4 on COCO, for longer."""
    config = voc_c4.get_config()
    config.steps = 180_000
    config.data.update(name='coco/2017', train_split='train2017', eval_split='val2017')
    return config
