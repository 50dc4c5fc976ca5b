"""A trained RPN in a notebook's hands: restored from a workdir alone, for images of any size."""

import json

import jax
import numpy as np
import pytest
from helpers import finished_run, tiny_config
from PIL import Image
from safetensors.numpy import load_file, save_file

import rpn_jax
from rpn_jax import data
from rpn_jax.cli import main
from rpn_jax.data.canvases import square
from rpn_jax.data.sources.shapes import shapes
from rpn_jax.errors import InputError
from rpn_jax.evaluation.predict import make_predict
from rpn_jax.inference import Detector
from rpn_jax.models import rpn
from rpn_jax.ops.proposals import Proposals
from rpn_jax.training import checkpoint


@pytest.fixture(scope='module')
def trained():
    """Returns the tiny run's network; it was trained on four devices and lives on one."""
    assert len(jax.devices()) == 4
    return rpn_jax.restore(finished_run().folder)


@pytest.fixture(scope='module')
def scene():
    """Returns a drawn image [100, 100, 3], which is not the canvas's size."""
    return shapes('look', count=1, size=100).read(0)


def test_restore_takes_the_config_and_the_newest_step_or_another(trained):
    config = json.loads((finished_run().folder / 'config.json').read_text())
    assert json.loads(json.dumps(trained.config.to_dict())) == config
    older = rpn_jax.restore(finished_run().folder, step=6)
    assert (trained.step, older.step) == (8, 6)
    assert trained.variables.keys() == {'params', 'batch_stats'}
    a, b = (t.variables['params']['head']['conv']['kernel'] for t in (trained, older))
    assert a.shape == b.shape and not np.array_equal(a, b)


def test_restore_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match='config.json: no such file'):
        rpn_jax.restore(tmp_path)
    (tmp_path / 'config.json').write_text((finished_run().folder / 'config.json').read_text())
    with pytest.raises(InputError, match='no checkpoint; train first'):
        rpn_jax.restore(tmp_path)


def test_an_exported_file_proposes_what_its_workdir_does(trained, scene, tmp_path):
    file = tmp_path / 'x.safetensors'
    main(['export', f'--workdir={finished_run().folder}', f'--output={file}', '--step=6'])
    exported, other = rpn_jax.restore(file), rpn_jax.restore(finished_run().folder, step=6)
    for each in (exported, other):
        with pytest.raises(AttributeError):
            each.config.data.pixels = 'caffe'
    assert exported.step == other.step == 6
    for ours, theirs in zip(exported.propose(scene), other.propose(scene), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match='holds step 6, not 4'):
        rpn_jax.restore(file, step=4)
    save_file(load_file(file), file)  # without what export says of the network
    with pytest.raises(InputError, match='does not say which network it holds'):
        rpn_jax.restore(file)


def test_a_list_of_images_gives_a_list(trained, scene):
    images = [scene, scene[:50]]
    for proposals, image in zip(trained.propose(images), images, strict=True):
        np.testing.assert_array_equal(proposals.boxes, trained.propose(image).boxes)


@pytest.mark.parametrize('shape', [(37, 211), (64, 64), (1, 1)])
def test_proposals_are_in_pixels_of_the_image_as_given(trained, scene, shape):
    image = np.resize(scene, (*shape, 3))
    proposals = trained.propose(image)
    count = proposals.valid.sum()
    assert 0 < count <= 50 and proposals.boxes.shape == (50, 4)
    boxes, (height, width) = proposals.boxes[:count], shape
    assert proposals.valid[:count].all() and not proposals.boxes[count:].any()
    assert (boxes >= 0).all() and (boxes <= [width, height] * 2).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (np.diff(proposals.scores[:count]) <= 0).all()
    # They reach the far edges, so they are not in the canvas's pixels.
    assert boxes[:, 2].max() > 0.9 * width and boxes[:, 3].max() > 0.9 * height


def test_proposals_are_those_of_the_evaluation(trained):
    config = tiny_config(data__pixels='torchvision')
    source = data.open_split(data.Options(**config.data), 'val', training=False)
    canvases = square(64, len(source.records))
    model = rpn.build(config.model, config.anchors)
    predict = make_predict(model, proposals=config.proposals, devices=jax.devices())
    expected = predict(
        trained.variables, data.batches.collate(source, canvases, range(4), max_boxes=16)
    )
    for i in range(4):
        proposals = trained.propose(source.read(i))
        np.testing.assert_array_equal(proposals.index, expected.index[i])
        np.testing.assert_array_equal(proposals.valid, expected.valid[i])
        np.testing.assert_allclose(proposals.boxes, expected.boxes[i], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(proposals.scores, expected.scores[i], rtol=1e-4)
    assert not np.array_equal(expected.index[0], expected.index[1])


def test_no_rounding_carries_a_box_out_of_the_image():
    """In float32 800 * (1995 / 800) is 1995.0001."""
    config = tiny_config(data__image_size=800, data__pixels='torchvision')
    trained = Detector(config, 0, {})
    whole = Proposals(np.float32([[[0, 0, 800, 800]]]), *np.ones((3, 1, 1)))
    trained._predict = lambda variables, batch: whole
    for width in range(1990, 2000):
        boxes = trained.propose(np.zeros((3, width, 3), np.uint8)).boxes
        np.testing.assert_array_equal(boxes, [[0, 0, width, 3]])


def test_features_and_scores_are_laid_out_in_cells(trained, scene):
    features, scores = trained.features(scene), trained.scores(scene)
    assert features.shape == (8, 8, 64) and scores.shape == (8, 8, 6)
    assert features.std() > 0 and (features >= 0).all()  # behind a ReLU
    assert ((0 < scores) & (scores < 1)).all()
    proposals = trained.propose(scene)
    best = scores.reshape(-1)[proposals.index[proposals.valid]]
    np.testing.assert_allclose(best, proposals.scores[proposals.valid], rtol=1e-5)
    assert proposals.scores[0] == pytest.approx(scores.max())


def test_features_lie_where_the_image_has_them(trained, scene):
    painted = scene.copy()
    painted[:25, 75:] = 255 - painted[:25, 75:]  # the corner top right
    changed = np.abs(trained.features(painted) - trained.features(scene)).sum(axis=-1)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert row <= 2 and column >= 5


def test_other_variables_are_used_at_once(trained, scene, monkeypatch):
    before = trained.scores(scene), trained.propose(scene).scores
    other, _ = checkpoint.variables(finished_run().folder, 4)
    monkeypatch.setattr(trained, 'variables', other)
    assert not np.array_equal(before[0], trained.scores(scene))
    assert not np.array_equal(before[1], trained.propose(scene).scores)


def test_an_image_of_pillow_is_as_good_as_its_array(trained, scene):
    for own, expected in zip(
        trained.propose(Image.fromarray(scene)), trained.propose(scene), strict=True
    ):
        np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((9, 9, 3)),
        *(np.zeros(shape, np.uint8) for shape in ((9, 9), (9, 9, 4), (0, 4, 3), (4, 0, 3))),
    ],
)
def test_what_is_no_rgb_image_is_refused(trained, image):
    """A float image between 0 and 1 would become black without a word."""
    with pytest.raises(InputError, match='it must be uint8'):
        trained.propose(image)
