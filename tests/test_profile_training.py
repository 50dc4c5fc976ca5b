"""The profile of a training run: idle time, copies and kernels of made-up traces; a traced run."""

from collections import namedtuple

import pytest
from test_end_to_end import quick_compilation

from experiments import profile_training

pytestmark = pytest.mark.usefixtures(quick_compilation.__name__)
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
    assert use.kernels == [
        ('gemm_fusion_dot', pytest.approx(7e-7), 2),
        ('loop_add_fusion', pytest.approx(2e-7), 1),
    ]


def test_only_copies_between_kernels_count():
    assert profile_training.use_of([KERNELS, COPIES]).host_copies == 0
    assert profile_training.use_of([KERNELS + COPIES]).host_copies == 1


def test_gpus_are_found_and_described():
    lines = [Line('XLA Ops', KERNELS), Line('Stream #14(Compute)', KERNELS)]
    planes = [Plane('/host:CPU', [Line('python', KERNELS)]), Plane('/device:GPU:0', lines)]
    ((name, use),) = profile_training.uses(Profile(planes))
    first, longest, _ = profile_training.lines(name, use)
    assert first == 'GPU:0: idle 20.0%; copies to the host between kernels: 0'
    assert longest.split() == ['70.0%', '0.1', 'a', 'step', 'gemm_fusion_dot']


@pytest.mark.slow
def test_a_run_is_traced_and_thrown_away(capsys, monkeypatch):
    monkeypatch.setattr(profile_training, 'FIRST', 1)
    monkeypatch.setattr(profile_training, 'STEPS', 2)
    small = 'model.width=4', 'model.depth=26', 'data.scenes=(8,2)', 'data.image_size=64'
    small += 'data.batch_size=4', 'targets.samples=8'
    words = ['--config=configs/quickstart.py', *(f'--config.{word}' for word in small)]
    assert profile_training.main(words) == 1  # there is no GPU in it
    out, error = capsys.readouterr()
    assert 'compiling the update' in out
    assert error == 'error: there is no GPU in the trace; on CPUs use bench.py\n'
