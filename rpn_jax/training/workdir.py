"""A run's folder: its config, which must agree to resume, metrics.jsonl, TensorBoard events."""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rpn_jax.errors import InputError
from rpn_jax.files import cache_folder, make_folder, write_atomically

# What made the weights must agree for a run to go on. Horizons, other paths of the same data, how
# much memory is used, and how often something is written or evaluated may change.
IDENTITY = ('seed', 'model', 'anchors', 'targets', 'loss', 'optim', 'data')
DATA_IDENTITY = (
    *'source name train_split resize image_size max_size canvases'.split(),
    *'batch_size flip pixels mean std'.split(),
)
FREE = 'schedule_steps', 'remat'
# What the network is and how its input is made: no mode may read its weights otherwise.
NETWORK = ('model', 'anchors', 'data.pixels', 'data.mean', 'data.std')


def read_config(workdir):
    """Returns the config of a workdir, lists as tuples; raises InputError where there is none."""
    path = Path(workdir) / 'config.json'
    if not path.is_file():
        raise InputError(f'{path}: no such file; name a --config, or the --workdir of a run')
    try:
        return ConfigDict(_tuples(json.loads(path.read_text())))
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(f'{path}: not a config ({error})') from error


def check(workdir, config, sections=IDENTITY):
    """Checks that config agrees with the one that workdir's checkpoints were made with.

    pixels = 'auto' becomes what the run settled on when it began, mean and std with it. Raises
    InputError naming every key that differs.
    """
    before = read_config(workdir)
    if config.data.pixels == 'auto':
        config.data.pixels = before.data.pixels
        for key in ('mean', 'std'):  # weights of ours bring theirs
            config.data[key] = config.data[key] or before.data[key]
    differences = _differences(before.to_dict(), config.to_dict(), sections)
    if differences:
        raise InputError(
            f'workdir {workdir} belongs to another config: {"; ".join(differences)}; '
            'name another --workdir, or set these keys back'
        )


def begin(workdir, config):
    """Makes the folder and writes its config.json."""
    make_folder(workdir)
    write_atomically(Path(workdir) / 'config.json', json.dumps(config.to_dict(), indent=2) + '\n')


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
        """Writes the scalars (name -> number) of one step; what is nested is for the file alone."""
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
    for section in sections:
        if '.' in section:
            part, key = section.split('.')
            pairs.append((section, before.get(part, {}).get(key), now[part][key]))
            continue
        if not isinstance(now[section], dict):
            pairs.append((section, before.get(section), now[section]))
            continue
        keys = set(now[section]) | set(before.get(section, {}))
        for key in sorted(keys & set(DATA_IDENTITY) if section == 'data' else keys - set(FREE)):
            old = before.get(section, {}).get(key, now[section].get(key))  # a key may be younger
            pairs.append((f'{section}.{key}', old, now[section].get(key)))
    return [
        f'{key} was {old!r}, is {new!r}' for key, old, new in pairs if _tuples(old) != _tuples(new)
    ]


def _tuples(value):
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
