"""The other side of bench.py: torchvision's RPN, timed when asked; needs torch, torchvision, NumPy.

bench.py starts it with another Python and speaks JSON with it, a line each way:

    it says at first          {"ready": "torch 2.13.0, .."}
    {"prepare": CASE}         {"seconds": 1.2}     sets up, warms up, times one call
    {"run": CALLS}            {"seconds": 1.1}     seconds per call
    {"report": true}          {"memory": BYTES, "answer": [..]}

Whatever fails in a case is {"error": "one line"}, and the next case may still work. torch is used
as it is at its best: all cores, no gradients where none are wanted, frozen parameters without
gradients, frozen norms without arithmetic in the backward pass, the fused SGD, cuDNN's fastest.
"""

import gc
import json
import os
import sys
import time

import numpy as np
import torch
import torchvision
from torchvision.models.detection import _utils, image_list, rpn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # another script may start this one

from bench_memory import forget_peak, resident  # noqa: E402

SIZES, RATIOS = ((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)
TRAINING = 2000, 2000  # torchvision's pre_nms and post_nms of a training step
WARM = 2  # calls before one is timed


class Network(torch.nn.Module):
    """torchvision's ResNet with frozen norms, cut after a stage, and its RPN."""

    def __init__(self, case):
        super().__init__()
        net = getattr(torchvision.models, f'resnet{case["depth"]}')(
            weights=None,
            norm_layer=torchvision.ops.FrozenBatchNorm2d,
            replace_stride_with_dilation=[False, False, case['stage'] == 'dc5'],
        )
        for name, norm in net.named_modules():
            if name.endswith('bn3'):  # so that random weights stay tame, as on the other side
                norm.weight.fill_(0.2)
        self.body = torch.nn.Sequential(
            *list(net.children())[: -3 if case['stage'] == 'c4' else -2]
        )
        frozen = 3 + case['frozen_stages'] if case['frozen_stages'] else 0  # the stem is four
        for child in list(self.body)[:frozen]:
            child.requires_grad_(False)
        pre_nms, post_nms = case['proposals']
        self.rpn = rpn.RegionProposalNetwork(
            rpn.AnchorGenerator(SIZES, RATIOS),
            rpn.RPNHead(1024 if case['stage'] == 'c4' else 2048, 15),
            *(0.7, 0.3, 256, 0.5),
            {'training': TRAINING[0], 'testing': pre_nms},
            {'training': TRAINING[1], 'testing': post_nms},
            0.7,
        )
        self.size = tuple(case['size'])

    def forward(self, images, targets=None):
        features = {'0': self.body(images)}
        return self.rpn(image_list.ImageList(images, [self.size] * len(images)), features, targets)


def network(case, device):
    """Returns the network, images (normalised already) and how it is told to compute."""
    model, shape = Network(case).to(device), (case['batch'], 3, *case['size'])
    images = torch.randn(shape, device=device)
    if case['channels_last']:
        layout = torch.channels_last
        model, images = model.to(memory_format=layout), images.contiguous(memory_format=layout)
    if case['compile']:
        model.body = torch.compile(model.body)
    low = case['dtype'] == 'bfloat16'
    return model, images, lambda: torch.autocast(device, torch.bfloat16, enabled=low)


def train(case, arrays, device):
    """Returns the training step: forward with its sampling and NMS, backward, SGD."""
    model, images, precision = network(case, device)
    model.train()
    targets = [{'boxes': boxes} for boxes in arrays['objects']]
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with precision():
            _, losses = model(images, targets)
            loss = losses['loss_objectness'] + losses['loss_rpn_box_reg']
        loss.backward()
        optimizer.step()

    return step


def predict(case, arrays, device):
    """Returns the function from images to proposals."""
    return looking(case, device, lambda model: model)


def backbone(case, arrays, device):
    """Returns the function from images to feature maps."""
    return looking(case, device, lambda model: model.body)


def looking(case, device, part):
    """Returns the function that gives images to a part of the network, without gradients."""
    model, images, precision = network(case, device)
    seen = part(model.eval())

    @torch.no_grad()
    def call():
        with precision():
            seen(images)

    return call


def match(case, arrays, device):
    """Returns matching as the RPN does it; it answers how many anchors are objects, background."""
    matcher = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)

    @torch.no_grad()
    def call():
        return matcher(torchvision.ops.box_iou(arrays['objects'], arrays['anchors']))

    def answer():
        matched = call()
        return [int((matched >= 0).sum()), int((matched == matcher.BELOW_LOW_THRESHOLD).sum())]

    return call, answer


def nms(case, arrays, device):
    """Returns NMS as the RPN calls it on its ranked boxes; it answers the kept ones."""
    level = torch.zeros(len(arrays['boxes']), dtype=torch.int64, device=device)

    @torch.no_grad()
    def call():
        kept = torchvision.ops.batched_nms(arrays['boxes'], arrays['scores'], level, 0.7)
        return kept[: case['limit']]

    return call, lambda: call().tolist()


KINDS = {'train': train, 'predict': predict, 'backbone': backbone, 'match': match, 'nms': nms}


class Worker:
    """One case at a time, on 'cpu' or 'cuda'."""

    def __init__(self, device):
        self.device, self.cuda = device, device == 'cuda'

    def prepare(self, case):
        """Sets up a case; returns the seconds of a call when warm."""
        self.call = self.answer = None  # their memory goes before the next case's comes
        gc.collect()
        self.resting = resident()[0]
        torch.manual_seed(0)
        with np.load(case['arrays']) as file:
            arrays = {name: torch.from_numpy(file[name]).to(self.device) for name in file.files}
        made = KINDS[case['kind']](case, arrays, self.device)
        self.call, self.answer = made if isinstance(made, tuple) else (made, lambda: None)
        for _ in range(WARM):
            self.call()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        forget_peak()
        return {'seconds': self.time(1)}

    def time(self, calls):
        """Returns the seconds of a call, the mean of so many."""
        synchronise = torch.cuda.synchronize if self.cuda else (lambda: None)
        synchronise()
        began = time.perf_counter()
        for _ in range(calls):
            self.call()
        synchronise()
        return (time.perf_counter() - began) / calls

    def report(self):
        """Returns the most memory of the calls, in bytes, and what they found, where it counts."""
        grown = max(resident()[1] - self.resting, 0)
        memory = torch.cuda.max_memory_allocated() if self.cuda else grown
        return {'memory': memory, 'answer': self.answer()}


def main():
    out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever else prints shall not speak to bench.py

    def say(answer):
        print(json.dumps(answer), file=out, flush=True)

    device = 'cuda' if sys.argv[1:] == ['gpu'] else 'cpu'
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    torch.set_num_threads(cores)
    torch.backends.cudnn.benchmark = True
    worker = Worker(device)
    where = torch.cuda.get_device_name() if device == 'cuda' else f'{cores} threads'
    say({'ready': f'torch {torch.__version__}, torchvision {torchvision.__version__}, {where}'})
    for line in sys.stdin:
        ((order, value),) = json.loads(line).items()
        try:
            if order == 'prepare':
                say(worker.prepare(value))
            elif order == 'run':
                say({'seconds': worker.time(value)})
            else:
                say(worker.report())
        except Exception as error:  # the driver tells the user, and goes on with other cases
            lines = str(error).strip().splitlines() or ['']
            say({'error': f'{type(error).__name__}: {lines[0]}'})


if __name__ == '__main__':
    main()
