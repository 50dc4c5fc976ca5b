"""Files are whole or not there: what is written, locked and downloaded, whatever is killed."""

import fcntl
import hashlib
import logging
import subprocess
import sys
import threading
from unittest import mock

import pytest
from data_files import CONTENT

from rpn_jax import files
from rpn_jax.errors import InputError

DIGEST = hashlib.sha256(CONTENT).hexdigest()


def fetch(server, path, **changes):
    files.fetch(server.url, path, **dict(sha256=DIGEST, size=len(CONTENT)) | changes)


@pytest.mark.parametrize('known', [{}, dict(sha256=DIGEST[:8].upper(), size=0)])
@pytest.mark.parametrize('length', [len(CONTENT), 0])
def test_a_file_comes_whole_and_once(server, tmp_path, caplog, known, length):
    caplog.set_level(logging.INFO)
    server.length = length  # 0: it is not announced
    path = tmp_path / 'a' / 'x.tar'
    fetch(server, path, **known)
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]
    (tmp_path / 'b').write_text('')
    assert path.stat().st_mode == (tmp_path / 'b').stat().st_mode  # others may read it
    assert caplog.messages == [f'fetching {server.url} to {path.parent}']
    fetch(server, path, **known)
    assert server.asked == 1
    path.write_bytes(CONTENT[:-1])
    fetch(server, path, **known)
    assert server.asked == 2 and path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ('answer', 'arguments', 'complaint'),
    [
        ({}, dict(sha256='0' * 64), 'another hash'),
        ({}, dict(size=len(CONTENT) + 1), 'the server has 3500000 bytes, not 3500001'),
        ({}, dict(size=len(CONTENT) - 1), 'the server has 3500000 bytes, not 3499999'),
        (dict(length=2**40), dict(size=0), '1048576 MiB'),
        (dict(length=-5), dict(size=0), 'cannot be fetched'),
        (dict(length='abc'), {}, 'cannot be fetched'),
        (dict(content=CONTENT[:-1]), {}, '3499999'),
        (dict(content=b'', length=0), dict(size=0), 'another hash'),
        (dict(length=0, content=CONTENT[:-1]), {}, 'cut off after 3499999 of 3500000'),
        (dict(length=0, content=CONTENT + b'x'), {}, 'more than 3 MiB'),
        (dict(status=404), {}, 'the server answered 404'),
    ],
)
def test_what_is_not_whole_is_not_kept(server, tmp_path, answer, arguments, complaint):
    for key, value in answer.items():
        setattr(server, key, value)
    with pytest.raises(InputError, match=complaint) as error:
        fetch(server, tmp_path / 'x.tar', **arguments)
    by_hand = f'fetch {server.url} by other means and put it at {tmp_path}/x.tar'
    assert str(error.value).endswith(by_hand) and '\n' not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_bounded_by_the_disk_and_where_no_size_is_known(
    server, tmp_path, monkeypatch
):
    server.length = 0
    monkeypatch.setattr(files, 'LARGEST', 1000)
    with pytest.raises(InputError, match='more than 0 MiB'):
        fetch(server, tmp_path / 'x.tar', size=0)
    server.length = len(CONTENT)
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda _: mock.Mock(free=10))
    with pytest.raises(InputError, match='3 MiB'):
        fetch(server, tmp_path / 'x.tar')
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_or_a_folder_a_line_says_what_to_do(server, tmp_path):
    server.url = 'http://127.0.0.1:9/x.tar'
    with pytest.raises(InputError, match=r'cannot be fetched \(.*refused.*\); fetch') as error:
        fetch(server, tmp_path / 'x.tar')
    assert '\n' not in str(error.value) and list(tmp_path.iterdir()) == []
    (tmp_path / 'x.tar').write_bytes(CONTENT)  # put there by hand
    fetch(server, tmp_path / 'x.tar')
    with pytest.raises(InputError, match='cannot be fetched .*exists'):
        fetch(server, tmp_path / 'x.tar' / 'y.tar')


HOLD = """
import fcntl, os, sys
file = open(sys.argv[1], 'wb')
fcntl.flock(file, fcntl.LOCK_EX)
print('held', flush=True)
sys.stdin.read()
os._exit(9)  # as if killed: nothing is tidied up
"""


def test_what_a_killed_download_left_is_removed_but_not_that_of_a_living_one(server, tmp_path):
    path = tmp_path / 'x.tar'
    stale, other = (tmp_path / f'.{name}.part-0123abcd' for name in ('x.tar', 'y.tar'))
    for folder in (stale, other):
        folder.mkdir()
        (folder / 'x.tar').write_bytes(b'half')
    command = [sys.executable, '-c', HOLD, tmp_path / '.x.tar.lock']
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as living:
        living.stdout.readline()
        thread = threading.Thread(target=fetch, args=(server, path))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and stale.exists()
        living.stdin.close()
        thread.join()
    assert {each.name for each in tmp_path.iterdir()} == {'x.tar', other.name}


def test_of_several_at_once_one_downloads(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / 'x.tar'
    threads = [threading.Thread(target=fetch, args=(server, path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [path]
    assert server.asked == 1
    waiting = f'waiting for the process that fetches {path}'
    assert set(caplog.messages) <= {f'fetching {server.url} to {tmp_path}', waiting}


def test_without_locks_nothing_that_is_left_is_removed(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, 'flock', mock.Mock(side_effect=OSError('no locks')))
    left = tmp_path / '.x.tar.part-0123abcd'
    left.mkdir()
    fetch(server, tmp_path / 'x.tar')
    assert left.exists() and (tmp_path / 'x.tar').read_bytes() == CONTENT


def test_length_and_hash_make_a_file_whole(tmp_path):
    path = tmp_path / 'x'
    path.write_bytes(CONTENT)
    assert files.is_whole(path, sha256=DIGEST[:8])
    assert files.is_whole(path, sha256=DIGEST.upper(), size=len(CONTENT))
    assert not files.is_whole(path, sha256=DIGEST, size=1)
    assert not files.is_whole(path, sha256='0' * 64)


def test_what_is_written_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / 'a.json'
    for text in ('first', 'second'):
        files.write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_writing_names_the_file_not_its_temporary_one(tmp_path):
    with pytest.raises(OSError, match='cannot be written .Is a directory.: ') as caught:
        (tmp_path / 'x').mkdir()
        files.write_atomically(tmp_path / 'x', 'text')
    assert caught.value.filename == str(tmp_path / 'x')
    assert [path.name for path in tmp_path.iterdir()] == ['x']


def test_bytes_are_appended_whole_or_not_at_all(tmp_path):
    resource = pytest.importorskip('resource')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / 'x'
    files.append(path, b'12345')
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
    try:
        with pytest.raises(OSError, match=f'cannot be written .*{path}'):
            files.append(path, b'67890')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b'12345'
    files.append(path, b'6')
    assert path.read_bytes() == b'123456'
