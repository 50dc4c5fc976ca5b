"""The doctor's page shows findings and pictures, and escapes what comes from files."""

import numpy as np
import pytest

from rpn_jax.diagnosis import doctor, probe
from rpn_jax.diagnosis.finding import Finding
from rpn_jax.report import doctor_page


def test_the_page_has_the_findings_the_plots_and_the_pictures(tmp_path):
    losses = np.linspace(1, 0.2, 9)
    traces = [probe.Trace(10.0**-n, losses * n, losses, losses) for n in range(1, 10)]
    traces[0] = traces[0]._replace(loss=np.full(9, np.nan))
    image = np.zeros((40, 60, 3), np.uint8)
    study = doctor.Study(
        [Finding('error', 'Wrong <b>.', 'x & y', '1', 'config.a = "b"')],
        [(image, np.float32([[5, 5, 20, 30]]))] * 3,
        {'as they are': (0.31, 0.04, 120)},
        probe.Probe(traces, traces[1], {'head': 0.01, 'stem': 0.0}, 0.5),
        {'input': 0.02, 'step': 0.5},
        {'state': 2**30, 'device': 0},
        'First: the input.',
    )
    doctor_page.write_page(tmp_path / 'doctor.html', title='<run>', study=study)
    page = (tmp_path / 'doctor.html').read_text()
    assert 'Wrong &lt;b&gt;.' in page and 'x &amp; y' in page and '&lt;run&gt;' in page
    assert page.count('data:image/svg+xml') == 2 and page.count('data:image/jpeg') == 3
    assert '0.31 ± 0.04 (120 boxes)' in page and '0.02 s' in page
    assert 'steps at 0.01: learnt' in page and 'Several' not in page
    assert '1 GiB' in page and 'First: the input.' in page
    empty = doctor.unbuildable('no such file')
    doctor_page.write_page(tmp_path / 'doctor.html', title='x', study=empty)
    assert 'no such file' in (tmp_path / 'doctor.html').read_text()


@pytest.mark.parametrize(
    ('end', 'learnt', 'stable'), [(0.2, 'learnt', 'stable'), (2.0, 'not learnt', 'diverges')]
)
def test_the_titles_of_plots_answer_their_question(end, learnt, stable):
    losses = np.linspace(1, end, 9)
    trace, calm = (probe.Trace(0.03, each, each, each) for each in (losses, np.ones(9)))
    probed = probe.Probe([trace], trace, {}, 0.5, lasting=[trace, calm])
    titles = [plot['title'] for plot in doctor_page.figures(probed)]
    assert titles[1] == f'One batch, 8 steps at 0.03: {learnt}'
    assert titles[2].startswith('Several batches at 0.03, ') and titles[2].endswith(stable)
