"""Extract .tar and .zip archives; what could write elsewhere, or without end, is refused."""

import errno
import functools
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

from rpn_jax import console
from rpn_jax.data.records import inside_folder
from rpn_jax.errors import InputError
from rpn_jax.files import MIB

BYTES, MEMBERS = 2**36, 2**20  # 64 GiB; COCO's largest has 19 GiB in 118 288 members
BLOCK = 512  # bytes of a tar's header; one of zeros ends it
AGAIN = 'fetch the archive again'
SPECIAL = 'neither a file nor a folder'
DAMAGE = (  # what the two libraries raise on archives that are cut off or damaged
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(ValueError, OverflowError, IndexError, NotImplementedError, RuntimeError),
)
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def extract(archive, folder, wanted):
    """Extracts a .tar or .zip into a new folder, which appears once it is complete.

    wanted(name) says which files to extract. Raises InputError, which names the archive and the
    member, where one is a link, a device or encrypted, or would leave the folder, where there are
    too many or too large ones, and where the archive is cut off or damaged.
    """
    members = {'.tar': _tar, '.zip': _zip}.get(archive.suffix.lower())
    if members is None:
        raise InputError(f'{archive}: neither a .tar nor a .zip')
    name = ''
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        with (
            tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as work,
            console.counter(archive.stat().st_size / MIB, 'unpacked', 'MiB') as advance,
        ):
            target = Path(work) / folder.name
            target.mkdir()
            left = limit = min(BYTES, free)
            for count, (name, problem, size, write) in enumerate(members(archive), start=1):
                is_wanted, remedy = write and wanted(name), AGAIN
                left -= size if is_wanted else 0
                if count > MEMBERS:
                    problem = f'more than {MEMBERS} members'
                elif not inside_folder(name, nested=True):
                    problem = 'leads out of the folder'
                elif left < 0:
                    problem = f'more than {limit / MIB:.0f} MiB'
                    remedy = 'free some space' if limit < BYTES else AGAIN
                if problem:
                    raise InputError(f'{archive}: {name}: {problem}; {remedy}')
                if is_wanted:
                    write(target)
                advance(size / MIB)
            target.rename(folder)
    except InputError:
        raise
    except (OSError, *DAMAGE) as error:
        reason = str(error) or type(error).__name__
        if getattr(error, 'errno', None) in NOT_WRITABLE:
            raise InputError(f'{archive}: cannot be extracted to {folder} ({reason})') from error
        where = f'{archive}: {name or "its list"}'
        raise InputError(f'{where}: cut off or damaged ({reason}); {AGAIN}') from error


def _tar(path):
    """Yields (name, problem, size in bytes, function that extracts to a folder or None)."""
    with tarfile.open(path, 'r:') as archive:
        for member in archive:
            is_plain = (member.isreg() and not member.issparse()) or member.isdir()
            write = functools.partial(archive.extract, member, filter='data')
            yield member.name, '' if is_plain else SPECIAL, member.size, member.isreg() and write
        # tarfile takes a damaged header, and the end of the file, for the end of the archive.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError('no end where there must be one')


def _zip(path):
    """Yields the same as _tar; no more than the size is written, and its CRC is checked."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            problem = '' if kind in (0, stat.S_IFREG, stat.S_IFDIR) else SPECIAL
            problem = 'encrypted' if member.flag_bits & 1 else problem
            write = functools.partial(archive.extract, member)
            yield member.filename, problem, member.file_size, not member.is_dir() and write
