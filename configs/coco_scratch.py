"""COCO 2014 without pretrained weights: every layer learns, from uniformly drawn weights."""

from configs import coco_c4


def get_config():
    """Returns coco_c4 with group norm, which does not depend on the batch, and nothing frozen."""
    config = coco_c4.get_config()
    config.model.update(norm='group', init='uniform', frozen_stages=0, pretrained='')
    config.data.update(name='coco/2014', train_split='train2014', eval_split='val2014')
    config.optim.update(learning_rate=0.01, warmup_steps=1000)
    return config
