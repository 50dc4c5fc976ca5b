"""Trains, evaluates and shows region proposal networks: python main.py --help."""

import signal
import sys

from rpn_jax.errors import leave

if __name__ == '__main__':
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)

from rpn_jax.cli import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
