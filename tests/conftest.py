"""Four CPU devices, no silent broadcasting and the same examples each time, for every test."""

import atexit
import functools
import gc
import os
import shutil
import tempfile
import threading

# JAX reads these when it is imported. Of an XLA flag that is given twice the last counts.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'
)

os.environ['RPN_JAX_CACHE'] = tempfile.mkdtemp(prefix='rpn_jax_cache_')
atexit.register(shutil.rmtree, os.environ['RPN_JAX_CACHE'], ignore_errors=True)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Compiling takes most of the tests' time: nothing is optimized, and nothing is compiled twice.
jax.config.update('jax_disable_most_optimizations', True)
jax.config.update('jax_compilation_cache_dir', os.environ['RPN_JAX_CACHE'] + '/compiled')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)

# A first call compiles, which no deadline allows for.
hypothesis.settings.register_profile('rpn_jax', deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile('rpn_jax')

pytest.register_assert_rewrite('data_files', 'helpers', 'report_data')

from data_files import Server  # noqa: E402
from programs import made_once, predict_key, update_key  # noqa: E402

from rpn_jax.cli import main  # noqa: E402
from rpn_jax.data.prepare import official  # noqa: E402
from rpn_jax.evaluation import evaluate  # noqa: E402
from rpn_jax.training import loop, pretrained  # noqa: E402


def pytest_configure(config):
    """Turns off XLA's fusion emitters in quick tests: half the compilation of a small program."""
    if 'not xla' in config.option.markexpr and jax.__version_info__ < (0, 11):
        os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'  # unknown to later ones


def pytest_collection_finish():
    """Keeps what is imported by now out of later garbage collections."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(autouse=True)
def programs_of_slow_tests_are_dropped(request):
    """Frees compiled programs: thousands of them reach Linux's limit of mapped memory."""
    yield
    if request.node.get_closest_marker('slow'):
        jax.clear_caches()


@pytest.fixture(autouse=True)
def optimizations(request):
    """Turns XLA's optimizations on where a test is about what they do."""
    careless = not request.node.get_closest_marker('xla')
    jax.config.update('jax_disable_most_optimizations', careless)


SHARED = {  # functions with a cache: to trace a training step takes a second
    (loop, 'update_of'): made_once(loop.update_of, update_key),
    (evaluate, 'make_predict'): made_once(evaluate.make_predict, predict_key),
    (pretrained, 'variable_shapes'): functools.cache(pretrained.variable_shapes),
}


@pytest.fixture(autouse=True)
def shared_programs(request):
    """Lets the quick tests share what JAX traced."""
    with pytest.MonkeyPatch.context() as patch:
        if not {'slow', 'xla'} & {marker.name for marker in request.node.iter_markers()}:
            for (module, name), shared in SHARED.items():
                patch.setattr(module, name, shared)
        yield


@pytest.fixture
def offline(monkeypatch):
    """Lets every host refuse."""
    monkeypatch.setenv('no_proxy', '*')
    for name, entry in official.ARCHIVES.items():
        entry = entry._replace(url=f'http://127.0.0.1:9/{name}')
        monkeypatch.setitem(official.ARCHIVES, name, entry)


@pytest.fixture
def server(monkeypatch):
    """Runs a server on this machine; its `url` is that of a file."""
    server = Server(('127.0.0.1', 0), Server.RequestHandlerClass)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv('no_proxy', '*')
    server.handle_error = lambda *_: None  # of clients that have heard enough
    server.url = f'http://127.0.0.1:{server.server_port}/x.tar'
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def refuse(capfd):
    """Returns the function that runs main, which must fail by one line, and returns the line."""

    def run(words):
        capfd.readouterr()
        assert main(list(map(str, words))) == 1
        out, error = capfd.readouterr()
        assert error.startswith('error: ') and error.count('\n') == 1, error
        assert 'Traceback' not in out
        return error[len('error: ') : -1]

    return run
