"""ResNet-50 from MSRA's weights up to conv4, with a pyramid over conv2, conv3 and conv4."""

from configs import voc_c4_resnet50_caffe_tuned


def get_config():
    """Returns voc_c4_resnet50_caffe_tuned with five levels, of strides 4 to 64."""
    config = voc_c4_resnet50_caffe_tuned.get_config()
    config.model.update(fpn_stages=(2, 3, 4), fpn_extra=2)
    config.anchors.sizes = ((32,), (64,), (128,), (256,), (512,))  # pixels, of each level
    config.proposals.pre_nms = 1000  # of each level
    config.optim.learning_rate = 0.015
    return config
