"""What is said of a step: XLA's counts, sums as large as what learns, the arithmetic of a ring."""

import types

import jax
import pytest
from helpers import tiny_config

from experiments import program, scale
from rpn_jax.training import loop
from rpn_jax.training.step import init_state


def test_a_device_computes_as_much_on_any_number_of_them_and_sums_what_learns():
    config = tiny_config(model__norm='frozen', model__frozen_stages=2)
    (one, nothing), (two, summed) = (scale.count(config, n, 2, (64, 64)) for n in (1, 2))
    assert nothing == 0 and two.flops == pytest.approx(one.flops, rel=1e-2)
    model, optimizer, _ = loop.build(config)
    params = init_state(model, optimizer, 0).params
    learning = 4 * sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if not str(path[1].key).startswith(('stem', 'conv2')) and 'norm' not in str(path)
    )
    assert learning < summed < learning + 4000  # losses, counts, sums of each anchor type


def test_bytes_are_those_of_all_shapes_of_a_sum():
    text = """
      %a = f32[3,4]{1,0} all-reduce(%x), channel_id=1
      %b = (f32[2]{0}, s32[]) all-reduce-start(%x, %y), channel_id=2
      %c = f32[100]{0} add(%x, %all-reduce)
    """
    assert scale.summed_bytes(text) == 48 + 8 + 4


def test_a_prediction_is_the_arithmetic_of_a_ring():
    about = {'rate': 1.0, 'images': 2, 'host': 2, 'inside': 4.0, 'link': 1.0, 'devices': (1, 2, 4)}
    about = types.SimpleNamespace(**about, image_bytes=1_000_000)
    rows = [line.split() for line in scale.predicted(1e12, 1e9, about)][1:]
    # A second of products; a gigabyte around a ring of 2 inside a host, of 4 between hosts.
    assert [row[:5] for row in rows] == [
        ['1', '2', '1000.0', '0.0', '2'],
        ['2', '4', '1250.0', '250.0', '3'],
        ['4', '8', '2500.0', '1500.0', '3'],
    ]
    assert [row[5] for row in rows] == ['100%', '80%', '40%']


@pytest.mark.parametrize(
    ('word', 'complaint'),
    [
        ('--nonsense', "unknown argument '--nonsense'; see python -m"),
        ('--rate=0', 'argument --rate: 0 is not above 0'),
        ('--inside=nan', 'argument --inside: nan is not above 0'),
        ('--config.model.depth=0', 'config key model.depth: 0 is not one of'),
    ],
)
def test_a_wrong_word_is_one_line(capsys, word, complaint):
    assert program.run(scale.main, [word]) == 1
    assert capsys.readouterr().err.startswith(f'error: {complaint}')
