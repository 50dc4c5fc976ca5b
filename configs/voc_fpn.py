"""ResNet-101 with a feature pyramid on VOC 2007 and 2012."""

from configs import voc_c4


def get_config():
    """Returns voc_c4 with levels P2 to P6, of strides 4 to 64; stem and conv2 are frozen."""
    config = voc_c4.get_config()
    config.model.update(last_stage=5, frozen_stages=2, fpn_stages=(2, 3, 4, 5))
    config.anchors.sizes = ((32,), (64,), (128,), (256,), (512,))  # pixels, of each level
    config.proposals.pre_nms = 1000  # of each level
    return config
