"""quickstart with a feature pyramid of two levels: more steps in the same time, and more found."""

from configs import quickstart


def get_config():
    """Returns quickstart with levels of strides 8 and 16 over conv3 and conv4."""
    config = quickstart.get_config()
    config.steps = 1100  # take as long as 800 of quickstart
    config.model.update(dilations=(1, 1, 1, 1), fpn_stages=(3, 4), fpn_extra=0)
    config.model.update(fpn_channels=64, fpn_norm='batch')
    config.anchors.sizes = ((32, 48), (64, 96))  # pixels, of each level
    config.proposals.pre_nms = 1000  # of each level
    return config
