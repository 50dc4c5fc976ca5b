"""torchvision's ImageNet weights: fetched once, to a cache folder, their hash checked."""

from rpn_jax import files
from rpn_jax.errors import InputError

ADDRESS = 'https://download.pytorch.org/models/'
FILES = {  # IMAGENET1K_V1 and V2: by depth the digits that their SHA-256 begins with
    'imagenet': {50: '0676ba61', 101: '63fe2227', 152: '394f9c45'},
    'imagenet_v2': {50: '11ad3fa6', 101: 'cd907fc2', 152: 'f82ba261'},
}


def fetch(name, depth):
    """Returns the path of torchvision's weights 'imagenet' or 'imagenet_v2' of a ResNet.

    They are downloaded where the cache folder does not hold them whole. The folder is
    RPN_JAX_CACHE, or else the platform's. Raises InputError, which says what to fetch and where to
    put it, where that fails.
    """
    if depth not in FILES[name]:
        depths = ', '.join(map(str, FILES[name]))
        raise InputError(f'{name!r} has weights of ResNets of depth {depths}, not {depth}')
    digest = FILES[name][depth]
    path = files.cache_folder() / f'resnet{depth}-{digest}.pth'
    files.fetch(ADDRESS + path.name, path, sha256=digest)
    return path
