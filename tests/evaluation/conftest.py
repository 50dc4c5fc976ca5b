"""The evaluation that several files look at."""

import pytest
from helpers import run_evaluation


@pytest.fixture(scope='session')
def evaluation():
    """Returns the Evaluation of the tiny config with up to 1000 proposals of a FakePredict."""
    return run_evaluation()
