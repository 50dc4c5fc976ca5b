"""Files that tests read: images, VOC and COCO folders, archives, weights."""

import hashlib
import http.server
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib

import cv2
import numpy as np
from safetensors.numpy import save_file

from rpn_jax.data.prepare import official
from rpn_jax.data.prepare.official import Archive


def jpeg_with(jpeg, segment):
    """Returns a JPEG with an APP1 segment (EXIF) of these bytes put in."""
    return jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment + jpeg[2:]


def encoded(picture, extension='.jpg'):
    """Returns the bytes of an image file of a BGR or grey picture."""
    return cv2.imencode(extension, picture)[1].tobytes()


def turned_jpeg(picture, value):
    """Returns a JPEG with an orientation tag."""
    tag = b'II*\0\x08\0\0\0\x01\0' + struct.pack('<HHIHH', 0x112, 3, 1, value, 0) + bytes(4)
    return jpeg_with(encoded(picture), b'Exif\0\0' + tag)


def png_of(width, height, body=b'', kind=(8, 2, 0, 0, 0)):
    """Returns a PNG that says that it has this size; kind is the rest of its head."""
    chunks = (
        (b'IHDR', struct.pack('>IIBBBBB', width, height, *kind)),
        (b'IDAT', zlib.compress(body)),
        (b'IEND', b''),
    )
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        for name, data in chunks
    )


def damaged():
    """Yields what is wrong with a file, its name, its bytes and the complaint."""
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    jpeg, png = encoded(picture), encoded(picture, '.png')
    thumbnail = jpeg_with(jpeg, b'Exif\0\0' + encoded(picture[:16, :16]))
    assert b'\xff\xd9' in thumbnail[:-200]
    yield 'half a JPEG', 'x.jpg', jpeg[: len(jpeg) // 2], 'truncated'
    yield 'a JPEG without its end', 'x.jpg', jpeg[:-2], 'truncated'
    yield 'a JPEG cut off behind its thumbnail', 'x.jpg', thumbnail[:-200], 'truncated'
    yield 'a JPEG cut off in its head', 'x.jpg', jpeg[:50], 'truncated'
    yield 'half a PNG', 'x.png', png[: len(png) // 2], 'truncated'
    yield 'a text', 'x.jpg', b'This is not the image you are looking for.', 'not an image'
    yield 'nothing', 'x.jpg', b'', 'not an image'
    yield 'another size', 'x.jpg', encoded(picture[:, :70]), 'is 70 x 60, its annotation .* 80 x 60'


VOC_SIZES = (60, 80), (90, 50), (64, 64), (70, 90), (60, 80), (90, 50)  # height, width
VOC_BOX = (5, 6, 40, 50)  # as VOC writes it: corners from 1, both inside


def voc_annotation(size, *objects):
    """Returns the XML of an image; objects are (box, text of <difficult>)."""
    height, width = size
    items = ''.join(
        f'<object><name>cat</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin>'
        f'<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>'
        for (x0, y0, x1, y1), difficult in objects
    )
    sides = f'<width>{width}</width><height>{height}</height><depth>3</depth>'
    return f'<annotation><size>{sides}</size>{items}</annotation>'


def write_voc(folder):
    """Writes six pictures of noise, four in the list train and two in val; returns the folder.

    000001 has no object, 000002 a difficult one besides.
    """
    random = np.random.default_rng(0)
    objects = {1: [], 2: [(VOC_BOX, 0), ((20, 20, 45, 45), 1)]}
    for part in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (folder / part).mkdir(parents=True)
    for number, size in enumerate(VOC_SIZES):
        text = voc_annotation(size, *objects.get(number, [(VOC_BOX, 0)]))
        (folder / f'Annotations/{number:06}.xml').write_text(text)
        picture = random.integers(0, 256, (*size, 3), np.uint8)
        (folder / f'JPEGImages/{number:06}.jpg').write_bytes(encoded(picture))
    for split, numbers in (('train', range(4)), ('val', range(4, 6))):
        ids = ''.join(f'{number:06}\n' for number in numbers)
        (folder / f'ImageSets/Main/{split}.txt').write_text(ids)
    return folder


CONTENT = b'weights' * 500_000


class Server(http.server.ThreadingHTTPServer):
    """Answers every request with `content`, saying that it has `length` bytes; counts them."""

    content, length, status, asked = CONTENT, len(CONTENT), 200, 0

    class RequestHandlerClass(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked += 1
            self.send_response(self.server.status)
            if self.server.length:
                self.send_header('Content-Length', self.server.length)
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *_):
            pass


TENSORS = {
    'conv1.weight': np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) / 7,
    'layer1.0.conv1.weight': np.ones((2, 2, 1, 1), np.float32),
    'bn1.bias': np.array([0.5, -0.25], np.float32),
}


def write_weights(path, kind, tensors=TENSORS):
    """Writes the tensors as a file of a kind."""
    if kind == 'safetensors':
        save_file(tensors, path)
    elif kind == 'pkl':
        path.write_bytes(pickle.dumps(tensors, protocol=2))
    elif kind == 'pth':
        write_pth(path, tensors)
    else:
        with path.open('wb') as file:
            {'npz': np.savez, 'npz_deflated': np.savez_compressed}[kind](file, **tensors)
    return path


def write_pth(path, tensors):
    """Writes a .pth file as torch does: a pickle that asks for numbers kept beside it."""

    def text(word):
        return b'X' + struct.pack('<i', len(word)) + word.encode()

    def numbers(values):
        return b'(' + b''.join(b'J' + struct.pack('<i', value) for value in values) + b't'

    data = b'\x80\x02}('
    for key, (name, array) in enumerate(tensors.items()):
        strides = [stride // array.itemsize for stride in array.strides]
        storage = text('storage') + b'ctorch\nFloatStorage\n' + text(f'{key}') + text('cpu')
        storage = b'(' + storage + b'J' + struct.pack('<i', array.size) + b'tQ'
        view = b'K\x00' + numbers(array.shape) + numbers(strides) + b'\x89}'
        data += text(name) + b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + view + b'tR'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('weights/data.pkl', data + b'u.')
        for key, array in enumerate(tensors.values()):
            archive.writestr(f'weights/data/{key}', array.tobytes())


def archive(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


COCO_SIZES = {7: (60, 80), 3: (90, 50), 12: (64, 64)}  # image id -> height, width


def coco_image(key, **changes):
    height, width = COCO_SIZES[key]
    return dict(id=key, file_name=f'{key:012}.jpg', height=height, width=width) | changes


def coco_box(key, bbox, crowd=0, **changes):
    number = int(sum(map(float, bbox))) if isinstance(bbox, list) else 0
    return {'id': number, 'image_id': key, 'bbox': bbox, 'iscrowd': crowd, 'area': 5} | changes


def coco_content():
    """Returns an instances file: two boxes and a crowd in 7, an empty box in 3, nothing in 12."""
    boxes = [
        coco_box(7, [5.5, 6, 30, 40]),
        coco_box(3, [1, 2, 0, 5]),
        coco_box(7, [0, 0, 80, 60], crowd=1),
        coco_box(7, [10, 20, 3, 4]),
    ]
    return {'images': list(map(coco_image, COCO_SIZES)), 'annotations': boxes, 'categories': []}


def write_coco(folder, split='train2017'):
    """Writes a folder with one split of three pictures; returns it."""
    random = np.random.default_rng(0)
    (folder / split).mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    for key, size in COCO_SIZES.items():
        picture = random.integers(0, 256, (*size, 3), np.uint8)
        (folder / split / f'{key:012}.jpg').write_bytes(encoded(picture))
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco_content()))
    return folder


TRAINVAL = 'VOCtrainval_06-Nov-2007.tar'


def make_official(monkeypatch, path, url='http://127.0.0.1:9'):
    """Makes a file the official archive of its name."""
    content = path.read_bytes()
    entry = Archive(f'{url}/{path.name}', len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(official.ARCHIVES, path.name, entry)
    return path


def voc_archive(folder):
    """Writes a tar of six pictures as VOC 2007's is made, with what no box needs besides."""
    devkit = folder / 'made' / 'VOCdevkit'
    write_voc(devkit / 'VOC2007')
    (devkit / 'VOC2007/SegmentationClass').mkdir()
    (devkit / 'VOC2007/SegmentationClass/000001.png').write_bytes(b'mask')
    with tarfile.open(folder / TRAINVAL, 'w') as archive:
        archive.add(devkit, 'VOCdevkit')
    return folder / TRAINVAL


def coco_archives(folder):
    """Writes the archives of three pictures of COCO's val2017; returns both."""
    made = write_coco(folder / 'made', 'val2017')
    for name, part in (('val2017', 'val2017'), ('annotations_trainval2017', 'annotations')):
        with zipfile.ZipFile(folder / f'{name}.zip', 'w') as archive:
            for file in sorted((made / part).iterdir()):
                archive.write(file, f'{part}/{file.name}')
    return folder / 'val2017.zip', folder / 'annotations_trainval2017.zip'


YOLO_SIZE = 60, 80  # height, width
YOLO_LABELS = {  # of the images 0, 1, ..; None: no file
    'train': ['0 .5 .5 .25 .5\n', '', None, '1 .1 .2 .9 .2 .5 .75\n\n0 .25 .25 .5 .5\n'],
    'val': ['1 0.5 0.5 1 1'],
}


def write_yolo(folder, pictures='images/{}', labels='labels/{}'):
    """Writes pictures of noise in two splits, and their labels; returns the folder."""
    random = np.random.default_rng(0)
    for split, texts in YOLO_LABELS.items():
        images_of, labels_of = (folder / each.format(split) for each in (pictures, labels))
        for each in (images_of, labels_of):
            each.mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(texts):
            picture = random.integers(0, 256, (*YOLO_SIZE, 3), np.uint8)
            (images_of / f'{number}.jpg').write_bytes(encoded(picture))
            if text is not None:
                (labels_of / f'{number}.txt').write_text(text)
    (folder / 'data.yaml').write_text('train: ../train/images\nnames: [cat, no]\n')
    return folder
