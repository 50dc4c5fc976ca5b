"""Every key of a config, once. Variants import this file, change a few keys and return."""

from ml_collections import ConfigDict


def get_config():
    """Returns the default config: ResNet-101 C4 on a VOC folder, with Faster R-CNN's settings."""
    config = ConfigDict()
    config.seed = 0  # all randomness is a function of (seed, step, image)
    config.steps = 20_000  # length of the run
    config.log_every = 20  # steps between two lines of progress and metrics.jsonl
    config.model = model()
    config.anchors = ConfigDict(
        dict(
            sizes=(32, 64, 128, 256, 512),  # pixels, square root of the area
            aspect_ratios=(0.5, 1.0, 2.0),  # height / width
        )
    )
    config.targets = ConfigDict(
        dict(
            positive_iou=0.7,  # an anchor from here on is an object
            negative_iou=0.3,  # an anchor below is background
            crowd_overlap=0.5,  # share of an anchor inside a crowd that unmakes background
            border=-1,  # pixels an anchor may reach outside; -1 any
            samples=256,  # anchors per image that a step learns from
            positive_fraction=0.5,  # of them at most
        )
    )
    config.loss = ConfigDict(
        dict(
            objectness_weight=1.0,
            box_weight=1.0,
            beta=1 / 9,  # where smooth L1 turns linear; 0 is L1
        )
    )
    config.proposals = ConfigDict(
        dict(
            pre_nms=6000,  # best anchors that NMS sees
            post_nms=1000,  # proposals that it keeps
            nms_iou=0.7,  # a box is dropped above this IoU with a better one
            min_size=1e-3,  # pixels
        )
    )
    config.features = ConfigDict(
        dict(
            keep='',  # of a wholly frozen backbone: 'device', 'host', 'disk'; '' none
            gigabytes=8.0,  # at most
        )
    )
    config.data = data()
    config.optim = optim()
    config.checkpoint = ConfigDict(
        dict(
            every=1000,  # steps
            keep=3,  # newest kept
            best='',  # kept, too: the best in a figure of evaluations, 'AR@100'; '' none
        )
    )
    config.evaluation = ConfigDict(
        dict(
            every=0,  # steps; 0 only at the end
            images=0,  # of eval_split; 0 all
        )
    )
    return config


def model():
    """Returns the section `model`: the keywords of resnet.ResNet, and the weights to start from."""
    return ConfigDict(
        dict(
            depth=101,  # 26, 50, 101, 152
            width=64,  # channels of the stem; smaller ones for small runs
            last_stage=4,  # 3, 4, 5: the head sits on conv3, conv4 or conv5
            dilations=(1, 1, 1, 1),  # conv2..conv5; d > 1 keeps the stride at 1
            dilate_first_block=False,  # False torchvision's rule, True detectron2's
            norm='frozen',  # 'frozen' (needs pretrained weights), 'batch', 'group'
            stride_in_1x1=False,  # True for MSRA's (caffe) weights
            frozen_stages=3,  # 0 none, 1 stem, 2 ..conv2, 3 ..conv3, 4 ..conv4, 5 all
            init='normal',  # 'normal', 'uniform': of what is not pretrained
            pretrained='',  # 'imagenet', 'imagenet_v2', a weights file, a workdir; '' none
            dtype='float32',  # of the computation: 'float32', 'bfloat16'
            remat=(),  # stages rematerialised for their gradients, as (4,): less memory on GPUs
        )
    )


def data():
    """Returns the section `data`: where images come from and how they become batches."""
    return ConfigDict(
        dict(
            source='voc',  # 'tfds'; 'voc', 'coco' folders; 'shapes' drawn; 'images' for statistics
            path='data/VOCdevkit/VOC2007',  # voc: with JPEGImages, Annotations, ImageSets/Main
            name='',  # tfds: 'voc/2007', 'voc/2012', 'voc/2007+2012', 'coco/2014', 'coco/2017', ..
            train_split='trainval',  # voc: a list in ImageSets/Main, '' every annotation
            eval_split='test',
            images='',  # overrides where the pictures lie; for 'images' a pattern: '*/rgb/*.png'
            annotations='',  # overrides where the XML or json files lie
            scenes=(2000, 200),  # shapes: train, evaluation scenes (the same for every seed)
            resize='square',  # 'square' stretches to image_size x image_size; 'short_side' does not
            image_size=600,  # pixels
            max_size=1000,  # short_side: bound on the longer side
            canvases=4,  # short_side: at most so many static shapes, padded; each is compiled
            batch_size=2,  # images of a step, over all devices
            max_boxes=100,  # rows of boxes per image
            flip=True,  # left to right, every other image
            pixels='auto',  # 'torchvision', 'caffe'; 'auto' follows the weights
            mean=(),  # overrides the family's, 0..255, in its channel order
            std=(),
            on_bad='error',  # images that would train wrongly: 'error', 'skip' leaves them out
        )
    )


def optim():
    """Returns the section `optim`: the keywords of optim.make_optimizer."""
    return ConfigDict(
        dict(
            optimizer='sgd',  # 'sgd', 'adam' (for comparison)
            learning_rate=0.001,
            momentum=0.9,
            weight_decay=5e-4,  # not on norms
            schedule='step',  # 'constant', 'step', 'cosine', 'cyclical', 'one_cycle'
            schedule_steps=0,  # its length; 0 is steps
            warmup_steps=0,  # linear, from warmup_factor
            warmup_factor=0.001,
            decay_at=(0.75,),  # step: fractions of schedule_steps
            decay_factor=0.1,
            final_factor=0.0,  # cosine, one_cycle: where they end
            cycles=2.0,  # cyclical: triangles
            low_factor=0.1,  # cyclical, one_cycle: where they begin
        )
    )
