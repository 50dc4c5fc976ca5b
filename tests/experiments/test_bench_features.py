"""The measurement of kept maps: each place is timed, with maps that are all known."""

import pytest

from experiments import bench_features
from rpn_jax.training.feature_cache import PLACES, Features

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('quick_compilation')]


def test_every_place_is_timed_with_maps_that_are_known(monkeypatch, capsys):
    made, original = [], Features._make
    monkeypatch.setattr(Features, '_make', lambda *row: made.append(row[2]) or original(*row))
    assert not bench_features.main(['--depth=26', '--size=64', '--repeats=2'])
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith('without maps: ')
    assert [row.split()[0] for row in rows] == sorted(PLACES, key=PLACES.index)
    assert len(made) == bench_features.SCENES * len(PLACES)  # none while it was timed
