"""What the programs of this folder share: their arguments, and errors of one line."""

import argparse
import sys

from rpn_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser of `python -m NAME`, described by the first line of its module."""

    def __init__(self, name, text):
        super().__init__(prog=f'python -m {name}', description=text.splitlines()[0])

    def error(self, message):
        """Raises InputError."""
        raise InputError(f'{message}; see {self.prog} --help')


def at_least(least):
    """Returns the type of an argument that is a whole number of at least so much."""

    def number(word):
        if int(word) < least:
            raise argparse.ArgumentTypeError(f'{word} is not at least {least}')
        return int(word)

    return number


def some_of(known):
    """Returns the type of an argument that is known names with commas between them."""

    def names(words):
        if unknown := [word for word in words.split(',') if word not in known]:
            raise argparse.ArgumentTypeError(f'no {unknown[0]!r}; there are {", ".join(known)}')
        return words.split(',')

    return names


def run(main, argv):
    """Returns the exit code of main(argv); what a user can mend is one line, and 1."""
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
