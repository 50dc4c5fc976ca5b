"""Looks for files that crash a parser, guided by which code they reach: needs atheris.

    python tests/fuzz/run.py TARGET [FOLDER] [-max_total_time=600]

TARGET is a name of targets.TARGETS, FOLDER keeps the files that reach new code; what else libFuzzer
takes may follow. A file that crashes a parser is written into the current folder.
"""

import logging
import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
with atheris.instrument_imports(include=['rpn_jax']):
    from fuzz import targets


def main(words):
    """Fuzzes one target until libFuzzer ends."""
    if not words or words[0] not in targets.TARGETS:
        print(f'name one of: {", ".join(targets.TARGETS)}', file=sys.stderr)
        return 1
    logging.getLogger('rpn_jax').setLevel(logging.ERROR)
    target, (name, *rest) = targets.TARGETS[words[0]], words
    begin, here = Path(tempfile.mkdtemp()), Path.cwd()
    for i, content in enumerate(target.begin()):
        (begin / str(i)).write_bytes(content)
    folders = [str(here / word) for word in rest if not word.startswith('-')]
    folders += [str(each) for each in (begin, targets.CORPUS / name) if each.exists()]
    flags = [word for word in rest if word.startswith('-')]
    flags += [f'-timeout={targets.SECONDS}', f'-artifact_prefix={here}/{name}-']
    atheris.Setup(
        [sys.argv[0], *flags, *folders],
        lambda content: targets.check(target, content),
    )
    atheris.Fuzz()
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
