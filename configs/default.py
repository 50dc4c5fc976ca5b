"""Every key of a config, once. Variants import this file, change a few keys and return."""

from ml_collections import ConfigDict


def get_config():
    """Returns the default config: ResNet-101 C4 on a VOC folder, with Faster R-CNN's settings."""
    config = ConfigDict()
    config.seed = 0  # all randomness is a function of (seed, step, image)
    config.steps = 20_000  # length of the run
    config.log_every = 20  # steps between two lines of progress and metrics.jsonl

    config.model = ConfigDict()
    config.model.depth = 101  # 26, 50, 101, 152
    config.model.width = 64  # channels of the stem; smaller ones for small runs
    config.model.last_stage = 4  # 3, 4, 5: the head sits on conv3, conv4 or conv5
    config.model.dilations = (1, 1, 1, 1)  # conv2..conv5; d > 1 keeps the stride at 1
    config.model.dilate_first_block = False  # False torchvision's rule, True detectron2's
    config.model.norm = 'frozen'  # 'frozen' (needs pretrained weights), 'batch', 'group'
    config.model.stride_in_1x1 = False  # True for MSRA's (caffe) weights
    config.model.frozen_stages = 3  # 0 none, 1 stem, 2 ..conv2, 3 ..conv3, 4 ..conv4, 5 all
    config.model.init = 'normal'  # 'normal', 'uniform': of what is not pretrained
    config.model.pretrained = ''  # a .safetensors file with torchvision's names; '' none
    config.model.dtype = 'float32'  # of the computation: 'float32', 'bfloat16'

    config.anchors = ConfigDict()
    config.anchors.sizes = (32, 64, 128, 256, 512)  # pixels, square root of the area
    config.anchors.aspect_ratios = (0.5, 1.0, 2.0)  # height / width

    config.targets = ConfigDict()
    config.targets.positive_iou = 0.7  # an anchor from here on is an object
    config.targets.negative_iou = 0.3  # an anchor below is background
    config.targets.crowd_overlap = 0.5  # share of an anchor inside a crowd that unmakes background
    config.targets.border = -1  # pixels an anchor may reach outside; -1 any
    config.targets.samples = 256  # anchors per image that a step learns from
    config.targets.positive_fraction = 0.5  # of them at most

    config.loss = ConfigDict()
    config.loss.objectness_weight = 1.0
    config.loss.box_weight = 1.0
    config.loss.beta = 1 / 9  # where smooth L1 turns linear; 0 is L1

    config.proposals = ConfigDict()
    config.proposals.pre_nms = 6000  # best anchors that NMS sees
    config.proposals.post_nms = 1000  # proposals that it keeps
    config.proposals.nms_iou = 0.7  # a box is dropped above this IoU with a better one
    config.proposals.min_size = 1e-3  # pixels

    config.data = ConfigDict()
    config.data.source = 'voc'  # 'voc' a folder, 'shapes' drawn scenes
    config.data.path = 'data/VOCdevkit/VOC2007'  # voc: JPEGImages, Annotations, ImageSets/Main
    config.data.name = ''  # of a TFDS data set
    config.data.train_split = 'trainval'  # a list in ImageSets/Main, '' every annotation
    config.data.eval_split = 'test'
    config.data.images = ''  # overrides where the pictures lie
    config.data.annotations = ''  # overrides where the XML files lie
    config.data.scenes = (2000, 200)  # shapes: train and evaluation scenes
    config.data.resize = 'square'  # to image_size x image_size
    config.data.image_size = 600  # pixels
    config.data.max_size = 1000  # bound on the longer side for resize = 'short_side'
    config.data.batch_size = 2  # images of a step, over all devices
    config.data.max_boxes = 100  # rows of boxes per image
    config.data.flip = True  # left to right, every other image
    config.data.pixels = 'auto'  # 'torchvision', 'caffe'; 'auto' follows the weights
    config.data.mean = ()  # overrides the family's, 0..255, in its channel order
    config.data.std = ()

    config.optim = ConfigDict()
    config.optim.optimizer = 'sgd'  # 'sgd', 'adam' (for comparison)
    config.optim.learning_rate = 0.001
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4  # not on norms
    config.optim.schedule = 'step'  # 'constant', 'step', 'cosine', 'cyclical', 'one_cycle'
    config.optim.schedule_steps = 0  # its length; 0 is steps
    config.optim.warmup_steps = 0  # linear, from warmup_factor
    config.optim.warmup_factor = 0.001
    config.optim.decay_at = (0.75,)  # step: fractions of schedule_steps
    config.optim.decay_factor = 0.1
    config.optim.final_factor = 0.0  # cosine, one_cycle: where they end
    config.optim.cycles = 2.0  # cyclical: triangles
    config.optim.low_factor = 0.1  # cyclical, one_cycle: where they begin

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000  # steps
    config.checkpoint.keep = 3  # newest kept

    config.evaluation = ConfigDict()
    config.evaluation.every = 0  # steps; 0 only at the end
    config.evaluation.images = 0  # of eval_split; 0 all
    return config
