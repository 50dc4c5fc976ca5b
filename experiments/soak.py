"""Trains small networks for a given time, with accidents, and without while it watches resources.

A run that was killed, stopped, or refused a write, again and again, must end bit for bit like one
without accidents. The memory, threads, open files and time of a long run must not grow.

    python -m experiments.soak --minutes=60 --output=runs/soak
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from orbax.checkpoint import v1 as ocp

from experiments.program import Parser, at_least, run
from rpn_jax import files
from rpn_jax.errors import InputError
from rpn_jax.training import checkpoint, workdir

ROOT = Path(__file__).parents[1]
STEPS = 60
FLAGS = [
    *('--config.model.width=4', '--config.data.image_size=64', '--config.data.scenes=(40,8)'),
    *('--config.anchors.sizes=(12,24)', '--config.proposals.pre_nms=200', '--config.seed=3'),
    *('--config.checkpoint.every=4', '--config.evaluation.every=12', '--config.log_every=5'),
    *('--config.proposals.post_nms=50', '--config.optim.warmup_steps=5'),
]
# What happens to a run, how often, and the exit codes that it may end with.
ACCIDENTS = {
    'killed while it saves': (6, {-signal.SIGKILL}),
    'killed': (3, {-signal.SIGKILL}),
    'asked to stop': (2, {128 + signal.SIGTERM, -signal.SIGTERM}),
    'refused a write': (2, {1}),
    'paused, then killed': (1, {-signal.SIGKILL}),
    'given slow reads, then killed': (1, {-signal.SIGKILL}),
}
REFUSED = 30_000  # bytes of the longest file that a run may then write; a checkpoint has more
# Starts the words after it so that a write beyond the limit fails, as on a full disk.
LIMITED = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""
# Starts training where now and then a read takes long.
SLOW = """
import random, sys, time
from rpn_jax import cli, data
open_split = data.open_split
def opened(*words, **keywords):
    source = open_split(*words, **keywords)
    def read(position):
        time.sleep(random.choice((0, 0, 0, 0.5)))
        return source.read(position)
    return source._replace(read=read)
data.open_split = opened
sys.exit(cli.main())
"""
PAUSE = 1.0  # seconds
WATCH = 1.0  # seconds between two looks at a run that goes on and on
GROWTH = {  # factor and sum that may be more later
    'MiB': (1.1, 16),
    'threads': (1.0, 8),  # these two rise and fall: Orbax's event loops wait for garbage collection
    'descriptors': (1.0, 16),
    'CPU ms a step': (1.3, 1),
}


def main(argv):
    """Returns 0 where every run ended as it should, and nothing grew."""
    parser = Parser('experiments.soak', __doc__)
    parser.add_argument('--minutes', type=at_least(1), default=60, help='a quarter is to watch')
    parser.add_argument('--output', type=Path, default='runs/soak', help='folder of the runs')
    parser.add_argument('--seed', type=int, default=0, help='of the accidents')
    arguments = parser.parse_args(argv)
    began, seconds = time.monotonic(), 60 * arguments.minutes
    if arguments.output.exists():
        raise InputError(f'--output={arguments.output}: there is such a folder; name another')
    reference = arguments.output / 'reference'
    if (code := start(reference).wait()) != 0:
        log = reference.with_name(f'{reference.name}.log')
        raise InputError(f'the run without accidents ended with exit code {code}: see {log}')
    expected, chance = ending(reference), random.Random(arguments.seed)
    grown = watch(arguments.output / 'watched', seconds / 4)
    print(*(f'{name}: {before:.1f}, then {after:.1f}' for name, before, after in grown), sep='\n')
    faults = [f'{name} grew' for name, *both in grown if grows(name, *both)]
    counts, runs = Counter(), 0
    while time.monotonic() < began + seconds and not faults:
        folder, runs = arguments.output / f'run {runs}', runs + 1
        faults += [f'{folder}: {fault}' for fault in suffer(folder, chance, counts, expected)]
        if not faults:
            shutil.rmtree(folder)
        print(f'{runs} runs, {sum(counts.values())} accidents', flush=True)
    print(*(f'{name}: {counts[name]} times' for name in ACCIDENTS), sep='\n')
    print(*(faults or ['every run ended bit for bit like the one without accidents']), sep='\n')
    return int(bool(faults))


def start(folder, accident='', steps=STEPS):
    """Starts training in a folder, for an accident; what it prints goes to a file beside it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    limited = [sys.executable, '-c', LIMITED, str(REFUSED)]
    words = limited if accident == 'refused a write' else []
    words += [sys.executable, *(('-c', SLOW) if 'slow reads' in accident else ('main.py',))]
    words += ['--config=quickstart', f'--workdir={folder.absolute()}']
    words += [f'--config.steps={steps}', *FLAGS]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    with open(folder.with_name(f'{folder.name}.log'), 'ab') as log:
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)


def ending(folder):
    """Returns what a run has come to: hashes of its state, metrics, evaluation."""
    step = checkpoint.steps(folder)[-1]
    path = (checkpoint.folder(folder) / str(step)).absolute()
    about = ocp.metadata(path, checkpointable_name='state').custom_metadata
    lines = [{**line, 'images_per_second': 0} for line in workdir.read_history(folder)]
    damaged = [message for _, message in checkpoint.verify(folder) if message]
    return {
        'step': step,
        'hashes': about['sha256'],
        'metrics': json.dumps(lines),
        'evaluation': files.read_json(folder / 'evaluation.json'),
        'damaged': damaged,
    }


def suffer(folder, chance, counts, expected):
    """Starts a run again and again until it ends; returns what is wrong with its end."""
    weights = [weight for weight, _ in ACCIDENTS.values()]
    for name in chance.choices([*ACCIDENTS], weights, k=chance.randrange(1, 8)):
        process = start(folder, name)
        code = strike(process, name, folder, chance)
        if code == 0:
            break
        counts[name] += 1
        if code not in ACCIDENTS[name][1]:
            return [f'{name}, and the exit code was {code}']
    else:
        if (code := start(folder).wait()) != 0:
            return [f'it did not go on: exit code {code}']
    found = ending(folder)
    return [
        f'other {key} than without accidents' for key in expected if found[key] != expected[key]
    ]


def strike(process, name, folder, chance):
    """Does to a process what the accident's name says, at some time; returns its exit code."""
    if name == 'refused a write':
        return process.wait()
    end, saving = time.monotonic() + chance.uniform(2, 14), 'saves' in name
    skipped = chance.randrange(10)  # of the saves
    while process.poll() is None and time.monotonic() < end:
        if saving and is_saving(folder):
            if not skipped:
                time.sleep(chance.uniform(0, 0.03))
                break
            skipped -= 1
            while is_saving(folder) and process.poll() is None:
                time.sleep(0.0005)
        time.sleep(0.0005 if saving else 0.01)
    number = signal.SIGTERM if name == 'asked to stop' else signal.SIGKILL
    if name.startswith('paused'):
        process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE)
    process.send_signal(number)
    return process.wait()


def is_saving(folder):
    """Says whether a checkpoint is being written: there is one whose name is no number yet."""
    try:
        return any(not name.isdecimal() for name in os.listdir(checkpoint.folder(folder)))
    except OSError:
        return False


def watch(folder, seconds):
    """Trains for so long; returns (name, early, late) of each number of GROWTH."""
    process, looks, end = start(folder, steps=10**6), [], time.monotonic() + seconds
    try:
        while process.poll() is None and time.monotonic() < end:
            time.sleep(WATCH)
            with contextlib.suppress(OSError, IndexError):  # it has not begun, or has ended
                steps = workdir.read_history(folder)[-1]['step']
                looks.append((steps, *resources(process.pid)))
    finally:
        process.terminate()
        code = process.wait()
    if code not in ACCIDENTS['asked to stop'][1] or len(looks) < 9:
        raise InputError(f'the run that is watched ended with exit code {code}: see {folder}.log')
    looks = np.float64(looks[len(looks) // 3 :])
    early, late = np.array_split(looks, 2)
    pace = [1e3 * np.ptp(half[:, 1]) / max(np.ptp(half[:, 0]), 1) for half in (early, late)]
    medians = zip(np.median(early, axis=0)[2:], np.median(late, axis=0)[2:], strict=True)
    return [(name, *pair) for name, pair in zip(GROWTH, [*medians, pace], strict=True)]


def resources(pid):
    """Returns the CPU seconds, MiB, threads and descriptors of a process: Linux."""
    user, system = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[11:13]
    seconds = (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')
    status = Path(f'/proc/{pid}/status').read_text()
    lines = dict(line.split(':', 1) for line in status.splitlines())
    descriptors = len(os.listdir(f'/proc/{pid}/fd'))
    return seconds, int(lines['VmRSS'].split()[0]) / 1024, int(lines['Threads']), descriptors


def grows(name, before, after):
    """Says whether a number is more than it may be later."""
    factor, more = GROWTH[name]
    return after > factor * before + more


if __name__ == '__main__':
    sys.exit(run(main, None))
