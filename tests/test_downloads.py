"""Downloads are whole or not there; what a killed one leaves goes with the next."""

import fcntl
import hashlib

import pytest
from data_files import CONTENT

from rpn_jax import downloads
from rpn_jax.errors import InputError

DIGEST = hashlib.sha256(CONTENT).hexdigest()


def fetch(server, path, **changes):
    lines = []
    arguments = dict(sha256=DIGEST, size=len(CONTENT), print=lines.append) | changes
    downloads.fetch(server.url, path, **arguments)
    return lines


def test_a_file_comes_whole_into_a_folder_that_is_made(server, tmp_path):
    path = tmp_path / 'a' / 'x.tar'
    lines = fetch(server, path)
    assert path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]
    assert lines[0] == f'fetching {server.url} to {path.parent}'
    assert lines[-1].startswith('  100 %  3 of 3 MiB  ') and lines[-1].endswith('0:00:00 left')
    assert 'MiB/s' in lines[-1] and len(lines) <= 11


@pytest.mark.parametrize(
    ('change', 'arguments', 'complaint'),
    [
        ({}, dict(sha256='0' * 64), 'another hash'),
        ({}, dict(size=len(CONTENT) + 1), 'the server has 3500000 bytes, not 3500001'),
        ({}, dict(size=len(CONTENT) - 1), 'too many'),
        (dict(content=CONTENT[:-1]), {}, 'cut off after 3499999 of 3500000'),
        (dict(length=0, content=CONTENT[:-1]), {}, 'cut off after 3499999 of 3500000'),
        (dict(length=0, content=CONTENT + b'x'), {}, 'more than 3 MiB came'),
        (dict(status=404), {}, 'the server said 404'),
    ],
)
def test_what_is_not_whole_is_not_kept(server, tmp_path, change, arguments, complaint):
    for key, value in change.items():
        setattr(server, key, value)
    with pytest.raises(InputError, match=complaint) as error:
        fetch(server, tmp_path / 'x.tar', **arguments)
    by_hand = f'fetch {server.url} by other means and put it at {tmp_path}/x.tar'
    assert str(error.value).endswith(by_hand) and '\n' not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_anything_comes(server, tmp_path, monkeypatch):
    usage = type('Usage', (), {'free': 10})
    monkeypatch.setattr(downloads.shutil, 'disk_usage', lambda _: usage)
    with pytest.raises(InputError, match='3 MiB are too many'):
        fetch(server, tmp_path / 'x.tar')


def test_what_a_killed_download_left_is_removed(server, tmp_path):
    (tmp_path / 'x.tar.0123abcd.part').write_bytes(b'half')
    (tmp_path / 'y.tar.0123abcd.part').write_bytes(b'of another file')
    living = tmp_path / 'x.tar.76543210.part'
    with living.open('wb') as file:  # another process is at it
        fcntl.flock(file, fcntl.LOCK_EX)
        fetch(server, tmp_path / 'x.tar')
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {'x.tar', 'y.tar.0123abcd.part', living.name}


def test_a_long_job_says_how_far_it_is(monkeypatch):
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr(downloads.time, 'monotonic', lambda: next(clock))
    lines = []
    progress = downloads.Progress(1000 * 2**20, lines.append)
    for done in range(10, 121, 10):
        progress.show(done * 2**20)
    assert lines == [
        '    4 %  40 of 1000 MiB  3.3 MiB/s  0:04:48 left',
        '    8 %  80 of 1000 MiB  3.3 MiB/s  0:04:36 left',
        '   10 %  100 of 1000 MiB  3.3 MiB/s  0:04:30 left',
    ]
    downloads.Progress(0, lines.append).show(2**30)  # a length that nobody knows: no percents
    assert len(lines) == 3


def test_length_and_hash_make_a_file_whole(tmp_path):
    path = tmp_path / 'x'
    path.write_bytes(CONTENT)
    assert downloads.is_whole(path, sha256=DIGEST[:8])
    assert downloads.is_whole(path, sha256=DIGEST.upper(), size=len(CONTENT))
    assert not downloads.is_whole(path, sha256=DIGEST, size=1)
    assert not downloads.is_whole(path, sha256='0' * 64, print=[].append)
