"""ResNet-50 from MSRA's weights up to conv4, with a pyramid over conv2, conv3 and conv4."""

from configs import voc_c4_resnet50_caffe_tuned


def get_config():
    """Returns voc_c4_resnet50_caffe_tuned with three levels, of strides 4, 8 and 16.

    conv4 has the anchors of all large objects: levels pooled from it would have its features, and
    the one head could not tell them apart.
    """
    config = voc_c4_resnet50_caffe_tuned.get_config()
    config.model.update(fpn_stages=(2, 3, 4), fpn_extra=0)
    config.anchors.sizes = (32, 45, 64), (64, 90, 128), (128, 256, 512)  # pixels, of each level
    config.proposals.pre_nms = 2000  # of each level
    return config
