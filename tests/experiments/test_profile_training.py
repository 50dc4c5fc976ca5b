"""The profile of a training run: idle time, copies and kernels of made-up traces; a traced run."""

import re
from collections import namedtuple

import numpy as np
import pytest

from experiments import profile_training

pytestmark = pytest.mark.usefixtures('quick_compilation')
Event = namedtuple('Event', 'name start_ns duration_ns')
Line = namedtuple('Line', 'name events')
Plane = namedtuple('Plane', 'name lines')
Profile = namedtuple('Profile', 'planes')
KERNELS = [
    Event('gemm_fusion_dot_17', 1000, 300),
    Event('loop_add_fusion_3', 1200, 200),  # 100 of them beside the first
    Event('gemm_fusion_dot_2', 1600, 400),
]
COPIES = [Event('MemcpyH2D', 1400, 200), Event('MemcpyD2H', 1900, 50)]


def test_idle_is_the_time_without_a_kernel():
    use = profile_training.use_of([KERNELS, COPIES])
    assert use.seconds == pytest.approx(1e-6) and use.idle == pytest.approx(0.2)
    assert use.waiting == 0
    assert use.kernels == [
        ('gemm_fusion_dot', pytest.approx(7e-7), 2),
        ('loop_add_fusion', pytest.approx(2e-7), 1),
    ]


@pytest.mark.parametrize(('length', 'waiting'), [(200, 0.2), (201, 0)])
def test_in_long_gaps_a_gpu_waits(length, waiting, monkeypatch):
    monkeypatch.setattr(profile_training, 'LONG', length)
    assert profile_training.use_of([KERNELS, COPIES]).waiting == pytest.approx(waiting)


def test_only_copies_between_kernels_count():
    assert profile_training.use_of([KERNELS, COPIES]).host_copies == 0
    assert profile_training.use_of([KERNELS + COPIES]).host_copies == 1


def test_gpus_are_found_and_described(monkeypatch):
    monkeypatch.setattr(profile_training, 'STEPS', 2)
    lines = [Line('XLA Ops', KERNELS), Line('Stream #14(Compute)', KERNELS)]
    planes = [Plane('/host:CPU', [Line('python', KERNELS)]), Plane('/device:GPU:0', lines)]
    ((name, use),) = profile_training.uses(Profile(planes))
    first, longest, _ = profile_training.lines(name, use)
    assert first == (
        'GPU:0: idle 20.0%, 0.0% in gaps of 0.1 ms and more; copies to the host between kernels: 0'
    )
    assert longest.split() == ['70.0%', '1.0', 'a', 'step', 'gemm_fusion_dot']


def test_each_turn_times_as_many_steps(monkeypatch):
    """Fed steps take a second, those of one batch a quarter; the trace holds as many."""
    for name, value in {'TURNS': 2, 'STEPS': 4, 'SETTLE': 3}.items():
        monkeypatch.setattr(profile_training, name, value)
    clock, traces, batches = [0.0], [], []
    monkeypatch.setattr(profile_training.time, 'perf_counter', lambda: clock[0])
    profiler = profile_training.jax.profiler
    monkeypatch.setattr(profiler, 'start_trace', lambda *_, **__: traces.append(len(batches)))
    monkeypatch.setattr(profiler, 'stop_trace', lambda: traces.append(len(batches)))

    def update(state, batch):
        clock[0] += 0.25 if batches and batches[-1] is batch else 1
        batches.append(batch)
        return state + 1, {}

    traced = profile_training.Traced(lambda: update, '/no/folder')
    step, state = traced(), 0
    fed = [{'index': np.arange(3)} for _ in range(3 * (3 + 4))]
    with pytest.raises(profile_training.Enough):
        for batch in fed:
            state, _ = step(state, batch)
    assert batches[-1] is fed[-1] and len(batches) == len(fed) + 2 * 4
    assert state == len(batches) - 1  # each of them went on from the one before
    assert traces == [len(batches) - 4, len(batches)]
    assert traced.summary() == (
        '1000.00 ms a step of 3 images, 4.000 (4.000 to 4.000) of the time of one batch again '
        'and again'
    )


@pytest.mark.slow
def test_a_run_is_traced_and_thrown_away(capsys, monkeypatch):
    for name, value in {'TURNS': 2, 'STEPS': 2, 'SETTLE': 1}.items():
        monkeypatch.setattr(profile_training, name, value)
    small = 'model.width=4', 'model.depth=26', 'data.scenes=(8,2)', 'data.image_size=64'
    small += 'data.batch_size=4', 'targets.samples=8'
    words = ['--config=configs/quickstart.py', *(f'--config.{word}' for word in small)]
    assert profile_training.main(words) == 1  # there is no GPU in it
    out, error = capsys.readouterr()
    assert 'compiling the update' in out
    assert re.search(r'ms a step of 4 images, \d+\.\d+ \(.*\) of the time of one batch', out)
    assert error == 'error: there is no GPU in the trace; on CPUs use bench.py\n'
