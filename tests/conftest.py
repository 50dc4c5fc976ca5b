"""Four CPU devices, no silent broadcasting and the same examples each time, for every test."""

import atexit
import os
import shutil
import tempfile

# JAX reads these when it is imported. Of an XLA flag that is given twice the last counts.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'
)

os.environ['RPN_JAX_CACHE'] = tempfile.mkdtemp(prefix='rpn_jax_cache_')
atexit.register(shutil.rmtree, os.environ['RPN_JAX_CACHE'], ignore_errors=True)

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')

# A first call compiles, which no deadline allows for.
hypothesis.settings.register_profile('rpn_jax', deadline=None, derandomize=True)
hypothesis.settings.load_profile('rpn_jax')
