"""Every config resolves and builds its network; the keys are those of their consumers."""

import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from config_cases import differing
from helpers import compilations

from configs import default
from rpn_jax import config as configs
from rpn_jax import data
from rpn_jax.data import normalization
from rpn_jax.evaluation import metrics
from rpn_jax.models import resnet, rpn
from rpn_jax.ops import losses, matching, proposals
from rpn_jax.training import checkpoint, feature_cache, loop, optim, schedules
from rpn_jax.training.parallel import replicate
from rpn_jax.training.step import init_state

FOLDER = Path(default.__file__).parent
VARIANTS = sorted({path.stem for path in FOLDER.glob('*.py')} - {'__init__', 'default'})
VOC = ['voc_c4', 'voc_cyclical', 'voc_dilated']  # ResNet-101, SGD from 0.001 to 0.0001


def config_of(name):
    """Returns what get_config of configs/NAME.py returns."""
    return importlib.import_module(f'configs.{name}').get_config()


def keywords(*functions):
    """Returns the keyword-only parameters of functions."""
    signatures = [inspect.signature(function).parameters.values() for function in functions]
    return {p.name for each in signatures for p in each if p.kind is p.KEYWORD_ONLY}


BUILT = set()  # the networks that were built: some configs have the same


@pytest.mark.parametrize('name', ['default', *VARIANTS])
def test_a_config_resolves_and_builds_its_network_and_optimizer(name):
    config = configs.read(name)
    configs.check(config)
    config = configs.resolve(config)
    options = data.options(**config.data)
    model, optimizer, _ = loop.build(config)
    (shape,) = data.plan([(300, 400)], options).shapes
    if (model, shape) in BUILT:
        return
    BUILT.add((model, shape))

    def outputs(image):
        predicted, variables = model.init_with_output(jax.random.key(0), image)
        optimizer.init(variables['params'])
        return predicted

    logits, deltas = jax.eval_shape(outputs, jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32))
    (count, _) = jax.eval_shape(lambda: rpn.anchors_of(model, shape).boxes).shape
    assert logits.shape == (1, count) and deltas.shape == (1, count, 4)


def small(name):
    """Returns a config for two steps of a small network on drawn scenes."""
    config = config_of(name)
    config.steps = 2
    config.model.update(depth=26, width=8, pretrained='')
    stages = config.model.fpn_stages
    levels = len(stages) + config.model.fpn_extra if stages else 0
    config.anchors.sizes = tuple((8 * 2**level,) for level in range(levels)) or (16, 32)
    config.data.update(source='shapes', scenes=(8, 4), image_size=64, max_size=96, batch_size=4)
    config.data.max_boxes = 16
    return configs.resolve(config)


UNSEEN = 'log_every', 'data.name', 'data.path', 'data.train_split', 'data.eval_split'
UNSEEN += 'checkpoint.every', 'evaluation.every'


@pytest.mark.slow
@pytest.mark.parametrize('name', differing(['default', *VARIANTS], small, UNSEEN))
def test_a_config_trains_two_steps_on_drawn_scenes(name):
    config = small(name)
    options = data.options(**config.data)
    source = data.open_split(options, options.train_split, seed=config.seed)
    devices = jax.local_devices()[:4]
    model, optimizer, _ = loop.build(config)
    state = replicate(init_state(model, optimizer, config.seed), devices)
    before = jax.device_get(state.params)
    with compilations() as compiled:
        update = loop.update_of(config, model, optimizer, devices)
        for batch in data.train_batches(source, options, seed=config.seed, steps=range(2)):
            state, metrics = update(state, batch)
            assert metrics['finite'] and metrics['loss'] > 0
    assert state.step == 2 and compiled.count('jit(_fun)') == 1  # what pmap calls the update
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params))
    assert any(jax.tree.leaves(moved['head']))
    assert any(jax.tree.leaves(moved['backbone'])) == (config.model.frozen_stages < 4)


@pytest.mark.parametrize('name', VARIANTS)
def test_a_variant_is_short_and_changes_nothing_for_others(name):
    assert 10 <= (FOLDER / f'{name}.py').read_text().count('\n') <= 30
    before = default.get_config().to_dict()
    config_of(name)
    assert default.get_config().to_dict() == before


def test_there_are_configs_for_every_data_set_and_for_a_start():
    names = {name: config_of(name).data.name for name in VARIANTS}
    expected = dict.fromkeys(VOC, 'voc/2007+2012') | {'voc2007': 'voc/2007', 'voc2012': 'voc/2012'}
    expected |= {'coco_c4': 'coco/2017', 'coco_scratch': 'coco/2014'}
    assert names.items() >= expected.items() and 'quickstart' in names
    scratch = config_of('coco_scratch').model.to_dict()
    expected = dict(pretrained='', norm='group', init='uniform', frozen_stages=0)
    assert scratch.items() >= expected.items()


@pytest.mark.parametrize('name', VOC)
def test_the_voc_configs_are_faster_rcnns(name):
    config = config_of(name)
    expected = {
        'model': dict(depth=101, norm='frozen', frozen_stages=3, pretrained='imagenet'),
        'data': dict(source='tfds', image_size=600, train_split='trainval', eval_split='test'),
        'anchors': dict(sizes=(32, 64, 128, 256, 512), aspect_ratios=(0.5, 1, 2)),
        'targets': dict(positive_iou=0.7, negative_iou=0.3, samples=256, positive_fraction=0.5),
        'optim': dict(optimizer='sgd', momentum=0.9, weight_decay=5e-4),
    }
    for section, values in expected.items():
        assert config[section].to_dict().items() >= values.items()
    model, _, rate = loop.build(config)
    assert model.strides == (16,)
    assert model.backbone.last_stage == (5 if name == 'voc_dilated' else 4)
    if name != 'voc_cyclical':
        steps = 0, config.steps // 2, config.steps - 1
        assert [float(rate(step)) for step in steps] == pytest.approx([0.001, 0.001, 0.0001])


@pytest.mark.parametrize(
    ('section', 'functions', 'others'),
    [  # others are keywords that come from elsewhere, or keys that another function takes
        ('targets', [matching.match, matching.sample], {'size'}),
        ('proposals', [proposals.propose], {'levels'}),
        ('optim', [optim.make_optimizer, schedules.make_schedule], {'steps', 'frozen'}),
        ('checkpoint', [checkpoint.Checkpoints], {'config'}),
        ('loss', [losses.rpn_losses], {'objectness_weight', 'box_weight'}),
    ],
)
def test_a_section_has_the_keys_and_defaults_of_its_consumer(section, functions, others):
    config = default.get_config()[section].to_dict()
    assert config.keys() ^ keywords(*functions) == others
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        known = {p.name: p.default for p in parameters if p.default is not p.empty}
        known = {name: known[name] for name in known.keys() & config.keys() - {'schedule'}}
        assert known == {name: config[name] for name in known}


def test_the_data_and_the_feature_cache_take_their_sections():
    config = default.get_config()
    assert {*config.data} == {*data.Options._fields}
    assert {*config.features} == keywords(feature_cache.Features) & {'keep', 'gigabytes'}


@pytest.mark.parametrize('key', [key for key, entry in configs.KEYS.items() if entry.choices])
def test_the_comment_of_a_choice_names_every_value(key):
    comment, choices = configs.comments()[key], configs.KEYS[key].choices
    if key != 'checkpoint.best':
        assert all(repr(choice) in comment for choice in choices), comment


@pytest.mark.parametrize(
    ('key', 'known'),
    [
        ('model.depth', resnet.BLOCKS),
        ('optim.schedule', schedules.SCHEDULES),
        ('data.source', data.split.SOURCES),
        ('data.resize', data.split.RESIZES),
        ('data.on_bad', data.split.ON_BAD),
        ('data.pixels', ('auto', *normalization.FAMILIES)),
        ('features.keep', ('', *feature_cache.PLACES)),
    ],
)
def test_choices_are_those_of_the_code(key, known):
    assert {*configs.KEYS[key].choices} == {*known}


def test_figures_are_those_of_an_evaluation():
    overlaps = metrics.measure([np.eye(4)[:, :4]], [np.eye(4)[:, :4]], [np.ones(4)])
    figures = {name for name in metrics.summarise(overlaps) if '/' not in name}
    assert {*configs.KEYS['checkpoint.best'].choices} == {'', *figures}
