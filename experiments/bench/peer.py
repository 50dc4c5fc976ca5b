"""The other side of the benchmark as this one sees it: a process of another Python."""

import contextlib
import json
import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from experiments.bench.ours import config_of
from rpn_jax.errors import InputError

WORKER = Path(__file__).with_name('torchvision_worker.py')  # and the orders that it takes


class Refused(Exception):
    """The other side cannot do one case, for a reason of one line; others it may."""


class Peer:
    """Runs torchvision_worker.py by a command; one order at a time, and silence in between.

    command is a Python, or one and a script that runs the script it is given; with compiled the
    backbone is under torch.compile; files is an ExitStack, which ends it. Raises InputError where
    it cannot be started, or dies.
    """

    def __init__(self, command, arguments, compiled, files):
        self._command, self.note = command, ', torch.compile' if compiled else ''
        self._settings = {'channels_last': arguments.channels_last, 'compile': compiled}
        self._folder = files.enter_context(tempfile.TemporaryDirectory())
        self._errors = files.enter_context(open(f'{self._folder}/errors', 'w+'))
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        words = [*shlex.split(command), str(WORKER), arguments.device]
        try:
            self._process = files.enter_context(subprocess.Popen(words, **pipes))
        except OSError as error:
            raise InputError(f'--peer {command}: cannot be started ({error})') from error
        self.ready = self._answer()['ready']

    def takes(self, case):
        """Returns whether it has a case of its own: a compiled backbone needs one."""
        others = () if self._settings['compile'] else ('match', 'nms')
        return case.kind in ('train', 'predict', 'backbone', *others)

    def prepare(self, case, arrays):
        """Sets up a case with these arrays."""
        np.savez(f'{self._folder}/arrays.npz', **arrays)
        limits = config_of(case).proposals
        order = case._asdict() | self._settings | {'arrays': f'{self._folder}/arrays.npz'}
        self._ask('prepare', order | {'proposals': [limits.pre_nms, limits.post_nms]})

    def run(self, calls):
        """Returns the seconds of a call, the mean of so many."""
        return self._ask('run', calls)['seconds']

    def report(self):
        """Returns the most memory of the calls in bytes, None on CPUs, and the answer."""
        return self._ask('report', True)

    def _ask(self, order, value):
        with contextlib.suppress(BrokenPipeError):  # the silence afterwards has its reason
            self._process.stdin.write(json.dumps({order: value}) + '\n')
            self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:
            self._process.kill()
            self._errors.seek(0)
            *_, last = ['no message', *self._errors.read().strip().splitlines()]
            problem = f'answered {line[:80]!r}, which is not JSON' if line else f'ended: {last}'
            raise InputError(f'--peer {self._command}: {problem}') from None
        if 'error' in answer:
            raise Refused(answer['error'])
        return answer
