"""Official archives: the right ones are found or fetched, and a line says what is missing."""

import logging

import pytest
from data_files import TRAINVAL, make_official, voc_archive, write_coco, write_voc

from rpn_jax.data.prepare import official
from rpn_jax.data.prepare.official import DATASETS
from rpn_jax.errors import InputError


def test_archives_and_splits_are_those_of_the_makers():
    assert len(official.ARCHIVES) == 9
    for name, (url, size, sha256) in official.ARCHIVES.items():
        assert url.endswith(f'/{name}') and size > 2e8
        assert len(sha256) == 64 and int(sha256, 16)
    for dataset in DATASETS.values():
        assert set().union(*dataset.splits.values()) == set(dataset.prepared)
        for releases in dataset.prepared.values():
            assert set().union(*(each.archives for each in releases)) <= set(official.ARCHIVES)
    one_each = {'train': ('train',), 'val': ('val',)}
    voc = one_each | {'trainval': ('train', 'val')}
    assert DATASETS['voc/2012'].splits == voc
    assert DATASETS['voc/2007'].splits == voc | {'test': ('test',)}
    years = {'train2014': ('train',), 'val2014': ('val',)}
    assert DATASETS['coco/2014'].splits == one_each | years
    both = DATASETS['voc/2007+2012'].prepared
    assert [each.folder for each in both['train']] == ['VOC2007', 'VOC2012']
    assert [each.folder for each in both['test']] == ['VOC2007']


@pytest.mark.parametrize('folder', ['', 'downloads', 'downloads/manual'])
def test_an_archive_is_found_and_unpacked(tmp_path, monkeypatch, caplog, folder):
    caplog.set_level(logging.INFO)
    path = tmp_path / 'data' / folder / TRAINVAL
    path.parent.mkdir(parents=True)
    make_official(monkeypatch, voc_archive(tmp_path).rename(path))
    paths = official.archives([TRAINVAL], tmp_path / 'data')
    assert paths == {TRAINVAL: path} and caplog.messages[0] == f'checking {path}'
    (release,) = DATASETS['voc/2007'].prepared['train']
    keywords = official.unpack(release, paths, tmp_path / 'work')
    source = official.open_release(release, keywords)
    assert [record.image_id for record in source.records] == [f'{i:06}' for i in range(4)]
    assert source.read(3).shape == (70, 90, 3) and source.records[2].classes == ('cat', 'cat')
    names = {path.name for path in keywords['path'].iterdir()}
    assert names == {'JPEGImages', 'Annotations', 'ImageSets'}
    known = len(caplog.messages)
    official.unpack(release, paths, tmp_path / 'work')
    assert len(caplog.messages) == known


def test_what_is_not_there_is_downloaded(server, tmp_path, monkeypatch):
    path = voc_archive(tmp_path)
    server.content = path.read_bytes()
    server.length = len(server.content)
    make_official(monkeypatch, path, server.url.rpartition('/')[0])
    paths = official.archives([TRAINVAL], tmp_path / 'data')
    path = tmp_path / 'data/downloads' / TRAINVAL
    assert paths == {TRAINVAL: path} and path.read_bytes() == server.content


def test_another_archive_is_refused(tmp_path, monkeypatch):
    path = make_official(monkeypatch, voc_archive(tmp_path))
    content = path.read_bytes()
    for wrong in (content[:-512], content[:-1] + b'x'):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=f'{TRAINVAL}: not the official archive of .* bytes'):
            official.archives([TRAINVAL], tmp_path)


def test_without_a_network_a_line_says_what_to_fetch(tmp_path, offline):
    names = DATASETS['coco/2017'].prepared['train'][0].archives
    with pytest.raises(InputError) as error:
        official.archives(names, tmp_path)
    message, folder = str(error.value), tmp_path / 'downloads'
    assert '\n' not in message and 'http://127.0.0.1:9/train2017.zip' in message
    assert f'put it at {folder}/train2017.zip' in message
    assert message.endswith(f'{folder} needs besides: annotations_trainval2017.zip')


def test_unpacked_folders_are_known_by_what_they_hold(tmp_path):
    splits = DATASETS['voc/2007'].prepared
    folder = write_voc(tmp_path / 'VOCdevkit/VOC2007')
    assert official.unpacked(splits['train'][0], tmp_path) == {'path': folder}
    assert official.unpacked(splits['test'][0], tmp_path) is None  # no such list
    splits = DATASETS['coco/2017'].prepared
    for folder in (tmp_path / 'coco', tmp_path):
        write_coco(folder)
        assert official.unpacked(splits['train'][0], tmp_path) == {'path': folder}
    assert official.unpacked(splits['val'][0], tmp_path) is None
