"""Each protocol against its program's rule written out in loops, and against pycocotools itself."""

import numpy as np
import pytest
from helpers import loop_iou, pycocotools_recall
from hypothesis import given
from report_data import LIMITS, as_results, assert_like, coarse_split, random_results, values_of

from rpn_jax.evaluation import metrics, protocols, results

SIZES = {'': (0, 1e10), '/small': (0, 1024), '/medium': (1024, 9216), '/large': (9216, 1e10)}
SIDES = {
    '/96-128': (96, 128),
    '/128-256': (128, 256),
    '/256-512': (256, 512),
    '/512-inf': (512, 1e5),
}


def pixel_iou(a, b):
    """Returns the IoU of two boxes that include their last pixel."""
    return loop_iou(*([x0, y0, x1 + 1, y1 + 1] for x0, y0, x1, y1 in (a, b)))


def inclusive(box, least=-1):
    """Returns a half-open box by the last pixel that it covers; an annotation has one, least 0."""
    x0, y0, x1, y1 = box
    return [x0, y0, x0 + max(x1 - x0 - 1, least), y0 + max(y1 - y0 - 1, least)]


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


def loop_voc(split, limit):
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
                if (overlap := pixel_iou(inclusive(candidate), o)) > best:
                    best, chosen = overlap, g
            if best >= 0.5 and objects[chosen][1] == 1 and chosen not in detected:
                detected.add(chosen)
        found += len(detected)
    return found / total if total else None


def assert_is_cocoeval(split):
    expected = pycocotools_recall(*results.to_coco(split), LIMITS)
    assert_like(values_of(protocols.coco(split, LIMITS)), expected, 1e-9)


@given(coarse_split)
def test_coco_is_pycocotools_on_ties_crowds_and_empty_images(images):
    assert_is_cocoeval(as_results(images))


@pytest.mark.parametrize('seed', range(2))
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


@given(coarse_split)
def test_protocols_are_the_rules_of_their_programs_in_loops(images):
    some = as_results(images)
    own = {name: values_of(rule(some, LIMITS)) for name, rule in protocols.PROTOCOLS.items()}
    own['whole'] = values_of(protocols.detectron2(some, LIMITS, skip_empty=False))
    own['raw'] = values_of(protocols.detectron(some, LIMITS, converted=False))

    def pixels(o, b):
        return pixel_iou(inclusive(o, 0), inclusive(b))

    coco = {'whole': {}, 'detectron2': {'skip_empty': True}}
    of_pixels = {'detectron': {'overlap': pixels}, 'raw': {'overlap': pixel_iou}}
    fine = {name: (low**2, high**2) for name, (low, high) in SIDES.items()}
    for n in LIMITS[:3]:
        for size, bounds in (SIZES | fine).items():
            rules = of_pixels | (coco if size in SIZES else {})
            rules |= {'mmdetection': {}} if size == '' else {}
            for name, rule in rules.items():
                expected = loop_average_recall(some, n, bounds, **rule)
                assert_like(own[name], {f'AR@{n}{size}': expected})
    assert all('/' not in name for name in own['mmdetection'] if name.startswith('AR'))
    assert list(own['voc']) == [f'recall@0.5/{n}' for n in LIMITS]
    assert_like(own['voc'], {f'recall@0.5/{n}': loop_voc(some, n) for n in LIMITS})


def test_protocols_are_those_rules_on_random_boxes():
    some = random_results(0)
    detectron2 = values_of(protocols.detectron2(some, LIMITS))
    voc = values_of(protocols.voc(some, LIMITS))
    for n in LIMITS:
        expected = loop_average_recall(some, n, SIZES[''], skip_empty=True)
        assert_like(detectron2, {f'AR@{n}': expected})
        assert_like(voc, {f'recall@0.5/{n}': loop_voc(some, n)})
