"""The other side of bench.py as it sees it: a process of another Python, and the talk with it."""

import contextlib
import json
import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from experiments.bench_ours import config_of
from rpn_jax.errors import InputError

WORKER = Path(__file__).with_name('bench_torchvision.py')  # and what is said


class Refused(Exception):
    """Says in a line why the other side cannot do one case; others it may."""


class Peer:
    """Runs bench_torchvision.py by a command; one order at a time, and silence in between.

    command: a Python, or one and a script that runs the script it is given; compiled says that the
    backbone is under torch.compile. Raises InputError where it cannot be started, or dies.
    """

    def __init__(self, command, arguments, compiled=False):
        self._command, self._compiled = command, compiled
        self._channels_last = arguments.channels_last
        self.note = ', torch.compile' if compiled else ''
        self._folder = tempfile.TemporaryDirectory()
        self._errors = open(Path(self._folder.name, 'errors'), 'w+')
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        self._process = None
        try:
            words = [*shlex.split(command), str(WORKER), arguments.device]
            self._process = subprocess.Popen(words, **pipes)
            self.ready = self._answer()['ready']
        except (OSError, ValueError) as error:
            self.close()
            if isinstance(error, InputError):
                raise
            raise InputError(f'--peer {command}: cannot be started ({error})') from error

    def takes(self, case):
        """Says whether it does anything of its own for a case: a compiled backbone needs one."""
        return not self._compiled or case.kind in ('train', 'predict', 'backbone')

    def prepare(self, case, arrays):
        """Sets up a case with these arrays; returns the seconds of a call when warm."""
        path = Path(self._folder.name, 'arrays.npz')
        np.savez(path, **arrays)
        settings = config_of(case).proposals
        order = case._asdict() | {'arrays': str(path)}
        order |= {'proposals': [settings.pre_nms, settings.post_nms]}
        order |= {'channels_last': self._channels_last, 'compile': self._compiled}
        return self._ask('prepare', order)['seconds']

    def run(self, calls):
        """Returns the seconds of a call, the mean of so many."""
        return self._ask('run', calls)['seconds']

    def report(self):
        """Returns the most memory of the calls in bytes, and the answer."""
        return self._ask('report', True)

    def close(self):
        """Ends the process and forgets its files."""
        if self._process:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # it then ends by itself
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
        self._errors.close()
        self._folder.cleanup()

    def _ask(self, order, value):
        with contextlib.suppress(BrokenPipeError):  # the silence afterwards says why
            self._process.stdin.write(json.dumps({order: value}) + '\n')
            self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or ['it said nothing']
            raise InputError(f'--peer {self._command}: ended with code {code}: {said[-1].strip()}')
        try:
            answer = json.loads(line)
        except ValueError as error:
            message = f'--peer {self._command}: said {line.strip()[:80]!r}, which is not JSON'
            raise InputError(message) from error
        if 'error' in answer:
            raise Refused(answer['error'])
        return answer
