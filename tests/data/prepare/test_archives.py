"""Archives are extracted whole and inside their folder, or not at all."""

import io
import stat
import tarfile
import zipfile

import pytest

from rpn_jax.data.prepare import archives
from rpn_jax.data.prepare.archives import extract
from rpn_jax.errors import InputError

FILES = {'a/b/1.jpg': b'one' * 500, 'a/c/2.xml': b'two', 'a/3.txt': b''}


def write_tar(path, files=FILES, *members):
    """Writes files and members, of which the first is a folder."""
    folder = tarfile.TarInfo('a')
    folder.type = tarfile.DIRTYPE
    with tarfile.open(path, 'w') as archive:
        for member in (folder, *members):
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path, files=FILES, *members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for member, content in [('a/', b''), *files.items(), *((m, b'target') for m in members)]:
            archive.writestr(member, content)
    return path


@pytest.fixture(params=['tar', 'zip'])
def write(request, tmp_path):
    function = {'tar': write_tar, 'zip': write_zip}[request.param]
    return lambda *args: function(tmp_path / f'x.{request.param}', *args)


def everything(name):
    return True


def refused(archive, complaint):
    folder = archive.parent / 'out'
    with pytest.raises(InputError, match=complaint) as error:
        extract(archive, folder, everything)
    message = str(error.value)
    assert message.startswith(f'{archive}: ') and '\n' not in message
    assert {path.name for path in archive.parent.iterdir()} == {archive.name}
    return message


def test_files_come_out_as_they_went_in(write, tmp_path):
    out = tmp_path / 'new/out'
    extract(write(), out, everything)
    content = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob('*') if p.is_file()}
    assert content == FILES
    assert [path.name for path in out.parent.iterdir()] == ['out']
    extract(write(), tmp_path / 'some', lambda name: name.endswith('.xml'))
    assert [p.name for p in (tmp_path / 'some').rglob('*') if p.is_file()] == ['2.xml']


@pytest.mark.parametrize('name', ['/etc/x', '../x', 'a/../../x', 'a\\b'])
def test_a_name_that_leads_out_is_refused(write, name):
    assert name in refused(write({'a/1': b'1', name: b'2'}), 'leads out').replace('\\\\', '\\')


@pytest.mark.parametrize(
    'kind',
    [
        *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
        *(stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR),
    ],
)
def test_links_and_devices_are_refused(tmp_path, kind):
    if isinstance(kind, bytes):
        member = tarfile.TarInfo('a/link')
        member.type, member.linkname = kind, '/etc/passwd'
        path = write_tar(tmp_path / 'x.tar', FILES, member)
    else:
        member = zipfile.ZipInfo('a/link')
        member.create_system, member.external_attr = 3, (kind | 0o777) << 16
        path = write_zip(tmp_path / 'x.zip', FILES, member)
    refused(path, 'a/link: neither a file nor a folder')


@pytest.mark.parametrize(
    ('at', 'value', 'complaint'),
    [(8, b'\1\0', 'encrypted'), (24, b'\n\0\0\0', 'cut off or damaged')],  # flags, size of 10
)
def test_a_member_of_a_zip_is_what_its_list_says(tmp_path, at, value, complaint):
    path = write_zip(tmp_path / 'x.zip', {'a/1': bytes(10**6)})
    content = bytearray(path.read_bytes())
    start = content.rindex(b'PK\x01\x02') + at
    content[start : start + len(value)] = value
    path.write_bytes(content)
    refused(path, f'a/1: {complaint}')


def test_size_and_number_are_bounded(write, monkeypatch):
    for limit, value, complaint in (
        ('BYTES', 1000, 'more than 0 MiB; fetch'),
        ('MEMBERS', 3, 'more than 3 members'),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(archives, limit, value)
            refused(write(), complaint)
    monkeypatch.setattr(archives.shutil, 'disk_usage', lambda _: type('', (), {'free': 1501}))
    refused(write(), 'more than 0 MiB; free some space')


def test_an_archive_that_is_cut_off_is_refused_wherever(write):
    path = write()
    content = path.read_bytes()
    used = content.index(b'3.txt') + 512 if path.suffix == '.tar' else len(content)
    for length in range(0, used, 331):
        path.write_bytes(content[:length])
        refused(path, 'cut off or damaged')


def test_a_damaged_member_is_refused(write):
    path = write()
    content = bytearray(path.read_bytes())
    start = content.index(b'a/c/2.xml') + (100 if path.suffix == '.tar' else 9)
    content[start : start + 4] = b'\xff\xff\xff\xff'
    path.write_bytes(content)
    refused(path, 'a/.*cut off or damaged')
    refused(write({'a': b'1', 'a/b': b'2'}), 'a/b: cut off or damaged')  # a file is no folder


@pytest.mark.parametrize(
    ('name', 'content', 'complaint'),
    [
        ('x.tar', b'no archive' * 200, 'cut off or damaged'),
        ('x.zip', b'no archive' * 200, 'cut off or damaged'),
        ('x.zip', bytes(5000), 'cut off or damaged'),
        ('x.rar', b'', 'neither a .tar nor a .zip'),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, complaint)


def test_a_place_that_cannot_be_written_is_not_the_archives_fault(write, monkeypatch):
    path = write()

    def full(*_, **__):
        raise OSError(archives.errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(archives.tarfile.TarFile, 'makefile', full)
    monkeypatch.setattr(archives.zipfile.ZipFile, 'open', full)
    assert 'again' not in refused(path, f'cannot be extracted to {path.parent}/out .*No space')
