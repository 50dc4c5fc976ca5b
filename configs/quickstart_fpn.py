"""quickstart with a feature pyramid: small objects are found on a finer map."""

from configs import quickstart


def get_config():
    """Returns quickstart with levels of strides 4 to 32 over conv2 to conv4."""
    config = quickstart.get_config()
    config.model.update(dilations=(1, 1, 1, 1), fpn_stages=(2, 3, 4), fpn_channels=64)
    config.model.update(fpn_norm='batch')
    config.anchors.sizes = ((16,), (32,), (64,), (96,))  # pixels, of each level
    config.proposals.pre_nms = 1000  # of each level
    return config
