"""Examples are the batches that the network gets: its pixels, its boxes, its sampled anchors."""

import jax
import numpy as np
from data_files import write_voc
from helpers import tiny_config
from PIL import Image

from rpn_jax import data
from rpn_jax.data.normalization import pixel_family
from rpn_jax.diagnosis import checks, inspect
from rpn_jax.models import rpn
from rpn_jax.report import inputs_page
from rpn_jax.training.step import assign_images, step_key

SAMPLES = 8


def examples(config, steps, **changes):
    """Returns the model, with changes, the source, and (step, batch, Examples) of the steps."""
    options = data.options(**config.data)
    source = data.open_split(options, 'train', seed=config.seed)
    model = rpn.build(config.model, config.anchors).clone(**changes)
    keywords = {'targets': config.targets, 'seed': config.seed, 'pixels': pixel_family('caffe')}
    found = inspect.examples(model, source, options, steps=steps, **keywords)
    make = data.train_batch(source, options, seed=config.seed)
    return (
        model,
        source,
        [(step, make(step), made) for step, made in zip(steps, found, strict=True)],
    )


def test_examples_are_what_the_step_gets_and_samples():
    config = tiny_config(data__image_size=64, data__batch_size=6, targets__samples=SAMPLES)
    model, source, found = examples(config, range(3, 5))
    anchors = jax.device_get(rpn.anchors_of(model, (64, 64)))
    assign = jax.jit(lambda key, batch: assign_images(key, anchors, batch, config.targets))
    for step, batch, made in found:
        index, labels, _ = map(np.asarray, assign(step_key(config.seed, step), batch))
        for row, example in enumerate(made):
            record, real = source.records[batch['index'][row]], batch['kind'][row] > 0
            assert example.step == step and example.levels == 1 and not example.level.any()
            assert example.record is record and example.file == b'' and example.size == (64, 64)
            np.testing.assert_array_equal(example.original, source.read(batch['index'][row]))
            np.testing.assert_array_equal(example.seen, batch['image'][row])
            np.testing.assert_array_equal(example.boxes, batch['boxes'][row][real])
            np.testing.assert_array_equal(example.kind, record.kind)
            for label, boxes in ((1, example.positive), (0, example.background)):
                own = anchors.boxes[index[row][labels[row] == label]]
                np.testing.assert_array_equal(boxes, own)
            assert 0 < len(example.background) <= SAMPLES - len(example.positive)
            assert inspect.failures(example) == []
        kinds = [tuple(int(np.sum(e.kind == code)) for code in (1, 2)) for e in made]
        kinds = [
            f'{one} object{"s" * (one != 1)}' + f', {two} difficult' * (two > 0)
            for one, two in kinds
        ]
        sheet, captions = inputs_page.sheet(made)
        assert sheet.shape[0] > 2 * 64 and captions == [
            f'{e.record.image_id}: {kind}, {len(e.positive)} positive, '
            f'{len(e.background)} background'
            for e, kind in zip(made, kinds, strict=True)
        ]
    lost = example._replace(evidence=example.evidence._replace(same_objects=False, turns={}))
    assert inspect.failures(lost) == [('objects', 'has other objects than its annotation.')]
    assert checks.verdicts([lost.evidence])[0].passed


def test_a_canvas_of_each_shape_has_its_own_anchors(tmp_path):
    settings = dict(data__source='voc', data__resize='short_side', data__image_size=48)
    settings |= dict(data__path=str(write_voc(tmp_path / 'VOC2007')), data__batch_size=1)
    unlike = tmp_path / 'VOC2007/JPEGImages/000000.jpg'  # decoders differ: it is not compared
    Image.new('CMYK', (80, 60)).save(unlike)
    config = tiny_config(**settings, data__canvases=2)
    shapes = set()
    for _, batch, (example,) in examples(config, range(4))[2]:
        height, width = example.seen.shape[:2]
        shapes.add((height, width))
        centres = (example.background[:, :2] + example.background[:, 2:]) / 2
        assert np.all(centres >= 0) and np.all(centres < [width, height])
        assert len(example.background) and example.evidence.planned == tuple(batch['size'][0])
        path = tmp_path / f'VOC2007/JPEGImages/{example.record.image_id}.jpg'
        assert example.file == path.read_bytes()
        assert example.original.shape == (*example.record.size, 3)
        assert bool(example.evidence.turns) == (path != unlike)
    assert len(shapes) > 1


def test_anchors_of_several_levels_know_their_level():
    config = tiny_config(data__image_size=64)
    changes = dict(strides=(8, 16), sizes=((16,), (32,)))
    ((_, _, batch),) = examples(config, range(1), **changes)[2]
    for example in batch:
        roots = np.sqrt(np.prod(example.positive[:, 2:] - example.positive[:, :2], 1))
        np.testing.assert_array_equal(example.level, roots > 24)
        assert example.levels == 2
    assert len(np.concatenate([example.level for example in batch]))
