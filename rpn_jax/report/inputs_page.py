"""The page of training inputs: what the network gets beside the file that it was made from."""

import cv2
import numpy as np

from rpn_jax.diagnosis import checks
from rpn_jax.diagnosis.inspect import failures
from rpn_jax.report import drawings, pages
from rpn_jax.report.pages import corners

SHOWN = 16  # most images on a page
LARGEST = 2 * 2**20  # bytes of a picture on the page; a larger one is shrunk
SIDE = 1280  # pixels of its longer side then
BROWSERS = {  # the picture formats that they read, by their first bytes
    b'\xff\xd8': 'jpeg',
    b'\x89PNG': 'png',
    b'GIF8': 'gif',
    b'RIFF': 'webp',
}


def sheet(batch):
    """Returns a picture (uint8 RGB) of a list of Examples, and a line of text on each."""
    drawn = [
        drawings.draw_input(e.seen, e.size, e.boxes, e.kind, e.positive, e.background)
        for e in batch
    ]
    captions = [
        f'{e.record.image_id}: {len(e.boxes)} objects, {len(e.positive)} positive, '
        f'{len(e.background)} background'
        for e in batch
    ]
    return drawings.contact_sheet(drawn, captions, columns=4), captions


def chosen(batch, count):
    """Returns at most `count` of a list of Examples, those at which a check fails first."""
    return sorted(batch, key=lambda example: not failures(example))[:count]


def write_page(path, *, title, dataset, pixels, looked, verdicts, shown):
    """Writes one self-contained HTML file, complete or not at all.

    Args:
      path: where to; the folder exists.
      title: str.
      dataset: str, name of the source.
      pixels: the Pixels that the images are normalised by.
      looked: how many images the checks looked at.
      verdicts: the Checks over all images that were looked at.
      shown: list of Examples; a page of more than SHOWN gets long.
    """
    pages.write(
        path,
        'inspect.html.j2',
        title=title,
        dataset=dataset,
        pixels=pixels,
        looked=looked,
        verdicts=sorted(verdicts, key=lambda check: (False, None, True).index(check.passed)),
        failed=[check.name for check in verdicts if check.passed is False],
        unsure=[check.name for check in verdicts if check.passed is None],
        cards=[_card(example) for example in shown],
    )


def _card(example):
    """Returns what the template shows of one image."""
    kind, file, as_stored = _file(example)
    seen_kind, seen = _encoded(example.seen)
    record, canvas = example.record, example.seen.shape[:2]
    centres = (example.background[:, :2] + example.background[:, 2:]) / 2
    return {
        'image_id': record.image_id,
        'step': example.step,
        'failures': failures(example),
        'flipped': checks.flipped(example.evidence),
        'counts': [
            (int(np.sum(example.kind == value)), name) for value, name in drawings.KINDS.items()
        ],
        'seen': {
            'type': seen_kind,
            'data': seen,
            'canvas': canvas,
            'size': example.size,
            'outlines': _outlines(example.kind, example.boxes),
            'positive': corners(example.positive),
            'background': centres.round(1).tolist(),
        },
        'file': {
            'type': kind,
            'data': file,
            'as_stored': as_stored,
            'stored': len(example.file),
            'canvas': record.size,
            'outlines': _outlines(record.kind, record.boxes),
        },
    }


def _outlines(kinds, boxes):
    return [(drawings.KINDS[k], b) for k, b in zip(kinds.tolist(), corners(boxes), strict=True)]


def _file(example):
    """Returns the type and the bytes that show an original, and whether they are the file's own."""
    file = example.file
    kind = next((kind for head, kind in BROWSERS.items() if file.startswith(head)), '')
    if kind == 'webp' and file[8:12] != b'WEBP':
        kind = ''
    if kind and len(file) <= LARGEST:
        return f'image/{kind}', file, True
    return *_encoded(example.original), False


def _encoded(image):
    """Returns the type and the bytes of a picture: exact, or where that is too large, smaller."""
    png = drawings.encode_png(image)
    if len(png) <= LARGEST:
        return 'image/png', png
    scale = min(1, SIDE / max(image.shape[:2]))
    shape = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)[..., ::-1]
    return 'image/jpeg', cv2.imencode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
