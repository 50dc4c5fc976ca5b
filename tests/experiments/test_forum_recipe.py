"""The forum's recipe: its changes one by one, the table and the page of their runs."""

import pytest
from flax.traverse_util import flatten_dict

from configs import forum_recipe as published
from configs import voc_c4
from experiments import forum_recipe

WORDS = (
    '--config.data.source=shapes --config.data.scenes=8,4 --config.data.image_size=64 '
    '--config.data.batch_size=4 --config.model.depth=26 --config.model.width=4 '
    '--config.model.pretrained='
).split()


def test_each_run_has_one_more_change_and_all_of_them_make_the_recipe_healthy():
    *full, tenth = forum_recipe.recipes(420)
    assert tenth[1:] == (42, full[-1][2]) and {steps for _, steps, _ in full} == {420}
    for (*_, before), (*_, keys) in zip(full, full[1:], strict=False):
        assert before.items() < keys.items()
    config = flatten_dict(published.get_config().to_dict(), sep='.')
    assert tenth[2].keys() <= config.keys()
    healthy = flatten_dict(voc_c4.get_config().to_dict(), sep='.')
    differ = {key for key, value in (config | tenth[2]).items() if value != healthy[key]}
    assert differ == {'optim.learning_rate', 'optim.schedule', 'optim.warmup_steps'}


@pytest.mark.slow
def test_the_runs_end_in_a_table_and_a_page(tmp_path, monkeypatch, capsys):
    changes = dict(list(forum_recipe.CHANGES.items())[:1])
    monkeypatch.setattr(forum_recipe, 'CHANGES', changes)
    flags = [f'--output={tmp_path}', '--steps=20', '--config.log_every=1']
    assert forum_recipe.main([*flags, *WORDS]) == 0
    rows = capsys.readouterr().out.splitlines()
    names = [row.split()[0] for row in rows if row.startswith(('0_', '1_', 'random_boxes  '))]
    assert {'0_published', '1_tenth_of_the_steps', 'random_boxes'} <= set(names)
    (row,) = (row.split() for row in rows if row.startswith('0_published ') and '->' in row)
    assert 0 < float(row[3]) != float(row[1]) > 0
    assert any(row.startswith('published: Both losses fall') for row in rows)
    assert '0_published' in (tmp_path / 'compare.html').read_text()


def test_a_run_that_fails_ends_all(tmp_path, capsys):
    assert (
        forum_recipe.main(
            [f'--output={tmp_path}', '--config.data.path=/no', '--config.data.source=voc']
        )
        == 1
    )
    assert capsys.readouterr().err.count('\n') == 1
