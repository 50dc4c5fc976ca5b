"""voc_c4 on VOC 2012 only: trained on its train, evaluated on its val; its test has no boxes."""

from configs import voc_c4


def get_config():
    """Returns voc_c4 on VOC 2012."""
    config = voc_c4.get_config()
    config.steps = 10_000
    config.data.update(name='voc/2012', train_split='train', eval_split='val')
    return config
