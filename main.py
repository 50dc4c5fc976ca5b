"""Trains, evaluates and shows region proposal networks: python main.py --help."""

import signal
import sys

from rpn_jax.errors import leave

if __name__ == '__main__':
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)

try:
    from rpn_jax.cli import main
except ModuleNotFoundError as error:
    sys.exit(f'error: {error}; run `make demo` once, then: source .venv/bin/activate')

if __name__ == '__main__':
    sys.exit(main())
