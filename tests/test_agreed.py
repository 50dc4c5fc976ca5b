"""Several processes read a workdir as one: process 0 alone, and the others get what it has."""

import jax
import numpy as np
import pytest
from helpers import assert_same, finished_run, tiny_config

from rpn_jax import agreed
from rpn_jax import config as configs
from rpn_jax.errors import InputError
from rpn_jax.training import checkpoint, hosts


@pytest.fixture
def other(monkeypatch):
    """Stands for process 0 of two, and for process 1 once it is called; returns what they check."""
    finished_run()  # as one process
    first, told, seen = [True], [], []

    def tell(value):
        if first[0]:
            told.append(value)
            return value
        return told.pop(0)

    def broadcast(tree):
        like = jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        assert tell(like) == like
        return tell(tree)

    monkeypatch.setattr(hosts, '_names', ['a', 'b'])
    monkeypatch.setattr(hosts, 'is_first', lambda: first[0])
    monkeypatch.setattr(hosts, 'agree', seen.append)
    monkeypatch.setattr(hosts, 'from_first', lambda f: tell(f() if first[0] else None))
    monkeypatch.setattr(hosts, 'broadcast', broadcast)

    def become():
        first[0] = False
        return seen

    return become


def test_the_others_get_the_network_of_process_0_without_its_workdir(other, tmp_path):
    folder = finished_run().folder
    first = agreed.trained(configs.read_run(folder), folder, step=4)
    seen, config = other(), tiny_config(data__pixels='auto')
    second = agreed.trained(config, tmp_path / 'elsewhere', step=4)
    assert first[0].data.pixels == second[0].data.pixels == 'torchvision' != config.data.pixels
    assert {**first[0].data} == {**second[0].data}
    assert first[2] == second[2] == 4
    assert_same(second[1], checkpoint.variables(folder, 4)[0])
    assert seen[0] == seen[1] and seen[0]['--step'] == 4


def test_one_process_reads_the_workdir_itself():
    folder = finished_run().folder
    config, variables, step = agreed.trained(tiny_config(), folder, step=None)
    assert step == 8 and config == agreed.resolved(tiny_config(), folder)
    assert_same(variables, checkpoint.variables(folder)[0])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(variables))


def test_paths_of_the_data_may_differ_among_processes_and_nothing_else(monkeypatch):
    seen = []
    monkeypatch.setattr(hosts, '_names', ['a', 'b'])
    monkeypatch.setattr(hosts, 'agree', lambda about: seen.append(about) or 1 / 0)
    for changes in ({}, {'data__path': '/other'}, {'seed': 3}):
        with pytest.raises(ZeroDivisionError):
            agreed.resolved(tiny_config(**changes), 'workdir')
    assert seen[0] == seen[1] != seen[2] and seen[2]['seed'] == 3
    assert {'jax', 'code of rpn_jax', 'devices'} < seen[0].keys()


def test_a_workdir_without_a_network_is_refused(tmp_path):
    with pytest.raises(InputError, match='no checkpoint'):
        agreed.trained(tiny_config(), tmp_path, step=None)
