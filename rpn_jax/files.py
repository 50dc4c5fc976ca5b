"""Files on disk: bounded reads, atomic writes, folders, locks, downloads, the folder for caches."""

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
import tokenize
import zipfile
from pathlib import Path

import numpy as np
import platformdirs

from rpn_jax import console
from rpn_jax.errors import InputError

logger = logging.getLogger(__name__)
MIB = 2**20
CHUNK = MIB  # bytes that are read or written at once
LARGEST = 2**30  # bytes of a download whose size is not known
MOST = 2**29  # bytes of a file that is read whole
MOST_ROWS = 2**33  # .. of one with a row for each object, proposal or step
TIMEOUT = 10  # seconds without an answer
DAMAGED = (  # what reading a stranger's zip file, and the headers of its members, can raise
    *(zipfile.BadZipFile, tokenize.TokenError, ValueError, EOFError, OSError, KeyError),
    *(SyntaxError, RuntimeError, MemoryError, SystemError),
)


def read(path, most=MOST):
    """Returns the bytes of a file; raises OSError where it is none, or larger than `most` bytes.

    Reading a pipe would wait for ever, and a file may say that it is larger than any memory.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, 'not a file', os.fspath(path))
    if status.st_size > most:
        what = f'{status.st_size} bytes; at most {most} are read'
        raise OSError(errno.EOVERFLOW, what, os.fspath(path))
    return Path(path).read_bytes()


def read_json(path, most=MOST, **hooks):
    """Returns the content of a json file; raises OSError as read does, ValueError of other text."""
    return parse_json(read(path, most).decode('utf-8-sig'), **hooks)


def parse_json(text, **hooks):
    """Returns what json.loads does, with its hooks; raises ValueError alone."""
    try:
        return json.loads(text, **hooks)
    except RecursionError as error:
        raise ValueError('nested too deeply') from error


def write_atomically(path, content):
    """Writes text or bytes to a temporary file, then renames it: path is never half-written.

    The bytes of a name that is no text are written as an escape.
    """
    path = Path(path)
    unique = secrets.token_hex(4)  # also among hosts, whose processes may have equal numbers
    temporary = path.with_name(f'.{path.name[:50]}.{unique}.tmp')  # names have a longest
    if isinstance(content, str):
        content = content.encode(errors='backslashreplace')
    with writing(path):
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # it was never made, or nothing can be removed
                temporary.unlink()


def write_json(path, content, **options):
    """Writes a json file, complete or not at all; options are those of json.dumps."""
    write_atomically(path, json.dumps(content, **options) + '\n')


def append(path, content):
    """Appends bytes to a file, all or none of them; raises OSError as `writing` does."""
    with writing(path), open(path, 'ab', buffering=0) as file:
        size = file.tell()
        try:
            written = file.write(content)
            if written < len(content):  # the disk has become full
                file.write(content[written:])
        except OSError:
            file.truncate(size)
            raise


@contextlib.contextmanager
def writing(path):
    """Turns an OSError of the context into one that says that this path cannot be written."""
    try:
        yield
    except OSError as error:
        what = f'cannot be written ({error.strerror or error})'
        raise OSError(error.errno, what, str(path)) from error


def make_folder(folder, option='--workdir'):
    """Makes a folder where there is none; raises InputError, naming its option, where it cannot."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'{option[2:]} {folder}: cannot be made ({error.strerror}); name another {option}'
        ) from error


def cache_folder():
    """Returns the folder for downloads and caches: RPN_JAX_CACHE, or the platform's."""
    own = os.environ.get('RPN_JAX_CACHE')
    return Path(os.path.expanduser(own)) if own else platformdirs.user_cache_path('rpn_jax')


@contextlib.contextmanager
def locked(path, message, wait=True):
    """Holds a lock file as long as it is open; logs the message where another process has it.

    The lock dies with its process. Yields whether it is held: some file systems have no locks.
    Without `wait` the message is that of an InputError.
    """
    while True:
        file = path.open('wb')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                file.close()
                raise InputError(message) from error
            logger.info(message)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            is_held = False
            break
        if is_held := os.fstat(file.fileno()).st_nlink > 0:
            break
        file.close()  # the process that had it before has removed the file
    with file:
        try:
            yield is_held
        finally:
            with contextlib.suppress(OSError):  # the folder may be gone, or read-only by now
                path.unlink()


def fetch(url, path, *, sha256, size=0):
    """Downloads a file to path, unless it is there already; path never holds a part of it.

    sha256 is its hash in hexadecimal digits, or the first of them; size is its length in bytes, 0
    where that is not known: then it is at most LARGEST. Of several processes one downloads. Raises
    InputError, which says what to fetch by other means and where to put it.
    """
    import pooch  # with requests, a tenth of a second

    path, known = Path(path), dict(sha256=sha256, size=size)
    by_hand = f'fetch {url} by other means and put it at {path}'
    waiting = f'waiting for the process that fetches {path}'
    try:
        if path.is_file() and is_whole(path, **known):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f'.{path.name}.lock'), waiting) as is_held:
            if path.is_file() and is_whole(path, **known):
                return  # the process that was waited for has fetched it
            prefix = f'.{path.name}.part-'
            for stale in path.parent.glob(f'{glob.escape(prefix)}*') if is_held else ():
                shutil.rmtree(stale)  # of a download that was killed
            with tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
                logger.info(f'fetching {url} to {path.parent}')
                download = functools.partial(_download, **known)
                pooch.get_logger().setLevel('WARNING')
                part = pooch.retrieve(url, None, path.name, folder, downloader=download)
                os.replace(part, path)
    except (OSError, ValueError) as error:  # all of requests' are OSErrors
        status = getattr(getattr(error, 'response', None), 'status_code', None)
        if status is not None:
            raise InputError(f'{url}: the server answered {status}; {by_hand}') from error
        reason = getattr(error.args[0], 'reason', error) if error.args else error
        raise InputError(f'{url}: cannot be fetched ({reason}); {by_hand}') from error


def is_whole(path, *, sha256, size=0):
    """Returns whether a file has this length, unless 0, and this hash, or beginning of a hash."""
    length = path.stat().st_size
    if size and length != size:
        return False
    digest = hashlib.sha256()
    with path.open('rb') as file, console.counter(length / MIB, 'checked', 'MiB') as advance:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk) / MIB)
    return digest.hexdigest().startswith(sha256.lower())


def _download(url, part, _, *, sha256, size):
    """Writes what a server answers to a file, for pooch; raises OSError where it is not whole."""
    import requests

    identity = {'Accept-Encoding': 'identity'}  # so that the length announced is the file's
    with requests.get(url, stream=True, timeout=TIMEOUT, headers=identity) as answer:
        answer.raise_for_status()
        expected = int(answer.headers.get('Content-Length', 0)) or size
        limit = min(size or LARGEST, shutil.disk_usage(Path(part).parent).free)
        if size and expected != size:
            raise OSError(f'the server has {expected} bytes, not {size}')
        if not 0 <= expected <= limit:
            raise OSError(f'{expected / MIB:.0f} MiB; {limit / MIB:.0f} MiB are allowed')
        received, digest = 0, hashlib.sha256()
        os.unlink(part)  # pooch has made it readable by its owner only
        counter = console.counter(expected / MIB, 'fetched', 'MiB')
        with open(part, 'xb') as file, counter as advance:
            for chunk in answer.iter_content(CHUNK):
                received += file.write(chunk)
                digest.update(chunk)
                if received > limit:
                    raise OSError(f'more than {limit / MIB:.0f} MiB came')
                advance(len(chunk) / MIB)
    if expected and received != expected:
        raise OSError(f'cut off after {received} of {expected} bytes')
    if not digest.hexdigest().startswith(sha256.lower()):  # of a prefix pooch knows nothing
        raise OSError('the file has another hash')


def read_npz(path, members, optional=(), most=MOST_ROWS):
    """Returns the arrays of an .npz file whose members are not compressed, so that none can swell.

    members are {name: (dtype, shape)}: of a dtype files need only the kind, and -1 is a side of any
    length; optional are names that may be missing. Raises one of DAMAGED where the file's are
    others, or it has more than `most` bytes.
    """
    size = Path(path).stat().st_size
    if not Path(path).is_file():  # reading a pipe would wait for ever
        raise ValueError('not a file')
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    if size > most:
        raise ValueError(f'{size} bytes; at most {most} are read')
    if any(m.compress_type for m in infos) or sum(m.file_size for m in infos) > size:
        raise ValueError(f'members are compressed, or larger than the file of {size} bytes')
    with np.load(path, allow_pickle=False) as file:
        if wrong := (members.keys() ^ set(file.files)) - (set(optional) - set(file.files)):
            raise ValueError(f'missing or unexpected: {", ".join(sorted(wrong))}')
        arrays = dict(file)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # bytes, where the member is no .npy file
            raise ValueError(f'{name} is no array')
        dtype, shape = members[name]
        fits = array.ndim == len(shape) and all(
            side in (-1, own) for side, own in zip(shape, array.shape, strict=True)
        )
        fits = fits and array.size <= size  # strings of no letters take no bytes
        if array.dtype.kind != np.dtype(dtype).kind or not fits:
            raise ValueError(f'{name} is {array.dtype} {list(array.shape)}')
    return arrays
