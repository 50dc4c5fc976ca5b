"""Training inputs for the eye: what the network gets beside the file that it was made from."""

from typing import NamedTuple

import cv2
import jax
import numpy as np

from rpn_jax import data
from rpn_jax.data.normalization import denormalise, normalise, pixel_family
from rpn_jax.data.records import Record
from rpn_jax.diagnosis import checks, evidence
from rpn_jax.models import rpn
from rpn_jax.report import drawings, pages
from rpn_jax.report.pages import corners
from rpn_jax.training.loop import assign_images, step_key

SHOWN = 16  # most images on a page
LARGEST = 2 * 2**20  # bytes of a picture on the page; a larger one is shrunk
SIDE = 1280  # pixels of its longer side then
BROWSERS = {
    b'\xff\xd8': 'jpeg',
    b'\x89PNG': 'png',
    b'GIF8': 'gif',
    b'RIFF': 'webp',
}  # what they read


class Example(NamedTuple):
    """One training image of a step, with all that is drawn of it."""

    step: int
    record: Record
    file: bytes  # the original as it is stored; b'' where it is drawn
    original: np.ndarray  # uint8 [h, w, 3] RGB
    seen: np.ndarray  # uint8 [H, W, 3] RGB, the network's input carried back
    size: tuple[int, int]  # (height, width) of the real image in the canvas
    boxes: np.ndarray  # [n, 4] in pixels of the canvas
    kind: np.ndarray  # [n]
    positive: np.ndarray  # [p, 4] sampled anchors
    background: np.ndarray  # [q, 4]
    evidence: evidence.Evidence


def examples(config, source, steps):
    """Yields the Examples of each training batch in the range `steps`, as a list.

    The images went through the very functions of the update, normalisation included, and back: what
    is seen is what is learnt from.
    """
    options = data.Options(**config.data)
    model = rpn.build(config)
    pixels = pixel_family(options.pixels, options.mean, options.std)
    planned = data.train_plan(source, options).sizes

    @jax.jit
    def assign(key, batch):
        anchors = rpn.anchors(model, batch['image'].shape[1:3])
        return anchors, assign_images(key, anchors, batch, config.targets)

    for step, batch in zip(
        steps, data.train_batches(source, options, seed=config.seed, steps=steps), strict=True
    ):
        network = np.asarray(normalise(batch['image'], batch['size'], pixels))
        seen = denormalise(network, pixels)
        anchors, targets = assign(step_key(config.seed, step), batch)
        index, labels, _ = map(np.asarray, targets)
        found = []
        for i, position in enumerate(batch['index'].tolist()):
            row = {key: value[i] for key, value in batch.items()}
            record = source.records[position]
            file = source.files.load(position) if source.files else b''
            original = evidence.decode(file) if file else source.read(position)
            measured = evidence.compare(
                record, original, network[i], seen[i], row, planned[position], pixels
            )
            sampled, real = np.asarray(anchors)[index[i]], row['kind'] > 0
            found.append(
                Example(
                    step=step,
                    record=record,
                    file=file,
                    original=source.read(position) if original is None else original,
                    seen=seen[i],
                    size=measured.size,
                    boxes=row['boxes'][real],
                    kind=row['kind'][real],
                    positive=sampled[labels[i] == 1],
                    background=sampled[labels[i] == 0],
                    evidence=measured,
                )
            )
        yield found


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
    return sorted(batch, key=lambda example: not _failures(example))[:count]


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
        'failures': _failures(example),
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


def _failures(example):
    """Returns (name, text) of the checks that fail at one image."""
    start = f'{example.record.image_id}: '
    found = checks.verdicts([example.evidence])
    return [(c.name, c.text.removeprefix(start)) for c in found if c.passed is False]


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
