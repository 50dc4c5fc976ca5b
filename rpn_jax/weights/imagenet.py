"""torchvision's ImageNet weights: fetched once, to a cache folder, their hash checked."""

from rpn_jax import files
from rpn_jax.errors import InputError

ADDRESS = 'https://download.pytorch.org/models/'
# The eight digits in a name begin the file's SHA-256.
FILES = {
    'imagenet': {  # IMAGENET1K_V1
        50: 'resnet50-0676ba61.pth',
        101: 'resnet101-63fe2227.pth',
        152: 'resnet152-394f9c45.pth',
    },
    'imagenet_v2': {  # IMAGENET1K_V2
        50: 'resnet50-11ad3fa6.pth',
        101: 'resnet101-cd907fc2.pth',
        152: 'resnet152-f82ba261.pth',
    },
}


def fetch(name, depth):
    """Returns the path of torchvision's weights 'imagenet' or 'imagenet_v2' of a ResNet.

    They are downloaded where the cache folder does not hold them whole. The folder is
    RPN_JAX_CACHE, or else the platform's. Raises InputError, which says what to fetch and where to
    put it, where that fails.
    """
    if depth not in FILES[name]:
        raise InputError(
            f'{name!r} has weights of ResNets of depth {", ".join(map(str, FILES[name]))}, '
            f'not {depth}'
        )
    file = FILES[name][depth]
    path = files.cache_folder() / file
    files.fetch(ADDRESS + file, path, sha256=path.stem.rpartition('-')[2])
    return path
