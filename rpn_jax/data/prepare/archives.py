"""Archives, .tar and .zip -> a folder; what could write elsewhere, or without end, is refused."""

import contextlib
import errno
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

from rpn_jax.data.records import inside_folder
from rpn_jax.downloads import Progress
from rpn_jax.errors import InputError

BYTES, MEMBERS = 2**36, 2**20  # 64 GiB; COCO's largest has 19 GiB in 118 288 members
CHUNK = 2**20  # bytes
AGAIN = 'fetch the archive again'
BLOCK = 512  # bytes of a tar's header; one of zeros ends it
DAMAGE = (  # what the two libraries raise on archives that are cut off or damaged
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError),
    *(ValueError, OverflowError, IndexError, NotImplementedError, RuntimeError),
)
PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # not the archive's


def extract(archive, folder, wanted=None, *, max_bytes=BYTES, max_members=MEMBERS, print=print):
    """Extracts a .tar or .zip into the new folder, which appears only once it is complete.

    wanted(name) says which files to extract, None all. Raises InputError, which names the archive
    and the member, where one is a link, a device or encrypted, would leave the folder or comes
    twice, where there are too many or too large ones, and where the archive is cut off or damaged.
    """
    archive, folder = Path(archive), Path(folder)
    members = {'.tar': _tar, '.zip': _zip}.get(archive.suffix.lower())
    if members is None:
        raise InputError(f'{archive}: neither a .tar nor a .zip')
    name = ''
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder.parent).free
            temporary = tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent)
            place = Path(stack.enter_context(temporary)) / folder.name
            place.mkdir()
            count, left = 0, min(max_bytes, free)
            progress = Progress(archive.stat().st_size, print)
            for name, problem, is_file, offset, read in members(archive):
                count += 1
                if count > max_members:
                    problem = f'more than {max_members} members'
                if problem := problem or ('' if inside_folder(name, nested=True) else 'leads out'):
                    raise InputError(_refusal(archive, name, problem))
                if is_file and (wanted is None or wanted(name)):
                    left = _write(read, place / name, left)
                progress.show(offset)
            place.rename(folder)
        except InputError:
            raise
        except FileExistsError as error:
            raise InputError(_refusal(archive, name, 'comes twice')) from error
        except _TooLarge as error:
            room = f'more than {min(max_bytes, free) / 2**20:.0f} MiB'
            remedy = 'free some space' if free < max_bytes else AGAIN
            raise InputError(_refusal(archive, name, room, remedy)) from error
        except (OSError, *DAMAGE) as error:
            reason = str(error) or type(error).__name__
            if getattr(error, 'errno', None) in PLACE:
                what = f'{archive}: cannot be extracted to {folder} ({reason})'
                raise InputError(what) from error
            raise InputError(_refusal(archive, name, f'cut off or damaged ({reason})')) from error


class _TooLarge(Exception):
    pass


def _refusal(archive, name, problem, remedy=AGAIN):
    return f'{archive}: {name or "its list"}: {problem}; {remedy}'


def _write(read, path, left):
    """Writes a member; returns how many bytes may still come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with read() as source, path.open('xb') as file:
        while chunk := source.read(CHUNK):
            left -= file.write(chunk)
            if left < 0:
                raise _TooLarge
    return left


def _tar(path):
    """Yields (name, problem, whether it is a file, offset in the archive, function that opens)."""
    with tarfile.open(path, 'r:') as archive:
        for member in archive:
            is_plain = (member.isreg() and not member.issparse()) or member.isdir()
            problem = '' if is_plain else 'neither a file nor a folder'
            yield (
                *(member.name, problem, member.isreg(), member.offset_data + member.size),
                lambda member=member: archive.extractfile(member),
            )
        # tarfile takes a damaged header, and the end of the file, for the end of the archive.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError('no end where there must be one')


def _zip(path):
    """Yields the same as _tar; the library checks the CRC of what it reads."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            problem = (
                '' if kind in (0, stat.S_IFREG, stat.S_IFDIR) else 'neither a file nor a folder'
            )
            if member.flag_bits & 1:
                problem = 'encrypted'
            yield (
                *(member.filename, problem, not member.is_dir()),
                member.header_offset + member.compress_size,
                lambda member=member: archive.open(member),
            )
