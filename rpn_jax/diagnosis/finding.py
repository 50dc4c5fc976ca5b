"""Findings of the doctor, and their order."""

from typing import NamedTuple

LABELS = {'error': 'error', 'warning': 'warning', 'info': 'note'}  # of levels, for readers
LEVELS = tuple(LABELS)


class Finding(NamedTuple):
    """Something that is wrong, with its evidence; `cause` orders findings of one level."""

    level: str  # 'error': it will not learn, or learns something wrong; 'warning'; 'info'
    finding: str  # what is wrong
    evidence: str  # the figure that shows it
    expected: str  # what is usual
    remedy: str  # the config line that mends it, or what to do
    cause: int = 0  # the greater, the nearer to the root

    def entry(self):
        """Returns it as doctor.json has it."""
        return {name: getattr(self, name) for name in self._fields if name != 'cause'}

    def line(self):
        """Returns it as one line."""
        return f'{self.finding} Found: {self.evidence}; usual: {self.expected}. {self.remedy}'


# Ranks of causes: what is wrong with the data makes all that follows look wrong as well.
BUILD, TRUTH, INPUT, WEIGHTS, ANCHORS, TARGETS, LOSS, RATE, SCHEDULE, PROBE, MEASURE, TIME = range(
    120, 0, -10
)


def ranked(findings):
    """Returns findings, worst first: by level, then by how near they are to the root."""
    return sorted(findings, key=lambda each: (LEVELS.index(each.level), -each.cause))
