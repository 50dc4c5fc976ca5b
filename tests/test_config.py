"""The table of keys, and what becomes of a config on its way from a file to a run."""

import json
import math

import pytest

from configs import default, quickstart
from rpn_jax import config as configs
from rpn_jax.errors import InputError
from rpn_jax.training import workdir

BOUNDED = {key: entry for key, entry in configs.KEYS.items() if entry.type in (int, float)}
CHOSEN = [key for key, entry in configs.KEYS.items() if entry.choices]


def changed(key, value):
    """Returns the default config with another value of a key."""
    config = default.get_config()
    config.update_from_flattened_dict({key: value})
    return config


def test_the_table_has_every_key_of_the_default_config():
    assert configs.items(default.get_config()).keys() == configs.KEYS.keys()
    configs.check(default.get_config())


@pytest.mark.parametrize('key', BOUNDED)
def test_bounds_are_allowed_and_what_lies_beyond_is_refused(key):
    entry = configs.KEYS[key]
    refused = [math.nan, math.inf] if entry.type is float else []
    for bound, beyond in ((entry.least, -1), (entry.most, 1)):
        if math.isfinite(bound) and not entry.choices:
            config = changed(key, entry.type(bound))
            if key in ('targets.positive_iou', 'targets.negative_iou'):  # which must not cross
                config.targets.update(positive_iou=bound, negative_iou=bound)
            configs.check(config)
            refused.append(entry.type(bound + beyond))
    for value in refused:
        with pytest.raises(InputError, match=f'config key {key}: .* is out of bounds'):
            configs.check(changed(key, value))


@pytest.mark.parametrize('key', CHOSEN)
def test_a_value_that_is_no_choice_is_refused_with_the_choices(key):
    for value in configs.KEYS[key].choices:
        if key != 'checkpoint.best':
            configs.check(changed(key, value))
    with pytest.raises(InputError) as error:
        configs.check(changed(key, 34 if configs.KEYS[key].type is int else 'zip'))
    assert str(error.value).startswith(f'config key {key}: ')
    assert all(repr(choice) in str(error.value) for choice in configs.KEYS[key].choices)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('model.dilations', (1, 1, 2)),
        ('model.dilations', (1, 1, 0, 1)),
        ('model.remat', (1,)),
        ('data.mean', (1.0, 2.0)),
        ('data.std', (1.0, math.nan, 2.0)),
        ('anchors.sizes', ((32, math.inf),)),
        ('anchors.sizes', ()),
        ('anchors.sizes', ((32,), ())),
        ('anchors.sizes', (0.5,)),
        ('anchors.aspect_ratios', (0.0,)),
        ('data.scenes', (0, 5)),
        ('targets.negative_iou', 0.8),
        ('targets.border', 10**400),
        ('data.max_boxes', 10**400),
        ('optim.decay_at', (10**400,)),
    ],
)
def test_tuples_have_lengths_and_numbers_have_bounds(key, value):
    with pytest.raises(InputError, match=f'config key {key}: '):
        configs.check(changed(key, value))


def test_the_best_checkpoint_needs_evaluations_of_enough_proposals():
    config = changed('checkpoint.best', 'AR@2000')
    with pytest.raises(InputError, match=r'AR@2000 needs an evaluation\.every above 0'):
        configs.check(config)
    config.evaluation.every = 10
    with pytest.raises(InputError, match=r'checkpoint\.best: .* 2000 proposals .* is 1000'):
        configs.check(config)
    config.checkpoint.best = 'AR@1000'
    configs.check(config)


def test_a_wrong_value_of_a_file_names_the_file_unless_it_was_overridden():
    config = changed('steps', 0)
    with pytest.raises(InputError, match=r'^--config x\.py: config key steps: '):
        configs.check(config, '--config x.py')
    with pytest.raises(InputError, match='^config key steps: '):
        configs.check(config, '--config x.py', {'steps': '0'})


# Overrides


@pytest.mark.parametrize(
    ('key', 'text', 'expected'),
    [
        ('steps', '7', 7),
        ('targets.border', '-1', -1),
        ('optim.learning_rate', '1e-3', 0.001),
        ('optim.learning_rate', '2', 2.0),
        ('data.flip', 'False', False),
        ('data.flip', 'true', True),
        ('data.path', 'a folder/with=signs', 'a folder/with=signs'),
        ('data.path', '007', '007'),
        ('data.train_split', '', ''),
        ('anchors.sizes', '8, 16', (8, 16)),
        ('anchors.sizes', '((8, 22.6), [32])', ((8, 22.6), (32,))),
        ('anchors.sizes', '8', (8,)),
        ('data.mean', '()', ()),
        ('data.categories', '', ()),
        ('data.categories', 'cat', ('cat',)),
        ('data.categories', 'traffic light, dog,', ('traffic light', 'dog')),
        ('data.categories', '17', (17,)),
        ('data.categories', '(1, "a,b")', (1, 'a,b')),
    ],
)
def test_an_override_is_read_as_the_type_of_its_key(key, text, expected):
    before = quickstart.get_config()
    values = configs.items(configs.override(before, {key: text}))
    assert values == configs.items(before) | {key: expected}
    assert type(values[key]) is type(expected)
    assert before.to_dict() == quickstart.get_config().to_dict()


@pytest.mark.parametrize(
    ('key', 'text', 'complaint'),
    [
        ('data.pth', 'x', r"no config key 'data\.pth'; did you mean data\.path"),
        ('learning_rate', '1', r'did you mean optim\.learning_rate\?'),
        ('nothing.of.this', '1', r"no config key 'nothing\.of\.this'$"),
        ('', '1', "no config key ''"),
        ('data', '3', r'config key data is a section; it has data\.source'),
        *(('steps', text, 'is not an integer') for text in ('abc', '1.5', 'True', '', 'open("x")')),
        ('steps', '(' * 500, 'is not an integer'),
        ('optim.momentum', 'high', 'is not a number'),
        ('optim.momentum', '1' + '0' * 400, 'the number is too large'),
        ('data.flip', '1', 'is not True or False'),
        ('anchors.sizes', '(16,"a")', 'is not a tuple of numbers'),
        ('data.mean', '(1,2,True)', 'is not a tuple of 0 or 3 numbers'),
        ('data.scenes', '(1.5,2)', 'is not a tuple of 2 integers'),
        ('data.categories', '(1.5,2)', 'is not a tuple of names or ids'),
        ('data.categories', 'True', 'is not a tuple of names or ids'),
        ('model.dilations', '((1,1),1,1)', 'is not a tuple of 4 integers'),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_key(key, text, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        configs.override(default.get_config(), {key: text})
    assert key in str(error.value)


def test_keys_that_are_given_and_have_no_effect_are_told():
    config, given = quickstart.get_config(), {'data.path': '/mine', 'optim.cycles': '3', 'steps': 9}
    assert list(configs.without_effect(config, given)) == [
        "data.path has no effect: data.source is 'shapes', not 'tfds' or 'voc' or 'coco' or "
        "'yolo' or 'images'",
        "optim.cycles has no effect: optim.schedule is 'cosine', not 'cyclical'",
    ]
    config.data.source, config.optim.schedule = 'voc', 'cyclical'
    assert not list(configs.without_effect(config, given))
    for key, (other, choices) in configs.ONLY_WITH.items():
        assert key in configs.KEYS and {*choices} <= {*configs.KEYS[other].choices}


# Files and workdirs

BEGIN = 'from configs import default\ndef get_config():\n    c = default.get_config()\n    '


def test_a_config_is_named_by_its_path_or_by_its_name_where_it_is_installed(tmp_path):
    for name in ('quickstart', quickstart.__file__):
        assert configs.read(name).to_dict() == quickstart.get_config().to_dict()
    path = tmp_path / 'mine.py'
    path.write_text(
        f'{BEGIN}c.optim.learning_rate = 1\n    c.anchors.sizes = [16, 22.6]\n    return c\n'
    )
    config = configs.read(path)
    assert (config.anchors.sizes, config.optim.learning_rate) == ((16, 22.6), 1)
    assert config.data == default.get_config().data
    with pytest.raises(InputError, match=r'voc_c5: no such Python file; did you mean voc_c4'):
        configs.read('voc_c5')


@pytest.mark.parametrize(
    ('text', 'complaint'),
    [
        ('raise RuntimeError("one\\ntwo")', 'RuntimeError: one two'),
        ('import sys; sys.exit(0)', 'SystemExit'),
        ('def get_config(:', 'line 1: invalid syntax'),
        ('steps = 3', "no attribute 'get_config'"),
        ('def get_config(): return {"steps": 3}', 'ConfigDict'),
        (f'{BEGIN}c.stepz = 3\n    return c', "no config key 'stepz'; did you mean steps?"),
        (f'{BEGIN}c.steps = "abc"\n    return c', 'steps'),
        (f'{BEGIN}c.anchors.sizes = ("a",)\n    return c', "anchors.sizes: ('a',)"),
        (f'{BEGIN}del c.optim.momentum\n    return c', 'config key optim.momentum is missing'),
        (f'{BEGIN}del c.data\n    return c', 'is missing'),
    ],
)
def test_a_wrong_config_file_is_refused_by_its_name(tmp_path, text, complaint):
    path = tmp_path / 'mine.py'
    path.write_text(text)
    with pytest.raises(InputError) as error:
        configs.read(path)
    assert str(error.value).startswith(f'--config {path}: ') and complaint in str(error.value)


def test_the_package_of_configs_is_ours_whatever_else_is_called_so(tmp_path, monkeypatch):
    other = type(configs)('configs')
    other.__path__ = [str(tmp_path)]
    monkeypatch.setitem(configs.sys.modules, 'configs', other)
    for name in ('configs.default', 'configs.quickstart'):  # they come back after the test
        monkeypatch.setitem(configs.sys.modules, name, configs.sys.modules[name])
    assert configs.read('voc_cyclical').optim.schedule == 'cyclical'


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'data': {'colour': True}}, r"no config key 'data\.colour'"),
        ({'data': {'image_size': '64'}}, r"data\.image_size: '64' is not an integer"),
        ({'steps': {}}, r'steps: .* is not an integer'),
        ({'data': 3}, "no config key 'data'"),
        ({'model.depth': 50}, r'not a config \(.* model\.depth contains'),
    ],
)
def test_a_workdir_with_a_wrong_config_is_refused_by_its_file(tmp_path, change, complaint):
    (tmp_path / 'config.json').write_text(json.dumps(change))
    with pytest.raises(InputError, match=complaint) as error:
        configs.read_run(tmp_path)
    assert str(error.value).startswith(f'{tmp_path}/config.json: ')


def test_keys_younger_than_a_run_take_the_default(tmp_path):
    config = quickstart.get_config().to_dict()
    del config['loss'], config['optim']['momentum'], config['seed']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    expected = quickstart.get_config()
    expected.loss.box_weight = default.get_config().loss.box_weight
    assert configs.read_run(tmp_path).to_dict() == expected.to_dict()


# What a run gets


def test_a_resolved_config_is_frozen_and_the_one_before_as_it_was():
    config = default.get_config()
    resolved = configs.resolve(config)
    assert config.data.pixels == 'auto' and resolved.data.pixels == 'torchvision'
    assert configs.items(resolved) == configs.items(config) | {'data.pixels': 'torchvision'}
    with pytest.raises(AttributeError, match='immutable'):
        resolved.data.flip = False


def test_pixels_are_those_that_a_run_settled_on(tmp_path):
    config = default.get_config()
    config.data.update(pixels='caffe', mean=(1.0, 2.0, 3.0))
    workdir.begin(tmp_path, config)
    assert configs.resolve(changed('seed', 0), tmp_path).data.pixels == 'torchvision'
    (tmp_path / 'checkpoints' / '3').mkdir(parents=True)
    (tmp_path / 'checkpoints' / '3' / '_CHECKPOINT_METADATA').write_text('{}')
    resolved = configs.resolve(changed('data.std', (4.0, 5.0, 6.0)), tmp_path)
    assert resolved.data.pixels == 'caffe'
    assert (resolved.data.mean, resolved.data.std) == ((1, 2, 3), (4, 5, 6))
    assert configs.resolve(changed('data.pixels', 'torchvision'), tmp_path).data.mean == ()


# What people read


def test_comments_are_those_of_the_lines_of_the_default_config():
    comments = configs.comments()
    assert comments.keys() == configs.KEYS.keys()
    assert comments['steps'] == 'length of the run'
    assert comments['checkpoint.every'] == 'steps between two checkpoints'
    assert comments['evaluation.images'] == 'of eval_split; 0 all'


@pytest.mark.parametrize(
    ('message', 'ending'),
    [
        ('path: no folder /x', ' (config key data.path)'),
        ("source 'images' has no boxes", ' (config key data.source)'),
        ('image 2: 3 boxes, but max_boxes is 2', ' (config key data.max_boxes)'),
        ('remat: (5,) needs last_stage=5', ' (config keys model.remat, model.last_stage)'),
        ('/a/max_boxes/image_size.jpg: not an image', ''),
        ('x.txt: no such list; images of it', ''),
        ('image_size.yaml: cannot be read', ''),
        ('take a smaller fpn_extra.', ' (config key model.fpn_extra)'),
        ('/a/x,batch_size=8/b.json: no such file; name another', ''),
        ('no file /a/x,batch_size=8/b.json', ''),
        ('/a/sweep steps=9/b.json: no such file', ''),
        ("/a/sweep steps=9: no data; set path and name=''", ' (config key data.name)'),
        ('config key data.path: is wrong for batch_size', ''),
    ],
)
def test_a_message_of_the_library_gets_the_keys_of_its_keywords(message, ending):
    assert configs.with_keys(message) == message + ending
