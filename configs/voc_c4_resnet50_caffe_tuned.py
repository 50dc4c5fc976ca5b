"""voc_c4_resnet50_caffe with batches of one image, a cosine schedule and half the box loss."""

from configs import voc_c4_resnet50_caffe


def get_config():
    """Returns the config; experiments/README.md has its results, and what did not help."""
    config = voc_c4_resnet50_caffe.get_config()
    config.steps = 2000
    config.log_every = 20
    config.data.batch_size = 1
    config.optim.update(learning_rate=0.006, schedule='cosine')
    config.loss.box_weight = 0.5
    return config
