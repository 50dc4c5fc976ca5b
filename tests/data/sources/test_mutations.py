"""One-field mutations of good annotation files: the same boxes, an error or a note, never silence.

Each deletes, empties, nests, doubles, retypes or moves one element of an XML file, or one value of
a json file. Whole objects, annotations and images are not fields: nobody misses what was never
there. Nor are an object's category and an image's name, of which no box depends.
"""

import collections
import copy
import json
from xml.etree import ElementTree

import cv2
import numpy as np

from rpn_jax.data.check import lint
from rpn_jax.data.sources.coco import coco
from rpn_jax.data.sources.voc import voc
from rpn_jax.errors import InputError

XML = (
    '<annotation><folder>f</folder><filename>a.jpg</filename><size><width>128</width>'
    '<height>96</height><depth>3</depth></size><segmented>0</segmented>'
    '<object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>1</difficult>'
    '<bndbox><xmin>21</xmin><ymin>11</ymin><xmax>70</xmax><ymax>80</ymax></bndbox></object>'
    '<object><name>person</name><difficult>0</difficult>'
    '<bndbox><xmin>71</xmin><ymin>21</ymin><xmax>100</xmax><ymax>60</ymax></bndbox>'
    '<part><name>head</name><bndbox><xmin>81</xmin><ymin>22</ymin><xmax>90</xmax>'
    '<ymax>30</ymax></bndbox></part></object></annotation>'
)
IMAGES = [{'id': i, 'file_name': f'{i}.jpg', 'height': 96, 'width': 128} for i in (3, 1)]
ANNOTATION = {'category_id': 1, 'area': 1200, 'segmentation': []}
JSON = {
    'images': IMAGES,
    'annotations': [
        ANNOTATION | {'id': 5, 'image_id': 1, 'bbox': [10, 10, 40, 30], 'iscrowd': 0},
        ANNOTATION | {'id': 4, 'image_id': 3, 'bbox': [1, 2, 30, 40], 'iscrowd': 0},
        ANNOTATION | {'id': 6, 'image_id': 3, 'bbox': [20, 5, 60, 50], 'iscrowd': 1},
    ],
    'categories': [{'id': 1, 'name': 'thing'}],
}
WAYS = ('deleted', 'emptied', 'nested', 'doubled', 'retyped', 'moved')


def elements(root):
    """Yields (parent, element) of all elements below a root."""
    for child in root:
        yield root, child
        yield from elements(child)


def xml_mutations():
    for number, (_, element) in enumerate(elements(ElementTree.fromstring(XML))):
        for way in WAYS if element.tag != 'object' else WAYS[1:]:
            root = ElementTree.fromstring(XML)
            parent, child = list(elements(root))[number]
            position = list(parent).index(child)
            if way in ('deleted', 'nested', 'moved'):
                parent.remove(child)
            if way == 'emptied':
                child[:], child.text = [], None
            elif way == 'nested':
                wrapper = ElementTree.Element('item')
                wrapper.append(child)
                parent.insert(position, wrapper)
            elif way in ('doubled', 'moved'):
                parent.append(copy.deepcopy(child))
            elif way == 'retyped':
                child[:], child.text = [], 'thirty'
            yield f'{number} {element.tag} {way}', ElementTree.tostring(root)


def values(node, path=()):
    """Yields the path of all values in a parsed json, but of whole images and annotations."""
    for key in node if isinstance(node, dict) else range(len(node)):
        inner, here = node[key], (*path, key)
        if path[-1:] not in (('images',), ('annotations',), ('categories',)):
            yield here
        if isinstance(inner, dict | list):
            yield from values(inner, here)


def json_mutations():
    for path in values(JSON):
        for way in WAYS if 'bbox' not in path[:-1] else WAYS[:-1]:  # its order is its meaning
            content = copy.deepcopy(JSON)
            parent = content
            for key in path[:-1]:
                parent = parent[key]
            key, value, text = path[-1], parent[path[-1]], None
            if way == 'deleted':
                del parent[key]
            elif way == 'emptied':
                parent[key] = None if not isinstance(value, list) else []
            elif way == 'nested':
                parent[key] = [value]
            elif way == 'retyped':
                parent[key] = 'thirty' if not isinstance(value, str) else 30
            elif way == 'doubled' and isinstance(parent, list):
                parent.append(value)
            elif way == 'doubled':  # with another value in its second place
                parent['__twice__'] = 7
                text = json.dumps(content).replace('__twice__', key)
            elif isinstance(parent, list):
                parent.append(parent.pop(key))
            else:
                parent[key] = parent.pop(key)
            yield f'{".".join(map(str, path))} {way}', text or json.dumps(content)


def boxes_of(source):
    """Returns {image_id: its boxes with their kinds}."""
    rows = ((r.image_id, r.boxes.tolist(), r.kind.tolist()) for r in source.records)
    return {name: sorted(zip(boxes, kinds, strict=True)) for name, boxes, kinds in rows}


def outcome(open_source, expected):
    """Returns what becomes of a mutated file: error, same, note or silent."""
    try:
        source = lint(open_source())
    except InputError as error:
        assert '\n' not in str(error)
        return 'error'
    if boxes_of(source) == expected:
        return 'same'
    return 'note' if source.notes else 'silent'


def write_pictures(folder, names):
    folder.mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.roll(picture, i))


def tried(mutations, write, open_source):
    """Returns {outcome: the mutations that have it}."""
    original = lint(open_source())
    expected = boxes_of(original)
    assert original.notes == ()
    outcomes = collections.defaultdict(list)
    for what, content in mutations:
        write(content)
        outcomes[outcome(open_source, expected)].append(what)
    return outcomes


def test_no_mutation_of_an_xml_file_is_silent(tmp_path):
    write_pictures(tmp_path / 'JPEGImages', ['a.jpg'])
    (tmp_path / 'Annotations').mkdir()
    file = tmp_path / 'Annotations/a.xml'
    file.write_text(XML)
    outcomes = tried(xml_mutations(), file.write_bytes, lambda: voc('', path=tmp_path))
    assert outcomes['silent'] == []
    counts = {name: len(which) for name, which in outcomes.items()}
    assert sum(counts.values()) > 180 and counts['error'] > 60 and counts['same'] > 60


def test_no_mutation_of_a_json_file_is_silent(tmp_path):
    write_pictures(tmp_path / 'train', ['3.jpg', '1.jpg'])
    file = tmp_path / 'x.json'
    file.write_text(json.dumps(JSON))
    outcomes = tried(
        json_mutations(),
        file.write_text,
        lambda: coco('train', path=tmp_path, annotations=str(file)),
    )
    assert outcomes['silent'] == []
    counts = {name: len(which) for name, which in outcomes.items()}
    assert sum(counts.values()) > 180 and counts['error'] > 60 and counts['same'] > 60
