"""The page of training inputs: what the network gets beside the file that it was made from."""

import re

from rpn_jax.diagnosis import checks
from rpn_jax.diagnosis.inspect import failures
from rpn_jax.report import drawings, pages

SHOWN = 16  # most images on a page
LARGEST = 2 * 2**20  # bytes of a picture on the page; a larger one is shrunk
SIDE = 1280  # pixels of its longer side then
BROWSERS = {  # the picture formats that they read, by their first bytes
    rb'\xff\xd8': 'jpeg',
    rb'\x89PNG': 'png',
    rb'GIF8': 'gif',
    rb'RIFF....WEBP': 'webp',
}


def sheet(batch):
    """Returns a picture (uint8 RGB) of a list of Examples, and a caption of each."""
    names = ('object', 'difficult', 'crowd', 'background anchor', 'border')
    legend = {name: drawings.COLOURS[name] for name in names}
    legend |= drawings.anchor_colours(batch[0].levels)
    captions = [
        f'{e.record.image_id}: {counted(e.kind)}, {len(e.positive)} positive, '
        f'{len(e.background)} background'
        for e in batch
    ]
    drawn = [drawings.draw_input(example) for example in batch]
    return drawings.contact_sheet(drawn, captions, legend, columns=4), captions


def counted(kinds):
    """Returns how many boxes there are of each kind, as '1 object, 2 difficult'; kinds is [n]."""
    counts = {name: int((kinds == code).sum()) for code, name in drawings.KINDS.items()}
    objects, *others = counts.items()
    first = f'{objects[1]} {objects[0]}{"" if objects[1] == 1 else "s"}'
    return ', '.join([first, *(f'{count} {name}' for name, count in others if count)])


def chosen(batch, count):
    """Returns at most `count` of a list of Examples, those with failed checks first."""
    return sorted(batch, key=lambda example: not failures(example))[:count]


def write_page(path, *, title, dataset, pixels, checked, verdicts, shown):
    """Writes one self-contained HTML file, complete or not at all.

    pixels are the Pixels that normalise the images of the dataset; verdicts are the Checks over all
    images that were `checked`, a number; shown are Examples, for a short page at most SHOWN.
    """
    colours = drawings.anchor_colours(shown[0].levels)
    pages.write(
        path,
        'inspect.html.j2',
        title=title,
        dataset=dataset,
        pixels=pixels,
        checked=checked,
        claims=checks.CLAIMS,
        verdicts=sorted(verdicts, key=lambda check: (False, None, True).index(check.passed)),
        failed=[check.name for check in verdicts if check.passed is False],
        unsure=[check.name for check in verdicts if check.passed is None],
        anchors={name: f'rgb{colour}' for name, colour in colours.items()},
        shown=[(e, _encoded(e.seen), *_file(e)) for e in shown],
        failures=failures,
        flipped=checks.flipped,
        counted=counted,
    )


def _file(example):
    """Returns ((type, bytes) that show an original, whether these are the file's own)."""
    file = example.file
    kind = next((kind for head, kind in BROWSERS.items() if re.match(head, file, re.DOTALL)), '')
    if kind and len(file) <= LARGEST:
        return (f'image/{kind}', file), True
    return _encoded(example.original), False


def _encoded(image):
    """Returns the type and the bytes of a picture: exact, or where that is too large, smaller."""
    png = drawings.encode_png(image)
    if len(png) <= LARGEST:
        return 'image/png', png
    return 'image/jpeg', drawings.encode_jpeg(image, SIDE, 90)
