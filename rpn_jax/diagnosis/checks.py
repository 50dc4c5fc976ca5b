"""Judges whether training inputs agree with their originals, and names the images that do not."""

from typing import NamedTuple

import numpy as np

# Measured on photographs: correct pictures differ from their originals by up to 5 levels, and the
# contents of small boxes by up to 14; where something is wrong, 20 and more are usual.
ALIKE = 8.0  # levels up to which two pictures may always differ
CLEARLY = 0.5  # an alternative is believed where its distance is so much smaller
OFF = 1.0  # pixels up to which a box may be off: a resize may round

CLAIMS = {  # what each check is about, when all is well
    'normalisation': 'Normalised and back, a pixel differs by at most 1/255',
    'colour order': 'Red, green and blue are those of the original',
    'height and width': 'The picture is oriented as its original, and as large as planned',
    'flips': 'Flipped images have flipped boxes, others have not',
    'boxes': 'Boxes after the resize cover the same pixels as before',
    'objects': 'Every annotated object is there, inside its image',
    'padding': 'Outside the real image the input is zero',
}


class Check(NamedTuple):
    """The result of one check."""

    name: str
    passed: bool | None  # None: cannot tell
    text: str  # a sentence with the figures, and the image where it fails

    @property
    def word(self):
        """The verdict: pass, FAIL or cannot tell."""
        return {True: 'pass', False: 'FAIL', None: 'cannot tell'}[self.passed]


def verdicts(evidence):
    """Returns the Checks, one for each of CLAIMS, over the Evidence of one image or more."""
    oriented = [item for item in evidence if _oriented(item) is not False]
    results = [_normalisation(evidence), _colour_order(evidence), _axes(evidence)]
    results += [_flips(oriented), _boxes(oriented), _objects(evidence), _padding(evidence)]
    return [Check(name, *result) for name, result in zip(CLAIMS, results, strict=True)]


def flipped(item):
    """Returns whether an image is flipped, by its pixels; None where they cannot tell."""
    if not _oriented(item):
        return None
    near, far = sorted((item.turns['upright'], item.turns['mirrored']))
    return None if near > CLEARLY * far else item.turns['mirrored'] < item.turns['upright']


def _oriented(item):
    """Returns whether a picture is oriented as its file, flipped or not; None: cannot tell."""
    if not item.turns:
        return None
    right = _distance(item)
    wrong = min(v for k, v in item.turns.items() if k not in ('upright', 'mirrored'))
    if right < CLEARLY * wrong:
        return True
    is_wrong = right > ALIKE or (right > ALIKE / 4 and wrong < CLEARLY * right)
    return False if is_wrong else None


def _distance(item):
    """Returns the distance of a picture to its original, flipped or not."""
    return min(item.turns['upright'], item.turns['mirrored'])


def _off(item, way):
    """Returns how far the worst box is from where it belongs, in pixels, flipped or not."""
    return item.corners[way].max(initial=0)


# Each check returns (passed, text).


def _normalisation(evidence):
    worst = max(evidence, key=lambda item: item.round_trip)
    if worst.round_trip > 1:
        return False, f'{worst.image_id}: a pixel comes back {worst.round_trip:.0f}/255 off.'
    formula = max(evidence, key=lambda item: item.formula)
    if formula.formula > 0.01:
        text = f'{formula.image_id}: the input differs from (pixel - mean) / deviation'
        return False, f'{text} by {formula.formula:.2f}/255.'
    return True, f'Pixels come back at most {worst.round_trip:.0f}/255 off.'


def _colour_order(evidence):
    compared = [item for item in evidence if item.colours]
    for item in compared:
        best = min(item.colours, key=item.colours.get)
        distance = item.colours['RGB']
        if item.colours[best] < CLEARLY * distance and distance > ALIKE / 4:
            swapped = 'with red and blue swapped' if best == 'BGR' else f'read as {best}'
            text = f'{item.image_id}: differs from its original by {distance:.1f} levels, but by'
            return False, f'{text} {item.colours[best]:.1f} {swapped}.'
    right = [item for item in compared if item.colours['RGB'] < CLEARLY * item.colours['BGR']]
    if not right:
        return None, 'The images are too grey to tell, or do not show their originals.'
    here, there = (np.mean([item.colours[order] for item in right]) for order in ('RGB', 'BGR'))
    text = f'{_of(right, evidence)} have the colours of their originals: they differ by {here:.1f}'
    return True, f'{text} levels, with red and blue swapped it would be {there:.1f}.'


def _axes(evidence):
    for item in evidence:
        if item.size != item.planned:
            (height, width), (h, w) = item.size, item.planned
            text = f'{item.image_id}: is {width} x {height} pixels on its canvas, but'
            return False, f'{text} {w} x {h} are planned.'
        if _oriented(item) is False:
            text = f'{item.image_id}: differs from its original by {_distance(item):.1f} levels'
            way, distance = min(item.turns.items(), key=lambda turn: turn[1])
            if distance < CLEARLY * _distance(item):
                text += f', but by {distance:.1f} {way}'
            return False, f'{text}.'
    right = [item for item in evidence if _oriented(item)]
    if not right:
        return None, 'No image can be compared with its original.'
    here = np.mean(list(map(_distance, right)))
    there = np.mean([item.turns['with height and width swapped'] for item in right])
    text = f'{_of(right, evidence)} show their originals: they differ by {here:.1f} levels,'
    return True, f'{text} with height and width swapped it would be {there:.1f}.'


def _flips(evidence):
    ways = [(item, flipped(item)) for item in evidence if flipped(item) is not None]
    for item, way in ways:
        if _off(item, way) > OFF >= _off(item, not way):
            image, boxes = ('is', 'are not') if way else ('is not', 'are')
            return False, f'{item.image_id}: the image {image} flipped, its boxes {boxes}.'
    if not ways:
        return None, 'No image can be compared with its original and its mirror image.'
    count = sum(way for _, way in ways)
    return True, f'{count} of {len(ways)} images are flipped, and so are their boxes.'


def _boxes(evidence):
    off, contents, moved = [], [], []
    for item in evidence:
        way = flipped(item)
        if way is None:  # the pixels are the same either way, or cannot be compared
            way = _off(item, True) < _off(item, False)
        distances, content = item.corners[way], item.patches[way]
        if _off(item, way) > OFF:
            text = f'{item.image_id}: box {distances.argmax() + 1} is {distances.max():.0f} pixels'
            return False, f'{text} off its position in the original.'
        if len(content) and content.mean() > max(ALIKE, CLEARLY * item.moved.mean()):
            text = f'{item.image_id}: the pixels in its boxes differ by {content.mean():.1f} levels'
            return False, f'{text} from those in the original.'
        off += distances.tolist()
        contents += content.tolist()
        moved += item.moved.tolist()
    if not off:
        return None, 'There is no box to compare in an image that shows its original.'
    text = f'All {len(off)} boxes are where the resize moves them, to {max(off):.1f} pixels'
    if contents:
        text += f'; the pixels in them differ by {np.mean(contents):.1f} levels, and moved by a'
        text += f' tenth of the image it would be {np.mean(moved):.1f}'
    return True, f'{text}.'


def _objects(evidence):
    for item in evidence:
        if not item.same_objects:
            return False, f'{item.image_id}: has other objects than its annotation.'
        if item.beyond > OFF / 100:
            text = f'{item.image_id}: a box extends {item.beyond:.1f} pixels out of the image.'
            return False, text
    count = sum(len(item.corners[False]) for item in evidence)
    if not count:
        return None, 'There is no object in these images.'
    return True, f'All {count} annotated objects are there, and inside their images.'


def _padding(evidence):
    worst = max(evidence, key=lambda item: item.outside)
    if worst.outside > 0:
        text = f'{worst.image_id}: outside the image the input is {worst.outside:.2g}, not 0.'
        return False, text
    padded = _of([item for item in evidence if item.padded], evidence)
    return True, f'{padded} are smaller than their canvas; outside them the input is 0.'


def _of(some, evidence):
    return f'{len(some)} of {len(evidence)} images'
