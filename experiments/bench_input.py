"""Times the input pipeline, stage by stage, against one thread of OpenCV and against a PIL loader.

All of it in one process, in turns, so that a slow moment of the machine strikes everything alike;
what counts are the ratios. Images are those of a folder, or scenes drawn for the purpose.

    python experiments/bench_input.py [--source voc --path VOCdevkit/VOC2007 --split trainval]
        [--resize short_side] [--rounds 7] [--images 5000]
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs/ is not installed

from configs import default  # noqa: E402
from rpn_jax import data  # noqa: E402
from rpn_jax.data import batches, images  # noqa: E402
from rpn_jax.data.normalization import FAMILIES  # noqa: E402
from rpn_jax.errors import InputError  # noqa: E402

DRAWN, SIDES = 96, (375, 500)  # scenes, where no folder is given; their height and width
WARM, GROWTH = 25, 200  # batches before memory is measured; MiB that it may grow by then
ONE_THREAD, PIL_LOADER = 1.2, 2.0  # the pipeline is to be so many times as fast


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--source', default='voc', choices=('voc', 'coco', 'tfds'))
    parser.add_argument('--path', default='', help='default: drawn scenes')
    parser.add_argument('--name', default='', help='of a TFDS data set')
    parser.add_argument('--split', default='')
    parser.add_argument('--resize', default='square', choices=data.split.RESIZES)
    parser.add_argument('--image-size', type=int, default=600)
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=7, help='pairs of measurements')
    parser.add_argument('--each', type=int, default=96, help='images of one measurement')
    parser.add_argument('--images', type=int, default=5000, help='of the pass for memory')
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return measure(arguments, folder)
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1


def measure(arguments, folder):
    """Prints the tables; returns 1 where a ratio or the memory is not as it should be."""
    options = open_options(arguments, folder)
    source = data.open_split(options, arguments.split)
    make = data.train_batch(source, options, seed=0)
    steps = max(arguments.each // options.batch_size, 1)
    positions = [p for step in range(steps) for p in make.positions(step)[1]]
    print(
        f'{source.name}: {len(source.records)} images; {options.resize} {options.image_size}, '
        f'{len(data.train_plan(source, options).shapes)} canvases, batches of {options.batch_size}'
    )
    for name, seconds in stages(source, options, make, positions, arguments.rounds).items():
        print(f'  {name:<10}{1000 * seconds / len(positions):8.2f} ms per image, one thread')
    sizes = data.train_plan(source, options).sizes
    candidates = {
        'pipeline': lambda: list(batches.threaded(make, range(steps))),
        'one thread of OpenCV': lambda: [opencv(source, p, sizes[p]) for p in positions],
        'PIL, float32, two workers': lambda: pil(source, positions, sizes, options.batch_size),
    }
    times = alternate(candidates, arguments.rounds)
    ours, wrong = times.pop('pipeline'), 0
    for (name, other), least in zip(times.items(), (ONE_THREAD, PIL_LOADER), strict=True):
        ratios = sorted(b / a for a, b in zip(ours, other, strict=True))
        median = statistics.median(ratios)
        wrong += median < least
        print(
            f'  pipeline / {name}: {median:.2f} times as fast '
            f'({ratios[0]:.2f} to {ratios[-1]:.2f}; at least {least} wanted)'
        )
    grown = growth(make, max(arguments.images // options.batch_size, WARM + 1))
    wrong += grown > GROWTH
    print(f'  memory: {grown:.0f} MiB more after {arguments.images} images (at most {GROWTH})')
    return int(wrong > 0)


def open_options(arguments, folder):
    """Returns the data options; without a path, scenes are drawn into the folder first."""
    settings = default.get_config().data
    settings.update(source=arguments.source, path=arguments.path, name=arguments.name)
    settings.update(resize=arguments.resize, image_size=arguments.image_size)
    settings.update(batch_size=arguments.batch_size, train_split=arguments.split)
    if not arguments.path:
        settings.update(source='voc', path=draw(Path(folder)))
    return data.check(data.Options(**settings))


def draw(folder):
    """Writes drawn scenes as a VOC folder of photographs' usual size; returns its path."""
    scenes = data.sources.shapes.shapes('train', count=DRAWN, size=max(SIDES))
    for part in ('JPEGImages', 'Annotations'):
        (folder / part).mkdir()
    height, width = SIDES
    for position in range(DRAWN):
        scene = scenes.read(position)[:height, :, ::-1]
        noise = np.random.default_rng(position).normal(0, 8, scene.shape)  # as photographs have
        picture = np.clip(scene + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f'JPEGImages/{position:06}.jpg'), picture)
        (folder / f'Annotations/{position:06}.xml').write_text(
            f'<annotation><size><width>{width}</width><height>{height}</height></size></annotation>'
        )
    return str(folder)


def stages(source, options, make, positions, rounds):
    """Returns the median seconds of read, decode, resize and batch, one after the other."""
    sizes = data.train_plan(source, options).sizes
    found = {'read': [], 'decode': [], 'resize': [], 'batch': []}
    for _ in range(rounds):
        clock = time.perf_counter
        began = clock()
        files = [source.files.load(p) for p in positions]
        read = clock()
        decoded = [images.decode(file, 'x') for file in files]
        decode = clock()
        for position, image in zip(positions, decoded, strict=True):
            cv2.resize(image, sizes[position][::-1].tolist(), interpolation=cv2.INTER_LINEAR)
        resize = clock()
        for step in range(len(positions) // options.batch_size):
            make(step)
        whole = clock() - resize
        found['read'].append(read - began)
        found['decode'].append(decode - read)
        found['resize'].append(resize - decode)
        found['batch'].append(max(whole - (resize - began), 0))  # flip, pad, boxes, stack
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def opencv(source, position, size):
    """Decodes and resizes one image, and nothing else."""
    image = cv2.imdecode(np.frombuffer(source.files.load(position), np.uint8), cv2.IMREAD_COLOR)
    return cv2.resize(image, size[::-1].tolist(), interpolation=cv2.INTER_LINEAR)


def pil(source, positions, sizes, batch_size):
    """Makes float32 batches as detection code usually does, in two threads.

    Threads, although such loaders use processes: Pillow and NumPy give the interpreter free while
    they work, and threads need not send their batches anywhere.
    """
    family = FAMILIES['torchvision']
    mean, std = np.float32(family.mean) / 255, np.float32(family.std) / 255

    def batch(start):
        rows = []
        for position in positions[start : start + batch_size]:
            with Image.open(source.files.names[position]) as file:
                size = sizes[position][::-1].tolist()
                image = file.convert('RGB').resize(size, Image.Resampling.BILINEAR)
            rows.append((np.asarray(image, np.float32) / 255 - mean) / std)
        return np.stack(rows) if len({row.shape for row in rows}) == 1 else rows

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(batch, range(0, len(positions), batch_size)))


def alternate(candidates, rounds):
    """Returns the seconds of each candidate in each round; a round runs each once, in turn."""
    times = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            if number:  # the first round warms caches
                times[name].append(time.perf_counter() - began)
    return times


def growth(make, steps):
    """Returns by how many MiB the process grows, at most, after the first batches of a pass."""
    before = most = 0
    for step, _ in enumerate(batches.threaded(make, range(steps))):
        now = resident()
        before, most = (now, now) if step <= WARM else (before, max(most, now))
    return most - before


def resident():
    """Returns the MiB of memory that the process holds now."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == '__main__':
    sys.exit(main())
