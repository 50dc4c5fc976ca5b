"""Every deliberate error of an input is named, and nothing that is right is."""

import io

import cv2
import numpy as np
import pytest
from helpers import noise
from PIL import Image

from rpn_jax.data import batches as batching
from rpn_jax.data import canvases
from rpn_jax.data.normalization import denormalise, normalise, pixel_family
from rpn_jax.data.records import Files, Kind, Record, Source, reader
from rpn_jax.diagnosis import checks, evidence

SIZES = (90, 150), (130, 100)  # height, width
PLANS = {
    'square': canvases.square(64, 2),
    'short_side': canvases.short_side(SIZES, image_size=80, max_size=120, limit=1),
}


def files(pictures, mode='RGB'):
    """Returns a source of PNG or, for CMYK, TIFF files of two pictures with a box each."""
    buffers = [io.BytesIO() for _ in pictures]
    for picture, file in zip(pictures, buffers, strict=True):
        Image.fromarray(picture).convert(mode).save(file, 'TIFF' if mode == 'CMYK' else 'PNG')
    box = np.float32([[12, 20, 70, 80]])
    records = [Record(f'{i}.png', p.shape[:2], box, np.int32([1])) for i, p in enumerate(pictures)]
    here = Files([r.image_id for r in records], lambda i: buffers[i].getvalue(), str)
    return Source('files', records, reader(records, here), here)


SOURCE = files([noise(size) for size in SIZES])


def measured(source=SOURCE, plan='square', change=lambda row, record: row, family='caffe'):
    """Returns the Evidence of two images, the second of them flipped; change spoils their rows."""
    pixels, found = pixel_family(family), []
    plan = PLANS[plan] if isinstance(plan, str) else plan
    for position, record in enumerate(source.records):
        batch = batching.collate(source, plan, [position], [position == 1], max_boxes=9)
        row = change({key: value[0] for key, value in batch.items()}, record)
        network = np.asarray(normalise(row['image'][None], row['size'][None], pixels))
        original, seen = evidence.decode(source.files.load(position)), denormalise(network, pixels)
        inputs = original, network[0], seen[0], row, plan.sizes[position], pixels
        found.append(evidence.compare(record, *inputs))
    return found


def look(*arguments, **options):
    """Returns {name: Check} of the images of measured."""
    return {check.name: check for check in checks.verdicts(measured(*arguments, **options))}


def those(found, passed):
    """Returns the names of the checks with this result."""
    return {name for name, check in found.items() if check.passed is passed}


@pytest.mark.parametrize('family', ['torchvision', 'caffe'])
@pytest.mark.parametrize('plan', PLANS)
def test_what_is_right_passes_in_words(plan, family):
    found = look(plan=plan, family=family)
    assert [*found, 'annotations'] == list(checks.CLAIMS)  # there are no annotation files
    assert {check.word for check in found.values()} == {'pass'}
    assert '1 of 2 images are flipped' in found['flips'].text
    assert 'All 2 boxes' in found['boxes'].text
    padded = 2 if plan == 'short_side' else 0
    assert f'{padded} of 2 images are smaller' in found['padding'].text


def test_annotations_are_compared_where_there_are_files():
    (*_, check) = checks.verdicts(measured(), (9, []))
    assert check.name == 'annotations' and check.passed and 'all 9 images' in check.text
    (*_, check) = checks.verdicts(measured(), (9, ['x: has 2 boxes', 'y: has 1 boxes']))
    assert check.passed is False and check.text == 'x: has 2 boxes (2 of 9 images differ).'


def boxes_of(change):
    """Returns a change of the boxes alone; rows of padding stay zero."""

    def spoil(row, record):
        height, width = row['size']
        boxes = change(row['boxes'], record, width, height)
        row['boxes'] = np.where(row['kind'][:, None] > 0, boxes, 0).astype(np.float32)
        return row

    return spoil


def pixels_of(change):
    """Returns a change of the pixels of the real image; it is resized back to its place."""

    def spoil(row, record):
        height, width = row['size'].astype(int)
        changed = np.ascontiguousarray(change(row['image'][:height, :width]))
        row['image'][:height, :width] = cv2.resize(changed, (width, height))
        return row

    return spoil


def kind_of(value):
    """Returns a change of the kind of the first object."""
    return lambda row, record: row | {'kind': np.append(value, row['kind'][1:])}


def mirrored(boxes, record, width, height):
    x0, y0, x1, y1 = boxes.T
    return np.stack([width - x1, y0, width - x0, y1], 1)


UNSCALED = boxes_of(lambda b, r, *_: np.append(r.boxes, b[1:], 0))
SPOILT = {  # what is wrong: how, the check that fails, words of its text, others that may fail
    'channels': (pixels_of(lambda i: i[..., ::-1]), 'colour order', 'red and blue'),
    'rolled': (pixels_of(lambda i: i[..., [1, 2, 0]]), 'colour order', 'read as GBR'),
    'transposed': (pixels_of(lambda i: i.swapaxes(0, 1)), 'height and width', 'width swapped'),
    'upside down': (pixels_of(lambda i: i[::-1]), 'height and width', 'upside down'),
    'another': (pixels_of(lambda i: np.roll(i, i.shape[1] // 2, 1)), 'height and width', 'differs'),
    'not flipped': (boxes_of(mirrored), 'flips', 'not flipped, its boxes are', 'boxes'),
    'not resized': (UNSCALED, 'boxes', 'box 1 is', 'objects'),
    'x and y': (boxes_of(lambda b, *_: b[:, [1, 0, 3, 2]]), 'boxes', 'box 1 is', 'objects'),
    'off': (boxes_of(lambda b, r, w, h: b + np.float32([w, h, w, h]) / 10), 'boxes', 'pixels'),
    'outside': (boxes_of(lambda b, r, w, h: b + [0, 0, w, 0]), 'objects', 'out', 'boxes'),
    'lost': (kind_of(Kind.PADDING), 'objects', 'other objects than its annotation'),
    'of another kind': (kind_of(Kind.DIFFICULT), 'objects', 'other objects than its annotation'),
}


@pytest.mark.parametrize('plan', PLANS)
@pytest.mark.parametrize('error', SPOILT)
def test_an_error_is_named_with_its_image(error, plan):
    change, name, words, *others = SPOILT[error]
    found = look(plan=plan, change=change)
    assert {name} <= those(found, False) <= {name, *others}, found
    assert found[name].word == 'FAIL' and found[name].text.startswith('0.png: ')
    assert words in found[name].text


def test_a_swapped_size_and_channels_swapped_when_read_are_named():
    found = look(plan='short_side', change=lambda row, _: row | {'size': row['size'][::-1]})
    assert 'is 72 x 120 pixels' in found['height and width'].text
    assert '120 x 72 are planned' in found['height and width'].text
    assert 'height and width' in those(found, False)
    swapped = SOURCE._replace(read=lambda position: SOURCE.read(position)[..., ::-1])
    assert those(look(swapped), False) == {'colour order'}


@pytest.mark.parametrize(
    ('changes', 'name', 'words'),
    [
        ({'round_trip': 1.0}, None, ''),  # one level is allowed
        ({'round_trip': 2.0}, 'normalisation', 'a pixel comes back 2/255 off'),
        ({'formula': 0.5}, 'normalisation', r'differs from (pixel - mean) / deviation by 0.50/255'),
        ({'outside': 0.25}, 'padding', 'outside the image the input is 0.25, not 0'),
        (
            {'patches': {False: np.array([30.0]), True: np.array([40.0])}, 'moved': np.array([25])},
            'boxes',
            'the pixels in its boxes differ by 30.0 levels',
        ),
    ],
)
def test_other_figures_are_named_too(changes, name, words):
    found = {c.name: c for c in checks.verdicts([measured()[0]._replace(**changes)])}
    assert those(found, False) == ({name} if name else set())
    assert not name or words in found[name].text


FLAT = [np.full((*size, 3), (90, 120, 200), np.uint8) for size in SIZES]
HALVES = [noise(size)[:, : size[1] // 2] for size in SIZES]


@pytest.mark.parametrize(
    ('source', 'names'),
    [
        (files([noise(size)[..., :1].repeat(3, 2) for size in SIZES]), {'colour order'}),
        (files(FLAT), {'height and width', 'flips'}),
        (files([noise(s) for s in SIZES], 'CMYK'), {'colour order', 'height and width', 'flips'}),
        (files([np.concatenate([h, h[:, ::-1]], 1) for h in HALVES]), {'flips'}),
    ],
    ids=['grey', 'flat', 'decoders disagree', 'its own mirror image'],
)
def test_what_the_pixels_cannot_tell_is_not_judged(source, names):
    found = look(source)
    assert those(found, False) == set() and found['boxes'].passed
    assert those(found, None) >= names and found[min(names)].word == 'cannot tell'
    assert those(found, None) <= names | {'colour order'}


def without_boxes(source):
    records = [r._replace(boxes=r.boxes[:0], kind=r.kind[:0]) for r in source.records]
    return source._replace(records=records)


def test_nothing_is_judged_without_boxes_or_of_a_sliver():
    found = look(without_boxes(SOURCE))
    assert those(found, None) == {'boxes', 'objects'} and those(found, False) == set()
    thin = files([noise((2000, 10)), noise((10, 2000))])
    plan = canvases.short_side([r.size for r in thin.records], image_size=60, max_size=100, limit=2)
    found = look(without_boxes(thin), plan)
    assert those(found, False) == set() and found['height and width'].passed is None
