"""The benchmark of the input pipeline measures what it says, on drawn scenes of its own."""

import mmap
import re
import sys

import pytest

from experiments import bench_input


@pytest.fixture
def bench(monkeypatch, capsys):
    """Returns a function that runs the benchmark, small, and returns (exit code, output)."""

    def run(*words):
        monkeypatch.setattr(bench_input, 'DRAWN', 9)
        monkeypatch.setattr(bench_input, 'SIDES', (60, 80))
        small = ['--rounds=2', '--each=8', '--images=300', '--batch-size=4', '--image-size=64']
        monkeypatch.setattr(sys, 'argv', ['bench_input.py', *small, *words])
        return bench_input.main(), capsys.readouterr()

    return run


@pytest.mark.parametrize('resize', ['square', 'short_side'])
def test_it_prints_stages_ratios_and_memory(bench, resize):
    code, (out, _) = bench(f'--resize={resize}')
    assert code in (0, 1)  # ratios of so small a run say nothing
    stages = re.findall(r'^  (read|decode|resize|batch) +([\d.]+) ms per image', out, re.MULTILINE)
    assert [name for name, _ in stages] == ['read', 'decode', 'resize', 'batch']
    ratios = re.findall(r'pipeline / (.*): ([\d.]+) times as fast \(([\d.]+) to ([\d.]+)', out)
    assert [name for name, *_ in ratios] == ['one thread of OpenCV', 'PIL, float32, two workers']
    for _, median, least, most in ratios:
        assert 0 < float(least) <= float(median) <= float(most)
    (grown,) = re.findall(r'memory: (\d+) MiB more after 300 images', out)
    assert int(grown) < bench_input.GROWTH


def test_a_ratio_that_is_not_reached_is_an_exit_code(bench, monkeypatch):
    monkeypatch.setattr(bench_input, 'ONE_THREAD', 1e9)
    assert bench()[0] == 1
    monkeypatch.setattr(bench_input, 'ONE_THREAD', 0)
    monkeypatch.setattr(bench_input, 'PIL_LOADER', 0)
    assert bench()[0] == 0


def test_memory_that_grows_is_seen():
    kept = []

    def make(step):
        kept.append(mmap.mmap(-1, 2**22))  # the system's: freed memory is not used again
        kept[-1].write(bytes(2**22))
        return step

    assert 80 < bench_input.growth(make, bench_input.WARM + 26) < 160


def test_a_path_that_is_not_there_is_an_error(bench):
    code, (_, error) = bench('--path=/no/where')
    assert code == 1 and error.startswith('error: path: no folder /no/where')
