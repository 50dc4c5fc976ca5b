"""The levers: without each the step computes the same; those that change something are timed."""

import contextlib
import re

import jax
import numpy as np
import pytest
from helpers import narrow

from configs import default
from experiments import bench_levers, bench_ours
from experiments.bench_ours import Case, Ours
from rpn_jax.models import convolution
from rpn_jax.ops import nms

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('quick_compilation')]

CASE = Case('train', 26, 'c4', 2, 1, (64, 64), 'float32')
NMS = 'NMS in large blocks'  # of prediction alone
STEM = "gradient of the stem's kernel by columns"  # where it learns
OF_GPUS = (
    'convolutions for gradients of uneven 1x1 maps',
    '1x1 convolutions as such on GPUs',
    "stem's 2x2 pixels as channels",
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks of an eighth of the width, wide enough all the same; fewer samples than cells."""
    narrow(monkeypatch)
    monkeypatch.setattr(convolution, 'WIDE', 8)
    original = default.get_config

    def few():
        config = original()
        config.targets.samples = 12
        return config

    monkeypatch.setattr(default, 'get_config', few)


def looked_at(context):
    """Returns the losses of a step made inside a context, and its program as text by device."""
    with context():
        update, state, batch = bench_ours.start(CASE, Ours().arrays(CASE))
        on_gpus = jax.jit(update.mapped).trace(state, batch).lower(lowering_platforms=('cuda',))
        texts = update.mapped.lower(state, batch).as_text(), on_gpus.as_text()
        _, found = update(state, batch)
    return [float(found[key]) for key in ('loss', 'loss_box')], texts


def test_a_step_without_a_lever_computes_the_same_in_another_way():
    losses, texts = looked_at(contextlib.nullcontext)
    assert looked_at(contextlib.nullcontext)[1] == texts
    same = [], []
    for name, lack in bench_levers.LEVERS.items():
        found, others = looked_at(lack)
        assert found == pytest.approx(losses, rel=1e-4), name
        for names, text, other in zip(same, texts, others, strict=True):
            names.extend([name] * (text == other))
    assert same == ([*OF_GPUS, STEM, NMS], [STEM, 'state donated', NMS])  # jit hides it


def test_the_stems_lever_changes_a_step_where_the_stem_learns():
    def text(context):
        jax.clear_caches()
        with context():
            update, state, batch = bench_ours.start(everything, Ours().arrays(everything))
            return update.mapped.lower(state, batch).as_text()

    everything = CASE._replace(frozen_stages=0)
    assert text(contextlib.nullcontext) != text(bench_levers.LEVERS[STEM])
    x, gradient = np.random.default_rng(0).normal(size=(2, 2, 10, 10, 3)).astype(np.float32)
    gradient = gradient[:, ::2, ::2]
    found = bench_levers.by_both_sides(x, gradient, 7)
    np.testing.assert_allclose(found, convolution.gradient_by_columns(x, gradient, 7), atol=1e-4)


def test_large_blocks_are_for_gpus():
    def suppress(boxes, scores):
        return nms.nms(boxes, scores, iou_threshold=0.7, limit=9)

    def texts():
        traced = jax.jit(suppress).trace(np.zeros((300, 4)), np.zeros(300))
        return [traced.lower(lowering_platforms=(p,)).as_text() for p in ('cpu', 'cuda')]

    before = texts()
    jax.clear_caches()
    with bench_levers.LEVERS[NMS]():
        after = texts()
    assert before[0] == after[0] and before[1] != after[1]


def test_what_is_computed_again_computes_the_same():
    losses, texts = looked_at(contextlib.nullcontext)
    for name, add in bench_levers.options(CASE).items():
        found, others = looked_at(add)
        assert found == pytest.approx(losses, rel=1e-4), name
        assert all(a != b for a, b in zip(texts, others, strict=True)), name


def test_options_are_of_what_learns():
    names = ['model.remat=(4,)', 'model.remat=(5,)', 'model.remat=(4, 5)']
    assert list(bench_levers.options(CASE._replace(frozen_stages=3, stage='dc5'))) == names
    assert list(bench_levers.options(CASE._replace(frozen_stages=3))) == names[:1]


def test_those_that_change_something_are_timed(capsys):
    assert not bench_levers.main(['--depth=26', '--size=64', '--repeats=1'])
    first, header, *rows = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r'train R26 c4 frozen 3 batch 1: \S+ s, \d+ MiB', first)
    assert header.split('  ')[1] == 'with it, over without'
    names = [name for name in bench_levers.LEVERS if name not in (*OF_GPUS, STEM, NMS)]
    assert [row.strip().partition('  ')[0] for row in rows] == [*names, 'model.remat=(4,)']
    for row in rows:
        assert re.fullmatch(r'\d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\) +\d+\.\d\d', row[48:].strip())


def test_only_some_are_timed(capsys):
    small = ['--depth=26', '--size=64', '--repeats=1', '--only=donated|norms|remat']
    bench_levers.main(small)
    rows = capsys.readouterr().out.splitlines()[2:]
    names = ['stored norms folded into kernels', 'state donated', 'model.remat=(4,)']
    assert [row.strip().partition('  ')[0] for row in rows] == names
    bench_levers.main(['--kind=predict', *small])
    first, _, row = capsys.readouterr().out.splitlines()
    assert first.startswith('predict R26 c4 batch 1: ') and row.strip().startswith(names[0])


@pytest.mark.parametrize(
    ('flag', 'complaint'),
    [('--device=gpu', '--device gpu: '), ('--only=zzz', '--only zzz: '), ('--only=(', '')],
)
def test_what_cannot_be_timed_is_an_error(flag, complaint, capsys):
    assert bench_levers.main([flag]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'error: {complaint}') and error.count('\n') == 1
