"""voc_c4 with a cyclical learning rate (Smith 2017): triangles between 0.0001 and 0.002."""

from configs import voc_c4


def get_config():
    """Returns voc_c4 with the triangular schedule."""
    config = voc_c4.get_config()
    config.optim.update(schedule='cyclical', learning_rate=0.002, low_factor=0.05, cycles=4.0)
    return config
