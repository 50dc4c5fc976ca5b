"""Trains, evaluates and shows region proposal networks: python main.py --help."""

import sys

from rpn_jax.cli import main

if __name__ == '__main__':
    sys.exit(main())
