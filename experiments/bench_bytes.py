"""What a compiled program reads and writes, operation by operation.

XLA's own count leaves out what libraries do, which on GPUs is most of a network.
"""

import math
import re

SIZES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4}
SIZES |= {'s64': 8, 'u64': 8, 'f64': 8}
FREE = 'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'  # nothing moves
LINE = re.compile(r'\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:,|$)')
SCRATCH = re.compile(r', [us]8\[\d+\](?:\{[\d,]*\})?\)$')  # a library's, after its result


def moved(text):
    """Returns the bytes that the operations of a program, HLO as text, take and give.

    A loop counts once, with what it is given.
    """
    shapes, total = {}, 0
    for line in text[text.index('\nENTRY') :].splitlines():
        if not (found := LINE.match(line)):
            continue
        name, shape, operation, operands = found.groups()
        shapes[name] = SCRATCH.sub(')', shape) if operation == 'custom-call' else shape
        if operation not in FREE:
            taken = (shapes.get(one, '') for one in re.findall(r'%([\w.-]+)', operands))
            total += size(shapes[name]) + sum(map(size, taken))
    return total


def size(shape):
    """Returns the bytes of a shape as HLO writes it, or of a tuple of them."""
    return sum(
        SIZES.get(kind, 0) * math.prod(int(n) for n in numbers.split(',') if n)
        for kind, numbers in re.findall(r'(\w+)\[([\d,]*)\]', shape)
    )
