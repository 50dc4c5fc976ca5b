"""Every config builds its network; the keys are those of their consumers, each in one place."""

import importlib
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compilations
from ml_collections import ConfigDict

from configs import default
from rpn_jax import data
from rpn_jax.models import resnet, rpn
from rpn_jax.ops import losses, matching, proposals
from rpn_jax.training import checkpoint, loop, optim, schedules
from rpn_jax.training.parallel import place
from rpn_jax.training.step import init_state

FOLDER = Path(default.__file__).parent
VARIANTS = sorted(
    path.stem for path in FOLDER.glob('*.py') if path.stem not in ('__init__', 'default')
)
MISSION = ['voc_c4', 'voc_cyclical', 'voc_dilated']  # ResNet-101, SGD from 0.001 to 0.0001


def config_of(name):
    """Returns what get_config of configs/NAME.py returns."""
    return importlib.import_module(f'configs.{name}').get_config()


def leaves(config, prefix=''):
    """Returns {'section.key': value} of a config."""
    found = {}
    for name, value in config.items():
        is_section = isinstance(value, ConfigDict)
        found |= leaves(value, f'{prefix}{name}.') if is_section else {f'{prefix}{name}': value}
    return found


def keywords(function):
    """Returns the keyword-only parameters of a function."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def line_of(key):
    """Returns the line of configs/default.py that sets a key (the first of that name)."""
    text = (FOLDER / 'default.py').read_text()
    return re.search(rf'^.*\b{key} ?= ?(?!=).*$', text, re.MULTILINE)[0]


def test_there_are_configs_for_the_mission_and_for_a_start():
    assert {*MISSION, 'quickstart', 'voc_c4_resnet50_caffe'} <= set(VARIANTS)
    names = {name: config_of(name).data.name for name in VARIANTS}
    expected = {'voc2007': 'voc/2007', 'voc2012': 'voc/2012'}
    expected |= {'coco_c4': 'coco/2017', 'coco_scratch': 'coco/2014'}
    assert names.items() >= expected.items()
    scratch = config_of('coco_scratch').model
    assert (scratch.pretrained, scratch.norm, scratch.init) == ('', 'group', 'uniform')
    assert scratch.frozen_stages == 0


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compilation')
@pytest.mark.parametrize('name', ['default', *VARIANTS])
def test_a_config_trains_two_steps_on_drawn_scenes(name):
    config = config_of(name)
    config.steps = 2
    config.model.update(depth=26, width=8, pretrained='')
    config.anchors.sizes = (16, 32)
    config.data.update(source='shapes', scenes=(8, 4), image_size=64, max_size=96, batch_size=4)
    config.data.update(max_boxes=16, pixels='torchvision')
    options = data.check(data.Options(**config.data))
    source = data.open_split(options, options.train_split, seed=config.seed)
    devices = jax.local_devices()[:4]
    model, optimizer, _ = loop.build(config)
    state = place(init_state(model, optimizer, config.seed), devices)
    before = jax.device_get(state.params)
    update = loop.update_of(config, model, optimizer, devices)
    with compilations() as compiled:
        for batch in data.train_batches(source, options, seed=config.seed, steps=range(2)):
            state, metrics = update(state, batch)
            assert metrics['finite'] and metrics['loss'] > 0
    assert state.step == 2 and compiled.count('jit(_fun)') == 1  # what pmap calls the update
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params))
    assert any(jax.tree.leaves(moved['head']))
    assert any(jax.tree.leaves(moved['backbone'])) == (config.model.frozen_stages < 4)


@pytest.mark.parametrize('name', ['default', *VARIANTS])
def test_a_config_builds_its_network_and_optimizer(name):
    config = config_of(name)
    options = data.check(data.Options(**config.data))
    model, optimizer, _ = loop.build(config)
    (shape,) = data.plan([(300, 400)], options).shapes
    canvas = jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), canvas)
    logits, deltas = jax.eval_shape(model.apply, variables, canvas)
    count = len(jax.eval_shape(lambda: rpn.anchors_of(model, shape)))
    assert logits.shape == (1, count) and deltas.shape == (1, count, 4)
    jax.eval_shape(optimizer.init, variables['params'])


@pytest.mark.parametrize('name', VARIANTS)
def test_a_variant_is_short_and_adds_no_key(name):
    lines = (FOLDER / f'{name}.py').read_text().count('\n')
    assert 10 <= lines <= 30
    assert leaves(config_of(name)).keys() == leaves(default.get_config()).keys()


@pytest.mark.parametrize('name', VARIANTS)
def test_a_variant_changes_nothing_for_others(name):
    before = default.get_config().to_dict()
    config_of(name)
    assert default.get_config().to_dict() == before
    assert config_of(name).to_dict() == config_of(name).to_dict()


@pytest.mark.parametrize('name', MISSION)
def test_the_voc_configs_are_the_mission(name):
    config = config_of(name)
    assert config.model.depth == 101 and config.model.norm == 'frozen'
    assert config.model.frozen_stages == 3
    assert config.data.source == 'tfds' and config.data.image_size == 600
    assert config.data.name == 'voc/2007+2012' and config.model.pretrained == 'imagenet'
    assert config.data.train_split == 'trainval' and config.data.eval_split == 'test'
    assert config.optim.optimizer == 'sgd'
    assert config.optim.momentum == 0.9 and config.optim.weight_decay == 5e-4
    rpn_keys = config.anchors.to_dict() | config.targets.to_dict()
    assert rpn_keys['sizes'] == (32, 64, 128, 256, 512)
    assert rpn_keys['aspect_ratios'] == (0.5, 1, 2)
    assert (rpn_keys['positive_iou'], rpn_keys['negative_iou']) == (0.7, 0.3)
    assert (rpn_keys['samples'], rpn_keys['positive_fraction']) == (256, 0.5)


@pytest.mark.parametrize('name', ['voc_c4', 'voc_dilated'])
def test_the_learning_rate_falls_from_a_thousandth_to_a_tenth_of_it(name):
    config = config_of(name)
    skipped = ('optimizer', 'momentum', 'weight_decay')
    schedule = {k: v for k, v in config.optim.items() if k not in skipped}
    rate = optim.make_schedule(**schedule, steps=config.steps)
    assert float(rate(0)) == pytest.approx(0.001)
    assert float(rate(config.steps // 2)) == pytest.approx(0.001)
    assert float(rate(config.steps - 1)) == pytest.approx(0.0001)


def test_the_dilated_network_keeps_the_stride_of_conv4():
    plain, dilated = config_of('voc_c4').model, config_of('voc_dilated').model
    assert (plain.last_stage, dilated.last_stage) == (4, 5)
    strides = [resnet.total_stride(model.last_stage, model.dilations) for model in (plain, dilated)]
    assert strides == [16, 16]
    assert resnet.total_stride(5, plain.dilations) == 32


@pytest.mark.parametrize(
    ('section', 'consumed'),
    [
        ('targets', keywords(matching.assign) - {'size'}),
        ('proposals', keywords(proposals.propose) - {'levels'}),
        (
            'optim',
            (keywords(optim.make_optimizer) | keywords(optim.make_schedule)) - {'steps', 'frozen'},
        ),
        ('checkpoint', keywords(checkpoint.Checkpoints)),
        ('data', set(data.Options._fields)),
        ('loss', keywords(losses.box_loss) | {'objectness_weight', 'box_weight'}),
    ],
)
def test_a_section_has_the_keys_of_its_consumer(section, consumed):
    assert set(default.get_config()[section]) == consumed


@pytest.mark.parametrize(
    ('section', 'defaults'),
    [
        ('targets', matching.assign),
        ('loss', losses.box_loss),
        ('proposals', proposals.propose),
        ('optim', optim.make_optimizer),
    ],
)
def test_what_is_default_in_code_is_default_in_the_config(section, defaults):
    config = default.get_config()[section]
    given = inspect.signature(defaults).parameters.values()
    known = {p.name: p.default for p in given if p.default is not p.empty and p.name in config}
    assert known and known == {name: config[name] for name in known}


def test_no_value_is_none_and_every_key_has_one_line():
    config = default.get_config()
    names = [key.split('.')[-1] for key in leaves(config)]
    assert all(value is not None for value in leaves(config).values())
    text = (FOLDER / 'default.py').read_text()
    for name in names:
        lines = re.findall(rf'^\s+(?:config\.)?{name} ?= ?[^=].*$', text, re.MULTILINE)
        assert len(lines) == names.count(name), name


@pytest.mark.parametrize(
    ('key', 'choices'),
    [
        ('depth', resnet.BLOCKS),
        ('schedule', schedules.SCHEDULES),
        ('optimizer', ('sgd', 'adam')),
        ('norm', ('frozen', 'batch', 'group')),
        ('init', ('normal', 'uniform')),
        ('dtype', ('float32', 'bfloat16')),
        ('last_stage', (3, 4, 5)),
        ('source', data.split.SOURCES),
        ('resize', data.split.RESIZES),
        ('on_bad', data.split.ON_BAD),
        ('pixels', ('auto', 'torchvision', 'caffe')),
    ],
)
def test_the_comment_of_a_choice_names_every_value(key, choices):
    comment = line_of(key).partition('#')[2]
    assert all(repr(choice) in comment for choice in choices), comment
