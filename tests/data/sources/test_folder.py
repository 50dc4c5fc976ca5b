"""Folders of images without annotations: every file below, once."""

import numpy as np
import pytest
from data_files import encoded

from rpn_jax.data.sources.folder import listing, pictures
from rpn_jax.errors import InputError


def test_all_images_below_a_folder_in_order(tmp_path):
    (tmp_path / 'b').mkdir()
    sizes = {'a.png': (20, 30), 'b/c.JPG': (40, 10), 'z.jpeg': (8, 8)}
    for name, size in sizes.items():
        data = encoded(np.full((*size, 3), (0, 0, 255), np.uint8), name[name.index('.') :])
        (tmp_path / name).write_bytes(data)
    for name in ('notes.txt', '.hidden.jpg'):
        (tmp_path / name).write_text('no image')
    (tmp_path / 'b/again').symlink_to(tmp_path)
    source = pictures(path=tmp_path)
    assert [record.image_id for record in source.records] == list(sizes)
    assert [source.read(i).shape[:2] for i in range(3)] == list(sizes.values())
    np.testing.assert_array_equal(source.read(0), np.full((20, 30, 3), (255, 0, 0)))
    assert all(record.boxes.shape == (0, 4) for record in source.records)
    assert len(pictures(path=tmp_path, images='b/*.JPG').records) == 1
    images, others = listing(tmp_path, without=tmp_path / 'b')
    assert [path.name for path in images + others] == ['a.png', 'z.jpeg', 'notes.txt']


def test_what_holds_no_images_is_refused(tmp_path):
    with pytest.raises(InputError, match='path: no folder .*nowhere'):
        pictures(path=tmp_path / 'nowhere')
    with pytest.raises(InputError, match='no images'):
        pictures(path=tmp_path)
    (tmp_path / 'x.jpg').write_text('not one')
    with pytest.raises(InputError, match='no images match'):
        pictures(path=tmp_path, images='*.png')
