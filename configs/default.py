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
            sizes=(32, 64, 128, 256, 512),  # pixels, root of the area; or each level's: ((32,), ..)
            aspect_ratios=(0.5, 1.0, 2.0),  # height / width
        )
    )
    config.targets = ConfigDict(
        dict(
            positive_iou=0.7,  # anchors with at least this IoU are foreground
            negative_iou=0.3,  # anchors with less are background
            crowd_overlap=0.5,  # anchors with this share inside a crowd are never background
            border=-1,  # pixels by which an anchor may reach outside; -1 any
            samples=256,  # anchors per image that a step learns from
            positive_fraction=0.5,  # share of them that is foreground, at most
        )
    )
    config.loss = ConfigDict(
        dict(
            objectness_weight=1.0,  # factor of the objectness loss
            box_weight=1.0,  # factor of the box loss
            beta=1 / 9,  # where smooth L1 becomes linear; 0 is L1
        )
    )
    config.proposals = ConfigDict(
        dict(
            pre_nms=6000,  # anchors with the best scores, which NMS gets
            post_nms=1000,  # proposals of an image at most
            nms_iou=0.7,  # of two boxes with a greater IoU NMS drops the one with the lower score
            min_size=1e-3,  # pixels; smaller boxes are dropped
        )
    )
    config.features = ConfigDict(
        dict(
            keep='',  # maps of a wholly frozen backbone: on 'device', 'host', 'disk'; '' nowhere
            gigabytes=8.0,  # of maps that are kept, at most
        )
    )
    config.data = data()
    config.optim = optim()
    config.checkpoint = ConfigDict(
        dict(
            every=1000,  # steps between two checkpoints
            keep=3,  # newest checkpoints are kept
            best='',  # 'AR@100': the best one at evaluations is kept as well; '' is not
        )
    )
    config.evaluation = ConfigDict(
        dict(
            every=0,  # steps between two evaluations; 0 only one at the end
            images=0,  # of eval_split; 0 all
        )
    )
    return config


def model():
    """Returns the section `model`: backbone, pyramid and head, and the weights to start from."""
    return ConfigDict(
        dict(
            depth=101,  # 26, 50, 101, 152
            width=64,  # channels of the stem; smaller ones for small runs
            last_stage=4,  # 3, 4, 5: the head reads conv3, conv4 or conv5; with a pyramid its last
            dilations=(1, 1, 1, 1),  # conv2..conv5; d > 1 keeps the stride at 1
            dilate_first_block=False,  # False is torchvision's rule, True detectron2's
            norm='frozen',  # 'frozen' (needs pretrained weights), 'batch', 'group'
            stride_in_1x1=False,  # True for MSRA's (caffe) weights
            frozen_stages=3,  # 0 none, 1 stem, 2 ..conv2, 3 ..conv3, 4 ..conv4, 5 all
            fpn_stages=(),  # feature pyramid: (2, 3, 4, 5); () none. Then sizes are of each level
            fpn_channels=256,  # of every level
            fpn_extra=1,  # further levels, each of half the size of the one before
            fpn_norm='',  # '' none, 'frozen', 'batch', 'group'
            head_convs=1,  # 3x3 convolutions of the head
            init='normal',  # 'normal', 'uniform': of what is not pretrained
            pretrained='',  # 'imagenet', 'fasterrcnn_resnet50_fpn', a file, a workdir; '' none
            pretrained_key='',  # in a weights file with several: 'ema', 'encoder_q'; '' the usual
            dtype='float32',  # of the computation: 'float32', 'bfloat16'
            conv='auto',  # of CPUs and GPUs: 'auto' the fastest way known, 'xla' XLA's own
            remat=(),  # stages whose maps are computed twice to save memory on GPUs, as (4,)
        )
    )


def data():
    """Returns the section `data`: where images come from and how they become batches."""
    return ConfigDict(
        dict(
            source='voc',  # 'tfds'; folders 'voc', 'coco', 'yolo'; 'shapes' drawn; 'images' boxless
            path='data/VOCdevkit/VOC2007',  # voc: with JPEGImages, Annotations, ImageSets/Main
            name='',  # tfds: 'voc/2007', 'voc/2012', 'voc/2007+2012', 'coco/2014', 'coco/2017', ..
            train_split='trainval',  # voc: a list in ImageSets/Main; yolo: a folder, a list; '' all
            eval_split='test',  # the split that is evaluated
            categories=(),  # of the objects to learn from: names, ids of COCO and YOLO; () all
            images='',  # another folder of pictures; for 'images' a pattern: '*/rgb/*.png'
            annotations='',  # another folder of XML files or labels, or another json file
            scenes=(2000, 200),  # shapes: of training and of evaluation (the same for every seed)
            resize='square',  # 'square' stretches to image_size x image_size; 'short_side' does not
            image_size=600,  # pixels; short_side: of the shorter side
            max_size=1000,  # short_side: pixels of the longer side at most
            canvases=4,  # short_side: padded static shapes at most; each is compiled
            canvas_multiple=32,  # short_side: of their sides, pixels; the coarsest stride is best
            batch_size=2,  # images of a step, over all devices
            max_boxes=100,  # ground-truth boxes of an image at most
            flip=True,  # left to right, every other image
            pixels='auto',  # 'torchvision', 'caffe'; 'auto' follows the weights
            mean=(),  # of pixels, 0..255, in the family's channel order; () the family's
            std=(),  # likewise
            on_bad='error',  # what would train wrongly: 'error'; 'skip' its image; 'clip' its box
            orientation='annotation',  # EXIF's: 'annotation' (as its size says), 'apply', 'ignore'
            eval_path='',  # of eval_split where it lies elsewhere; '' as for training
            eval_images='',  # likewise
            eval_annotations='',  # likewise
        )
    )


def optim():
    """Returns the section `optim`: the keywords of optim.make_optimizer."""
    return ConfigDict(
        dict(
            optimizer='sgd',  # 'sgd', 'adam' (for comparison)
            learning_rate=0.001,  # the greatest of the schedule
            momentum=0.9,  # of sgd; adam's b1
            weight_decay=5e-4,  # not on norms
            skip_nonfinite=0,  # steps in a row to skip where loss or gradient is not finite
            schedule='step',  # 'constant', 'step', 'cosine', 'cyclical', 'one_cycle'
            schedule_steps=0,  # length of the schedule; 0 is steps
            warmup_steps=0,  # of linear warmup, which begins at warmup_factor
            warmup_factor=0.001,  # of the learning rate
            decay_at=(0.75,),  # step: fractions of schedule_steps
            decay_factor=0.1,  # step: by which the learning rate is multiplied there
            final_factor=0.0,  # cosine, one_cycle: of the learning rate, at the end
            cycles=2.0,  # cyclical: triangles
            low_factor=0.1,  # cyclical, one_cycle: of the learning rate, at the beginning
        )
    )
