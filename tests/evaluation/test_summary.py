"""The summary of an evaluation in text."""

from helpers import run_evaluation

from rpn_jax.evaluation.summary import table


def test_a_summary_begins_with_its_data_set():
    summary = run_evaluation().summary
    assert table(summary)[0] == f'shapes/val, step 3: 6 images, {summary["objects"]} objects'
