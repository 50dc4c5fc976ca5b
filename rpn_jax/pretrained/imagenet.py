"""torchvision's ImageNet weights: fetched once, to a cache folder, their hash checked."""

import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from rpn_jax.errors import InputError
from rpn_jax.workdir import cache_folder

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
CHUNK = 2**20  # bytes
LARGEST = 2**30  # bytes; that of a ResNet-152 has 231 MiB
TIMEOUT = 30  # seconds without an answer


def fetch(name, depth, *, print=print):
    """Returns the path of torchvision's weights 'imagenet' or 'imagenet_v2' of a ResNet.

    They are downloaded where the cache folder does not hold them: to a temporary name, which is
    renamed once length and hash agree. The folder is RPN_JAX_CACHE, or else the platform's. Raises
    InputError, which says what to fetch and where to put it, where that fails.
    """
    if depth not in FILES[name]:
        raise InputError(
            f'config key model.pretrained: {name!r} has ResNets of depth '
            f'{", ".join(map(str, FILES[name]))}, not {depth}; model.depth is one of these'
        )
    file = FILES[name][depth]
    url, folder = ADDRESS + file, cache_folder()
    path = folder / file
    by_hand = f'fetch {url} by other means and put it at {path}'
    try:
        if path.is_file() and _has_hash(path):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f'{file}.', dir=folder) as place:
            part = Path(place) / file
            print(f'fetching {url} to {folder}')
            _download(url, part, print)
            if not _has_hash(part):
                raise InputError(f'weights {url}: what came has another hash; {by_hand}')
            os.replace(part, path)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f'weights {url}: the server said {error.code}; {by_hand}') from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, 'reason', None) or error
        raise InputError(f'weights {url}: cannot be fetched ({reason}); {by_hand}') from error
    return path


def _download(url, path, print):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open('wb') as file:
        expected = int(answer.headers.get('Content-Length') or 0)
        if expected < 0 or expected > min(LARGEST, shutil.disk_usage(path.parent).free):
            raise OSError(f'{expected / 2**20:.0f} MiB are too many, or too few')
        received, shown = 0, 0
        while chunk := answer.read(CHUNK):
            received += file.write(chunk)
            if received > LARGEST:
                raise OSError(f'more than {LARGEST / 2**20:.0f} MiB came')
            if expected and received * 10 // expected > shown:
                shown = received * 10 // expected
                print(f'  {shown * 10:3} %  {received / 2**20:.0f} of {expected / 2**20:.0f} MiB')
        if expected and received != expected:
            raise OSError(f'cut off after {received} of {expected} bytes')


def _has_hash(path):
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return digest.startswith(path.stem.rpartition('-')[2])
