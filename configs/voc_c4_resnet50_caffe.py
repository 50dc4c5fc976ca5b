"""ResNet-50 C4 from MSRA's weights, 1,000 steps of two images: torchvision's usual recipe."""

from configs import voc_c4


def get_config():
    """Returns voc_c4 for a folder, the stride in the first 1x1 convolution, and BGR pixels."""
    config = voc_c4.get_config()
    config.steps = 1000
    config.log_every = 10
    config.model.update(depth=50, stride_in_1x1=True, pretrained='')
    config.data.update(source='voc', path='data/VOCdevkit/VOC2007', name='')
    config.data.update(train_split='train', eval_split='val', pixels='caffe', batch_size=2)
    config.optim.update(learning_rate=0.0025, warmup_steps=100)
    config.checkpoint.every = 100
    return config
