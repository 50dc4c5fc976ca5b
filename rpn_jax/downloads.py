"""Files from the network: to a temporary name, bounded, their hash checked; then renamed."""

import contextlib
import datetime
import fcntl
import glob
import hashlib
import http.client
import os
import secrets
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from rpn_jax.errors import InputError

CHUNK = 2**20  # bytes
LARGEST = 2**30  # bytes of a file whose size is not known
TIMEOUT = 10  # seconds without an answer
SECONDS = 10  # between two lines, where a tenth takes longer


def fetch(url, path, *, sha256, size=0, print=print):
    """Downloads a file to path, under a temporary name until its length and hash agree.

    sha256 are the hexadecimal digits of its hash, or the first of them; size is its length in
    bytes, 0 where that is not known: then it is at most LARGEST. Temporary files that killed
    downloads of the same path left are removed. Raises InputError, which says what to fetch and
    where to put it, where that fails.
    """
    path = Path(path)
    by_hand = f'fetch {url} by other means and put it at {path}'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as file:
            print(f'fetching {url} to {path.parent}')
            digest = _receive(url, file, size, print)
            if not digest.startswith(sha256.lower()):
                raise InputError(f'{url}: what came has another hash; {by_hand}')
            os.replace(file.name, path)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f'{url}: the server said {error.code}; {by_hand}') from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, 'reason', None) or error
        raise InputError(f'{url}: cannot be fetched ({reason}); {by_hand}') from error


def is_whole(path, *, sha256, size=0, print=None):
    """Says whether a file has this length, unless 0, and this hash, or beginning of a hash.

    With `print`, a long check says how far it is.
    """
    found = path.stat().st_size
    if size and found != size:
        return False
    progress = Progress(found, print) if print else None
    digest, done = hashlib.sha256(), 0
    with path.open('rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress.show(done)
    return digest.hexdigest().startswith(sha256.lower())


class Progress:
    """Prints how many bytes are done: at every tenth, and where that takes longer than SECONDS."""

    def __init__(self, total, print):
        self._total, self._print, self._tenth = total, print, 0
        self._began = self._shown = time.monotonic()

    def show(self, done):
        """Takes the number of bytes done, and prints a line if it is time for one."""
        now = time.monotonic()
        tenth = done * 10 // self._total if self._total else 0
        if tenth <= self._tenth and now - self._shown < SECONDS:
            return
        self._tenth, self._shown = max(tenth, self._tenth), now
        rate = done / max(now - self._began, 1e-9)
        speed = f'{rate / 2**20:.1f} MiB/s'
        if not self._total:
            self._print(f'  {done / 2**20:.0f} MiB  {speed}')
            return
        left = datetime.timedelta(seconds=round(max(self._total - done, 0) / max(rate, 1e-9)))
        self._print(
            f'  {done * 100 // self._total:3} %  {done / 2**20:.0f} of '
            f'{self._total / 2**20:.0f} MiB  {speed}  {left} left'
        )


@contextlib.contextmanager
def _temporary(path):
    """Opens a temporary file beside path, which is gone afterwards unless it was renamed.

    It is locked as long as its process lives: what can be locked belongs to nobody.
    """
    for old in path.parent.glob(f'{glob.escape(path.name)}.*.part'):
        with contextlib.suppress(OSError), old.open('rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old.unlink()
    while True:
        part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
        file = part.open('xb')
        with contextlib.suppress(OSError):  # without locks, nothing stale is removed
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # another process took it for stale before it was locked
    try:
        with file:
            yield file
    finally:
        part.unlink(missing_ok=True)


def _receive(url, file, size, print):
    """Writes what a server answers into file; returns its hash."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        expected = int(answer.headers.get('Content-Length') or 0) or size
        limit = size or LARGEST
        if expected < 0 or expected > min(limit, shutil.disk_usage(Path(file.name).parent).free):
            raise OSError(f'{expected / 2**20:.0f} MiB are too many, or too few')
        if size and expected != size:
            raise OSError(f'the server has {expected} bytes, not {size}')
        received, digest, progress = 0, hashlib.sha256(), Progress(expected, print)
        while chunk := answer.read(CHUNK):
            received += file.write(chunk)
            digest.update(chunk)
            if received > limit:
                raise OSError(f'more than {limit / 2**20:.0f} MiB came')
            progress.show(received)
        if expected and received != expected:
            raise OSError(f'cut off after {received} of {expected} bytes')
    file.flush()
    return digest.hexdigest()
