"""ResNet-101 C4 on COCO 2017: a folder with annotations/, train2017/ and val2017/."""

from configs import voc_c4


def get_config():
    """Returns voc_c4 on COCO, for longer; give the weights as model.pretrained."""
    config = voc_c4.get_config()
    config.steps = 180_000
    config.data.update(source='coco', path='data/coco')
    config.data.update(train_split='train2017', eval_split='val2017')
    return config
