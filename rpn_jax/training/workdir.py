"""The folder of a run: its config, which must agree to resume, its lock, its metrics."""

import contextlib
import json
from pathlib import Path

import jax

from rpn_jax import files
from rpn_jax.errors import InputError
from rpn_jax.files import cache_folder, make_folder, write_atomically

# What made the weights must agree for a run to go on. Horizons, other paths of the same data, how
# much memory is used, and how often something is written or evaluated may change.
IDENTITY = ('seed', 'model', 'anchors', 'targets', 'loss', 'optim', 'data')
DATA_IDENTITY = (
    *'source name train_split resize image_size max_size canvases'.split(),
    *'batch_size flip pixels mean std orientation'.split(),
)
FREE = 'schedule_steps', 'remat'
# What the network is and how its input is made: no mode may read its weights otherwise.
NETWORK = ('model', 'anchors', 'data.pixels', 'data.mean', 'data.std')


def read_config(workdir):
    """Returns the config of a workdir as nested dicts, lists as tuples.

    Raises InputError where there is none.
    """
    path = Path(workdir) / 'config.json'
    if not path.is_file():
        raise InputError(f'{path}: no such file; name a --config, or the --workdir of a run')
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{path}: not a config ({error})') from error
    if not isinstance(config, dict):
        raise InputError(f'{path}: not a config, which is a JSON object')
    return _plain(config)


def check(workdir, config, sections=IDENTITY):
    """Raises InputError, naming every key that differs, unless a config is that of the workdir.

    config is a resolved config, or nested dicts; only the sections named are compared.
    """
    differences = _differences(read_config(workdir), _plain(config), sections)
    if differences:
        raise InputError(
            f'workdir {workdir} belongs to another config: {"; ".join(differences)}; name another '
            f'--workdir, such as --workdir={_free(Path(workdir))}, or set these keys back'
        )


def begin(workdir, config):
    """Makes the folder and writes its config.json."""
    make_folder(workdir)
    text = json.dumps(_plain(config), indent=2)
    write_atomically(Path(workdir) / 'config.json', f'{text}\n')


@contextlib.contextmanager
def locked(workdir):
    """Keeps other processes from training in a workdir while the context lasts.

    The lock ends with the process that holds it, however that ends. The folder is made, and removed
    again if nothing was written to it.
    """
    folder = Path(workdir)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    make_folder(folder)
    message = f'workdir {workdir}: another process trains in it; wait for it, or name another'
    try:
        with files.locked(folder / '.lock', f'{message} --workdir', wait=False):
            yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # it is not empty
                each.rmdir()


def keep_compilations():
    """Keeps what is compiled in the cache folder for the next start; JAX's own setting wins."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'compiled'))


class History:
    """Appends scalars to metrics.jsonl and to TensorBoard; lines after a restored step are cut."""

    def __init__(self, workdir, start):
        # TensorBoard is imported here: tests and notebooks that never log need not wait for it.
        from tensorboardX import SummaryWriter

        self._path = Path(workdir) / 'metrics.jsonl'
        lines = [line for line in read_history(workdir) if line['step'] <= start]
        write_atomically(self._path, ''.join(json.dumps(line) + '\n' for line in lines))
        self._events = SummaryWriter(str(workdir), purge_step=start + 1 if start else None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._events.close()

    def log(self, step, scalars):
        """Writes the scalars (name -> number) of one step; nested values go to the file only."""
        with self._path.open('a') as file:
            file.write(json.dumps({'step': step, **scalars}) + '\n')
        for name, value in scalars.items():
            if value is not None and not isinstance(value, dict):
                self._events.add_scalar(name, value, step)


def read_history(workdir):
    """Returns the lines of metrics.jsonl as dicts, without a last line that a crash cut off."""
    path = Path(workdir) / 'metrics.jsonl'
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _differences(before, now, sections):
    pairs = []
    for name in sections:
        section, _, key = name.partition('.')
        old, new = before.get(section, {}), now[section]
        if not isinstance(new, dict):
            pairs.append((name, before.get(section), new))
            continue
        old = old if isinstance(old, dict) else {}
        keys = {key} if key else {*new, *old}
        keys = keys & set(DATA_IDENTITY) if name == 'data' else keys - set(FREE)
        # A key may be younger than the workdir.
        pairs += [(f'{section}.{k}', old.get(k, new.get(k)), new.get(k)) for k in sorted(keys)]
    return [f'{key} was {old!r}, is {new!r}' for key, old, new in pairs if old != new]


def _free(folder):
    """Returns the first of NAME-2, NAME-3, .. beside a folder that does not exist."""
    number = 2
    while (free := folder.with_name(f'{folder.name}-{number}')).exists():
        number += 1
    return free


def _plain(value):
    """Returns a config as nested dicts, lists as tuples."""
    if hasattr(value, 'items'):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
