"""The soak: it passes on runs that end as they should, and sees those that do not."""

import os
import random
import re
from collections import Counter

import pytest

from experiments import soak


def test_what_grows_is_seen():
    assert soak.grows('MiB', 900, 1007) and not soak.grows('MiB', 900, 1005)
    assert soak.grows('threads', 44, 53) and not soak.grows('threads', 44, 52)
    assert soak.grows('descriptors', 20, 37) and not soak.grows('descriptors', 20, 36)
    assert soak.grows('CPU ms a step', 10, 15) and not soak.grows('CPU ms a step', 10, 14)


def test_a_checkpoint_that_is_not_whole_yet_is_seen(tmp_path):
    assert not soak.is_saving(tmp_path)
    (tmp_path / 'checkpoints' / '4').mkdir(parents=True)
    assert not soak.is_saving(tmp_path)
    (tmp_path / 'checkpoints' / '8.tmp').mkdir()
    assert soak.is_saving(tmp_path)


def test_resources_are_those_of_the_process():
    seconds, mib, threads, descriptors = soak.resources(os.getpid())
    assert seconds == pytest.approx(sum(os.times()[:2]), abs=0.1)
    with open(os.devnull), open(os.devnull):
        assert soak.resources(os.getpid())[3] == descriptors + 2
    assert 50 < mib < 50_000 and threads >= 1


@pytest.mark.slow
def test_runs_with_accidents_end_like_one_without(tmp_path, capsys, monkeypatch):
    assert soak.main(['--minutes=5', f'--output={tmp_path / "soak"}']) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == 'every run ended bit for bit like the one without accidents'
    assert not any(line.endswith(' 0 accidents') for line in printed)
    kills = [int(n) for n in re.findall(r'killed.*: (\d+) times', '\n'.join(printed))]
    assert sum(kills) > 0
    expected = soak.ending(tmp_path / 'soak/reference') | {'metrics': 'others'}
    name, counts = 'given slow reads, then killed', Counter()
    monkeypatch.setattr(soak, 'ACCIDENTS', {name: soak.ACCIDENTS[name]})
    faults = soak.suffer(tmp_path / 'one', random.Random(14), counts, expected)  # one accident
    assert faults == ['other metrics than without accidents'] and counts == {name: 1}
