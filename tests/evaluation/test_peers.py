"""Each protocol against its program's rule written out in loops, and against pycocotools itself."""

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from report_data import (
    LIMITS,
    PEERS,
    as_results,
    assert_like,
    coarse_split,
    random_results,
    values_of,
)

from rpn_jax.evaluation import metrics, protocols, results

SIZES = {'': (0, 1e10), '/small': (0, 1024), '/medium': (1024, 9216), '/large': (9216, 1e10)}
FINE = {
    '/96-128': (96, 128),
    '/128-256': (128, 256),
    '/256-512': (256, 512),
    '/512-inf': (512, 1e5),
}


def loop_iou(a, b, pixel=0):
    width = min(a[2], b[2]) - max(a[0], b[0]) + pixel
    height = min(a[3], b[3]) - max(a[1], b[1]) + pixel
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0] + pixel) * (c[3] - c[1] + pixel) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def inclusive(box, least=None):
    """Names the last pixel that a half-open box covers; an annotation has one in any case."""
    width, height = box[2] - box[0] - 1, box[3] - box[1] - 1
    if least is not None:
        width, height = max(width, least), max(height, least)
    return [box[0], box[1], box[0] + width, box[1] + height]


def counted(split, image, bounds):
    """Returns the boxes of an image's kind 1 whose annotated area is within bounds."""
    rows = zip(split.gt_boxes[image], split.gt_kinds[image], split.gt_areas[image], strict=True)
    return [box for box, kind, area in rows if kind == 1 and bounds[0] <= area <= bounds[1]]


def loop_pairs(boxes, objects, overlap):
    """Takes the best-covered object with its best box, and neither again, until one runs out."""
    boxes, objects, found = dict(enumerate(boxes)), dict(enumerate(objects)), []
    missed = len(objects) - len(boxes)
    while boxes and objects:
        pairs = [(overlap(o, b), -g, -p) for g, o in objects.items() for p, b in boxes.items()]
        iou, g, p = max(pairs)
        found.append(iou)
        del boxes[-p], objects[-g]
    return found + [0.0] * max(missed, 0)


def loop_average_recall(split, limit, bounds, *, skip_empty=False, overlap=loop_iou):
    found = []
    for i, boxes in enumerate(split.proposals):
        if len(boxes) or not skip_empty:
            found += loop_pairs(boxes[:limit], counted(split, i, bounds), overlap)
    thresholds = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    hits = [sum(iou >= t for iou in found) / len(found) for t in thresholds if found]
    return sum(hits) / 10 if found else None


def loop_voc(split, limit, pixel=1):
    """Gives each detection to its best object, which counts once, or not where it is difficult."""
    found, total = 0, 0
    for i, boxes in enumerate(split.proposals):
        rows = zip(split.gt_boxes[i], split.gt_kinds[i], strict=True)
        objects = [(inclusive(box, 0), kind) for box, kind in rows if kind != 3]
        total += sum(kind == 1 for _, kind in objects)
        detected = set()
        for candidate in boxes[:limit]:
            best, chosen = -np.inf, None
            for g, (o, _) in enumerate(objects):
                if (overlap := loop_iou(inclusive(candidate), o, pixel)) > best:
                    best, chosen = overlap, g
            if best >= 0.5 and objects[chosen][1] == 1 and chosen not in detected:
                detected.add(chosen)
        found += len(detected)
    return found / total if total else None


def pycocotools_recall(instances, results, limits):
    """Returns AR@n and AR@n/size of COCOeval, None where it says -1."""
    coco = pytest.importorskip('pycocotools.coco')
    evaluation = pytest.importorskip('pycocotools.cocoeval')
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = coco.COCO(), coco.COCO()
        truth.dataset = json.loads(json.dumps(instances))
        truth.createIndex()
        if results:
            found = truth.loadRes(json.loads(json.dumps(results)))
        else:  # loadRes looks at the first of them
            found.dataset = {**truth.dataset, 'annotations': []}
            found.createIndex()
        run = evaluation.COCOeval(truth, found, 'bbox')
        run.params.useCats, run.params.maxDets = 0, list(limits)
        run.evaluate()
        run.accumulate()
    recalls = run.eval['recall'][:, 0]  # [thresholds, sizes, limits]
    return {
        f'AR@{n}{size}': None if recalls[0, i, j] < 0 else float(recalls[:, i, j].mean())
        for j, n in enumerate(limits)
        for i, size in enumerate(SIZES)
    }


def assert_is_cocoeval(split):
    expected = pycocotools_recall(*results.to_coco(split), LIMITS)
    assert_like(values_of(protocols.coco(split, LIMITS)), expected, 1e-9)


@settings(max_examples=40)
@given(coarse_split)
def test_coco_is_pycocotools_on_ties_crowds_and_empty_images(images):
    assert_is_cocoeval(as_results(images))


@pytest.mark.parametrize('seed', range(4))
def test_coco_is_pycocotools_on_random_boxes(seed):
    assert_is_cocoeval(random_results(seed))
    assert_is_cocoeval(random_results(seed)._replace(gt_areas=None))


def test_coco_has_the_thresholds_of_pycocotools_to_the_last_bit():
    found, wanted = (0, 0, np.nextafter(0.9, 0), 1), (0, 0, 1, 1)
    assert protocols.COCO_THRESHOLDS[8] == metrics.iou([found], [wanted])[0, 0] < 0.9
    some = as_results([([(found, 1)], [(wanted, 1, 1)])])
    assert_is_cocoeval(some)
    assert values_of(protocols.coco(some))['AR@10'] == pytest.approx(0.9)
    assert values_of(protocols.mmdetection(some))['AR@10'] == pytest.approx(0.8)


def test_coco_is_pycocotools_without_anything():
    assert_is_cocoeval(as_results([([], [])]))
    assert_is_cocoeval(as_results([([], [((0, 0, 20, 20), 1, 400)])]))
    assert_is_cocoeval(as_results([([((0, 0, 20, 20), 0.5)], [((0, 0, 20, 20), 3, 400)])]))


def test_coco_is_pycocotools_on_files_of_others():
    """Decimals, categories, ids in no order, a detection of several objects, scores unsorted."""
    rng = np.random.default_rng(0)
    images = [{'id': i, 'height': 300, 'width': 300} for i in (9, 4, 700, 1)]
    annotations, entries = [], []
    for number in range(30):
        bbox = rng.uniform(5, 120, 4).round(2).tolist()
        row = {'image_id': int(rng.choice([9, 4, 700])), 'bbox': bbox, 'id': number + 1}
        row |= {'category_id': number % 3, 'iscrowd': int(number % 7 == 0)}
        annotations.append(row | {'area': round(bbox[2] * bbox[3] * 0.6, 3)})
        for _ in range(9):
            moved = np.array(bbox) + rng.normal(0, 6, 4)
            moved[2:] = np.abs(moved[2:])  # inverted ones are refused
            row = {'image_id': row['image_id'], 'category_id': int(rng.integers(3))}
            row |= {'bbox': moved.round(2).tolist(), 'score': round(float(rng.random()), 1)}
            entries.append(row)
    rng.shuffle(entries)
    categories = [{'id': i} for i in range(3)]
    instances = {'images': images, 'annotations': annotations, 'categories': categories}
    found = values_of(protocols.coco(results.from_coco(instances, entries), LIMITS))
    assert 0.2 < found['AR@10'] < 0.9
    assert_like(found, pycocotools_recall(instances, entries, LIMITS), 1e-9)


@settings(max_examples=40)
@given(coarse_split)
def test_one_to_one_dialects_are_their_rules_in_loops(images):
    some = as_results(images)
    found = {name: values_of(protocols.PROTOCOLS[name](some, LIMITS)) for name in PEERS}
    whole = values_of(protocols.detectron2(some, LIMITS, skip_empty=False))
    raw = values_of(protocols.detectron(some, LIMITS, converted=False))

    def pixels(o, b):
        return loop_iou(inclusive(o, 0), inclusive(b), 1)

    fine = {name: (low**2, high**2) for name, (low, high) in FINE.items()}
    for n in LIMITS[:3]:
        for size, bounds in (SIZES | fine).items():
            name = f'AR@{n}{size}'
            like = loop_average_recall(some, n, bounds, overlap=pixels)
            assert_like(found['detectron'], {name: like})
            like = loop_average_recall(some, n, bounds, overlap=lambda o, b: loop_iou(o, b, 1))
            assert_like(raw, {name: like})
            if size in SIZES:
                plain = loop_average_recall(some, n, bounds)
                assert_like(whole, {name: plain})
                skipping = loop_average_recall(some, n, bounds, skip_empty=True)
                assert_like(found['detectron2'], {name: skipping})
        assert_like(found['mmdetection'], {f'AR@{n}': loop_average_recall(some, n, SIZES[''])})
    assert all('/' not in name for name in found['mmdetection'] if name.startswith('AR'))


@settings(max_examples=40)
@given(coarse_split)
def test_voc_is_the_devkits_rule_in_loops(images):
    some = as_results(images)
    found = values_of(protocols.voc(some, LIMITS))
    assert list(found) == [f'recall@0.5/{n}' for n in LIMITS]
    assert_like(found, {f'recall@0.5/{n}': loop_voc(some, n) for n in LIMITS})


@pytest.mark.parametrize('seed', range(3))
def test_random_boxes_in_every_dialect(seed):
    some = random_results(seed)
    found = {
        name: values_of(protocol(some, LIMITS)) for name, protocol in protocols.PROTOCOLS.items()
    }
    for n in LIMITS:
        for size, bounds in SIZES.items():
            like = loop_average_recall(some, n, bounds, skip_empty=True)
            assert_like(found['detectron2'], {f'AR@{n}{size}': like})
        assert_like(found['voc'], {f'recall@0.5/{n}': loop_voc(some, n)})
