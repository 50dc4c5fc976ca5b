"""Results, workdirs and pages that tests look at."""

import base64
import functools
import html.parser
import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from helpers import noise, scratch
from hypothesis import strategies as st
from PIL import Image

import main
from configs import default
from rpn_jax.data.normalization import denormalise, normalise, pixel_family
from rpn_jax.data.records import Record
from rpn_jax.diagnosis import evidence
from rpn_jax.diagnosis.inspect import Example
from rpn_jax.evaluation import metrics, results
from rpn_jax.evaluation.anchor_coverage import BINS, EDGES
from rpn_jax.evaluation.results import Results
from rpn_jax.report import inputs_page, report

EVIL = '<script>alert(1)</script>"\'><img src=http://x>'
LIMITS = (1, 3, 10, 100, 1000)
PEERS = ('coco', 'detectron2', 'detectron', 'mmdetection')


def boxes_on(coordinate):
    """Draws boxes whose corners have such coordinates."""
    corners = st.tuples(coordinate, coordinate, coordinate, coordinate)
    return corners.map(lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[::2]), max(c[1::2])))


# Few coordinates, so that equal IoUs, equal boxes, objects that share a box, IoUs of just a
# threshold and areas of just a bound, 32^2 and 96^2, are common.
coarse_box = boxes_on(st.integers(0, 4).map(lambda value: 32 * value))
small_box = boxes_on(st.integers(0, 12))
scored_box = st.tuples(coarse_box, st.sampled_from([0.1, 0.5, 0.5, 0.9]))
labelled_box = st.tuples(
    coarse_box, st.sampled_from([1, 1, 1, 2, 3]), st.sampled_from([0, 1024, 5000, 9216])
)
coarse_image = st.tuples(st.lists(scored_box, max_size=9), st.lists(labelled_box, max_size=4))
coarse_split = st.lists(coarse_image, min_size=1, max_size=4)
small_image = st.tuples(st.lists(small_box, max_size=14), st.lists(small_box, max_size=4))
small_split = st.lists(small_image, min_size=1, max_size=4)


def as_results(images, areas=True):
    """Makes Results of drawn images."""
    proposals, objects = [
        [list(zip(*part[i], strict=True)) or [[]] * (2 + i) for part in images] for i in (0, 1)
    ]
    orders = [np.argsort(-np.array(p[1]), kind='stable') for p in proposals]
    return Results(
        'drawn',
        0,
        [str(i) for i in range(len(images))],
        np.full((len(images), 2), 120),
        [np.array(p[0], float).reshape(-1, 4)[o] for p, o in zip(proposals, orders, strict=True)],
        [np.array(p[1], float)[o] for p, o in zip(proposals, orders, strict=True)],
        [np.array(o[0], float).reshape(-1, 4) for o in objects],
        [np.array(o[1], int) for o in objects],
        [np.array(o[2], float) for o in objects] if areas else None,
    )


def random_boxes(rng, count, extent):
    return np.sort(rng.uniform(0, extent, (count, 2, 2)), axis=1).reshape(count, 4)


def random_results(seed, images=8, most=60, extent=300):
    """Makes Results whose proposals lie around objects, often where another one already does."""
    rng = np.random.default_rng(seed)
    boxes = functools.partial(random_boxes, rng, extent=extent)
    proposals, objects = [], []
    for i in range(images):
        objects.append(boxes(rng.integers(1, 7) if i else 0).astype(np.float32))
        count = rng.integers(1, most) if i != 1 else 0
        near = objects[-1][rng.integers(len(objects[-1]), size=count)] if i else boxes(count)
        near = near + rng.normal(0, 6, (count, 4))
        proposals.append(np.where(rng.random((count, 1)) < 0.8, near, boxes(count)))
    return Results(
        dataset='random',
        step=9,
        image_ids=[f'{i}.jpg' for i in range(images)],
        sizes=np.full((images, 2), extent),
        proposals=[p.astype(np.float32) for p in proposals],
        scores=[-np.sort(-rng.integers(0, 9, len(p)) / 8).astype(np.float32) for p in proposals],
        gt_boxes=objects,
        gt_kinds=[rng.choice([1, 1, 1, 1, 2, 3], len(o)) for o in objects],
        gt_areas=[rng.uniform(0, 1, len(o)) * metrics.area(o) for o in objects],
    )


def values_of(tallies):
    return {name: tally.value for name, tally in tallies.items()}


def assert_like(found, expected, tolerance=1e-12):
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance), name


def arrays(images):
    """Makes (proposals, objects) of a split: two lists of [., 4]."""
    return [[np.array(part[i], float).reshape(-1, 4) for part in images] for i in (0, 1)]


def random_split(seed, images=5, most=40):
    rng = np.random.default_rng(seed)
    proposals = [random_boxes(rng, rng.integers(0, most), 200) for _ in range(images)]
    return proposals, [random_boxes(rng, rng.integers(0, 5), 200) for _ in range(images)]


def area_of(objects):
    return [(o[:, 2] - o[:, 0]) * (o[:, 3] - o[:, 1]) for o in objects]


def write_run(folder, noise, images=60, seed=0, moved=0, kinds=(1, 1, 1)):
    """Writes the proposals.npz of a run whose boxes are off by so many pixels."""
    random = np.random.default_rng(seed)
    objects = [random.uniform(0, 50, (3, 2)) for _ in range(images)]
    objects = [np.float32(np.concatenate([o, o + 40], 1)) + moved for o in objects]
    random = np.random.default_rng((seed, round(noise)))
    boxes = [np.repeat(o, 5, 0) + random.normal(0, noise, (15, 4)) for o in objects]
    folder.mkdir()
    run = Results(
        dataset='drawn',
        step=7,
        image_ids=[f'{i}' for i in range(images)],
        sizes=np.full((images, 2), 128),
        proposals=[np.float32(np.sort(b.reshape(-1, 2, 2), 1).reshape(-1, 4)) for b in boxes],
        scores=[np.linspace(1, 0, 15, dtype=np.float32)] * images,
        gt_boxes=objects,
        gt_kinds=[np.int32(kinds)] * images,
    )
    results.save(folder / 'proposals.npz', run)
    return folder


def texts_of(svg):
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith('svg')
    return [''.join(node.itertext()) for node in root.iter() if node.tag.endswith('text')]


NOTHING = metrics.measure([], [], [])
VOID = {'meta', 'img', 'input', 'link', 'br', 'hr', 'wbr'}


def all_metrics(value):
    return dict.fromkeys(metrics.summarise(NOTHING, post_nms=1000), value)


def all_curves(value):
    curves = metrics.curves(NOTHING, (1, 10, 100, 1000))
    return {key: [value] * len(xs) if '/' in key else xs for key, xs in curves.items()}


def gallery_picture(image_id, group):
    box = [[10.0, 20, 60, 70]]
    return {
        'image': np.full((90, 120, 3), 200, np.uint8),
        'size': (90, 120),
        'image_id': image_id,
        'group': group,
        'boxes': np.array(box + [[5, 5, 15, 15], [0, 0, 0, 0]]),
        'kind': np.array([1, 2, 0]),
        'proposals': np.array(box * 10) + np.arange(10)[:, None],
        'scores': np.linspace(0.975, 0.5, 10),
        'covered': 0.75,
        'recalled': 1,
        'objects': 1,
    }


def report_arguments():
    rng = np.random.default_rng(0)
    values = {'random_boxes': 0.1234, 'gaussian_boxes': 0.2, 'anchors': 0.81, 'oracle': 0.987}
    logged = {'loss_objectness': 0.4, 'loss_box': 0.3, 'learning_rate': 0.01}
    logged |= {'images_per_second': 12.5, 'positives': 17}
    return {
        'title': 'A <small> run & more',
        'config': {'seed': 7, 'model': {'depth': 26, 'dilations': (1, 1, 2)}, 'data': {'path': ''}},
        'history': [{'step': s, 'loss': 1 / s} | logged for s in range(10, 510, 10)],
        'evaluation': {
            'step': 500,
            'dataset': 'drawn shapes',
            'images': 1234,
            'objects': 5678,
            'proposals': all_metrics(0.4321),
            'baselines': {name: all_metrics(value) for name, value in values.items()},
        },
        'curves': {'proposals': all_curves(0.4), 'random_boxes': all_curves(0.1)},
        'sizes': {
            'objects': np.exp(rng.normal(4, 0.6, (300, 2))),
            'proposals': np.exp(rng.normal(4, 0.6, (900, 2))),
        },
        'gallery': [gallery_picture(f'{g}-{i}', g) for g in ('best', 'worst') for i in range(2)],
    }


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.inside = [], [], '', {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        where = self.open[-1] if self.open else ''
        self.inside[where] = self.inside.get(where, '') + data
        if where not in ('style', 'script'):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def parsed(path):
    """Returns the Page of a file, its text without line breaks."""
    page = Page(path.read_text('utf-8'))
    page.text = ' '.join(page.text.split())
    return page


def write_page(folder, **changes):
    """Writes a report, the only file in the folder, and returns its Page."""
    report.write_page(folder / 'report.html', **report_arguments() | changes)
    assert [path.name for path in folder.iterdir()] == ['report.html']
    return parsed(folder / 'report.html')


def missed_objects():
    """Returns two objects that NMS lost to a proposal on another object, and two ranked too low."""
    suppressed, beyond = (
        gallery_picture(reason, reason) | {'lost': np.array([12.0, 20, 62, 70]), 'remover': None}
        for reason in ('suppressed', 'beyond_limit')
    )
    suppressed |= {'boxes': suppressed['boxes'][:2], 'remover': np.array([30.0, 20, 90, 70])}
    beyond |= {'boxes': beyond['boxes'][:1]}
    both = {'overlap': 0.75, 'rank': 240, 'anchor': '64 px'}
    first = {'reason': 'suppressed', 'size': (20, 20), 'remover': 2, 'removed_by': 'another_object'}
    other = {'reason': 'beyond_limit', 'size': (40, 200), 'remover': None, 'removed_by': None}
    return [both | first | {'picture': suppressed}] * 2 + [both | other | {'picture': beyond}] * 2


def anchor_section(**changes):
    """Returns the anchors of an evaluation.json: two sizes, the larger one first, three ratios."""
    anchors, positives = np.zeros((2, 2, BINS), int)
    anchors[1, 16], anchors[1, 17], anchors[0, 10] = 300, 100, 50
    positives[0, 10] = 10
    ious = np.full((2, 2, BINS), None)
    ious[:, 1, 16], ious[:, 1, 17], ious[:, 0, 10] = (0.01, 0.02), (0.05, 0.06), (0.5, 0.75)
    lists = {'octaves': EDGES, 'anchors': anchors, 'positives': positives}
    lists |= {'iou_before': ious[0], 'iou_after': ious[1]}
    means = ('loss_objectness', 'loss_box', 'iou_before', 'iou_after', 'shift', 'scale')
    return {
        'types': [[0, size, ratio] for ratio in (0.5, 1.0, 2.0) for size in (64, 16)],
        **{'positives': [40, 10, 50, 20, 5, 4], 'recalled': [30, 0, 20, 10, 1, 2]},
        **{name: [0.5, None, 0.25, 0.125, 0.75, 0.625] for name in means},
        'recall_share': [30 / 63, 0, 20 / 63, 10 / 63, 1 / 63, 2 / 63],
        'stretch': {name: values.tolist() for name, values in lists.items()},
    } | changes


def files_of(page):
    """Returns {name: content} of the files that the page offers."""
    links = [link for link in page.all('a') if 'download' in link]
    names = [link['download'] for link in links]
    assert len(set(names)) == len(names)
    data = [base64.b64decode(link['href'].split(';base64,')[1]) for link in links]
    return dict(zip(names, map(json.loads, data), strict=True))


@functools.cache
def whole_report():
    """Writes a report in which every section is there, once for all tests; returns its path."""
    values, folder = report_arguments(), scratch()
    own = {'proposals': all_metrics([0.411, 0.452]), 'parts': {}}
    own |= {'baselines': {'random_boxes': {'AR@10': [0.101, 0.14], 'AR@100': None}}}
    values['evaluation'] |= {'anchors': anchor_section(), 'intervals': own}
    values['evaluation'] |= {'parts': {'oracle_scores': all_metrics(0.6)}}
    values['evaluation']['baselines']['random_boxes']['ABO@100'] = 0.5
    values['curves']['oracle_scores'] = all_curves(0.6)
    types = {'positives': [1] * 6, 'iou_after': [0.5] * 6, 'loss_objectness': [0.1] * 6}
    values['history'][0]['anchors'] = types
    write_page(folder, **values, misses=missed_objects())
    return folder / 'report.html'


@functools.cache
def compared_runs():
    """Writes two complete runs, the second better, and a third that has only proposals."""
    folder, names = scratch(), {'a': 12, 'lower': 4, '<i>proposals_alone & long': 9}
    made = [write_run(folder / name, noise, images=40) for name, noise in names.items()]
    finish_run(made[1], {'optim.learning_rate': 0.5, 'data.path': 'x' * 200})
    return [finish_run(made[0]), *made[1:]]


@functools.cache
def whole_comparison():
    """Writes the page of compared_runs once for all tests; returns its path."""
    return write_comparison(compared_runs())


def write_comparison(paths):
    """Writes the page that compares runs beside the first one, and returns its path."""
    assert main.main(['compare', f'--runs={",".join(map(str, paths))}']) == 0
    return paths[0].parent / 'compare.html'


def finish_run(folder, changes=()):
    """Gives a run the config, the history and the misses that a training leaves."""
    config = default.get_config()
    config.update_from_flattened_dict(dict(changes))
    (folder / 'config.json').write_text(json.dumps(config.to_dict()))
    rate = config.optim.learning_rate  # another history for another rate
    losses = {'loss': 3, 'loss_objectness': 2 + rate, 'loss_box': 1 - rate}
    lines = [{'step': s} | {key: loss / s for key, loss in losses.items()} for s in range(1, 60)]
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    clipped = len(folder.name)
    missed = {'suppressed': 1234, 'beyond_limit': 400 - clipped, 'clipped': clipped, 'no_anchor': 0}
    known = {'step': 7, 'dataset': 'drawn', 'missed': missed}
    (folder / 'evaluation.json').write_text(json.dumps(known))
    return folder


def write_inputs(folder, shown, verdicts, title='a run'):
    """Writes the page of these Examples and returns it, parsed."""
    values = {'dataset': 'voc <VOC2007>', 'pixels': pixel_family('caffe'), 'checked': len(shown)}
    path = folder / 'inspect.html'
    inputs_page.write_page(path, title=title, verdicts=verdicts, shown=shown, **values)
    return parsed(path)


def training_input(number=0, flipped=False, image_id='', file=None):
    """Returns an Example as inspect makes it, on a canvas that its picture does not fill."""
    size, stored = (40 + 10 * number, 60), io.BytesIO()
    Image.fromarray(noise(size)).save(stored, 'JPEG', quality=99)
    original = evidence.decode(stored.getvalue())
    boxes, kind = np.float32([[10, 10, 50, 40], [5, 5, 20, 30]]), np.int32([1, 2])
    record = Record(image_id or f'{number}.jpg', size, boxes, kind)
    image = np.zeros((80, 96, 3), np.uint8)
    image[: size[0], : size[1]] = original[:, ::-1] if flipped else original
    moved = np.stack([60 - boxes[:, 2], boxes[:, 1], 60 - boxes[:, 0], boxes[:, 3]], 1)
    row = {'size': np.float32(size), 'kind': kind, 'image': image}
    row |= {'boxes': moved if flipped else boxes}
    pixels = pixel_family('caffe')
    network = np.asarray(normalise(image[None], row['size'][None], pixels))
    seen = denormalise(network, pixels)[0]
    found = evidence.compare(record, original, network[0], seen, row, size, pixels)
    anchors = np.float32([[10, 12, 48, 40], [0, 0, 16, 16], [8, 8, 40, 40], [0, 0, 20, 8]])
    sampled = {'positive': anchors[:3], 'background': anchors[3:], 'level': np.zeros(3, int)}
    made = {'record': record, 'file': stored.getvalue() if file is None else file, 'seen': seen}
    made |= {
        'original': original,
        'file_size': len(made['file']),
        'size': size,
        'boxes': row['boxes'],
        'kind': kind,
    }
    return Example(step=0, levels=1, evidence=found, **made, **sampled)
