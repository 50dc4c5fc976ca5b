"""ResNet-101 with a dilated conv5: 2048 channels at stride 16, as if conv5 had no stride."""

from configs import voc_c4


def get_config():
    """Returns voc_c4 with the head on conv5, dilated by 2."""
    config = voc_c4.get_config()
    config.model.update(last_stage=5, dilations=(1, 1, 1, 2))
    return config
