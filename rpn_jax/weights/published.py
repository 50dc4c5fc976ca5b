"""torchvision's published weights: fetched once, to a cache folder, their hash checked."""

from rpn_jax import files
from rpn_jax.errors import InputError

ADDRESS = 'https://download.pytorch.org/models/'
# By depth; a name ends with the digits that the SHA-256 of the file begins with.
BACKBONES = {  # IMAGENET1K_V1 and V2
    'imagenet': {
        50: 'resnet50-0676ba61.pth',
        101: 'resnet101-63fe2227.pth',
        152: 'resnet152-394f9c45.pth',
    },
    'imagenet_v2': {
        50: 'resnet50-11ad3fa6.pth',
        101: 'resnet101-cd907fc2.pth',
        152: 'resnet152-f82ba261.pth',
    },
}
DETECTORS = {  # COCO_V1, of Faster R-CNN on a feature pyramid
    'fasterrcnn_resnet50_fpn': {50: 'fasterrcnn_resnet50_fpn_coco-258fb6c6.pth'},
    'fasterrcnn_resnet50_fpn_v2': {50: 'fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth'},
}
FILES = BACKBONES | DETECTORS
# Those whose frozen norms torchvision computes with an epsilon of 0, as they were trained.
WITHOUT_EPSILON = {
    'fasterrcnn_resnet50_fpn_coco-258fb6c6.pth',
    'keypointrcnn_resnet50_fpn_coco-fc266e95.pth',
    'maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth',
    'retinanet_resnet50_fpn_coco-eeacb38b.pth',
}


def fetch(name, depth):
    """Returns the path of torchvision's weights of a name in FILES, of a ResNet of this depth.

    They are downloaded where the cache folder does not hold them whole. The folder is
    RPN_JAX_CACHE, or else the platform's. Raises InputError, which says what to fetch and where to
    put it, where that fails.
    """
    if depth not in FILES[name]:
        depths = ', '.join(map(str, FILES[name]))
        raise InputError(f'{name!r} has weights of ResNets of depth {depths}, not {depth}')
    path = files.cache_folder() / FILES[name][depth]
    digest = path.stem.rpartition('-')[2]
    files.fetch(ADDRESS + path.name, path, sha256=digest)
    return path
