"""The other side of the benchmark: torchvision's RPN, timed when asked; needs no JAX.

The benchmark starts it with another Python, and both speak JSON, a line each way:

    it begins with            {"ready": "torch 2.13.0, .."}
    {"prepare": CASE}         {}
    {"run": CALLS}            {"seconds": 1.1}     of a call
    {"report": true}          {"memory": BYTES, "answer": [..]}

Whatever fails in a case is {"error": "one line"}, and the next case may still work. torch is used
as it is at its best: all cores, no gradients where none are wanted, frozen parameters without
gradients, frozen norms without arithmetic in the backward pass, the fused SGD, cuDNN's fastest.
"""

import collections
import gc
import json
import os
import sys
import time

import numpy as np
import torch
import torchvision
from torchvision.models.detection import _utils, backbone_utils, image_list, rpn

SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)


class Network(torch.nn.Module):
    """torchvision's ResNet with frozen norms, cut after a stage or with a pyramid, and its RPN.

    case has the depth, the stage ('c4', 'dc5', 'fpn'), how many stages are frozen, and the numbers
    of boxes before and after NMS. The tensors of body are called as those of the whole ResNet.
    """

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
        frozen, (before, after) = case['frozen_stages'], case['proposals']  # NMS
        self.is_pyramid = case['stage'] == 'fpn'
        if self.is_pyramid:
            self.body = backbone_utils._resnet_fpn_extractor(net, 5 - frozen)
            sizes, channels = tuple((size,) for size in SIZES), 256
        else:
            parts = list(net.named_children())[: -3 if case['stage'] == 'c4' else -2]
            self.body = torch.nn.Sequential(collections.OrderedDict(parts))
            for _, child in parts[: 3 + frozen if frozen else 0]:  # the stem is four
                child.requires_grad_(False)
            sizes, channels = (SIZES,), 1024 if case['stage'] == 'c4' else 2048
        self.rpn = rpn.RegionProposalNetwork(
            rpn.AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            rpn.RPNHead(channels, len(sizes[0]) * len(RATIOS)),
            *(0.7, 0.3, 256, 0.5),
            {'training': 2000, 'testing': before},  # of training as torchvision's own
            {'training': 2000, 'testing': after},
            0.7,
        )

    def forward(self, images, targets=None):
        maps = self.body(images)
        return self.propose(maps if self.is_pyramid else {'0': maps}, images, targets)

    def propose(self, features, images, targets=None):
        """Returns the proposals of each image, and the losses by name."""
        sizes = [tuple(images.shape[2:])] * len(images)
        return self.rpn(image_list.ImageList(images, sizes), features, targets)


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


def predict(case, arrays, device, part=lambda model: model):
    """Returns the function from images to what a part of the network makes of them."""
    model, images, precision = network(case, device)
    chosen = part(model.eval())

    @torch.no_grad()
    def call():
        with precision():
            chosen(images)

    return call


def backbone(case, arrays, device):
    """Returns the function from images to feature maps."""
    return predict(case, arrays, device, lambda model: model.body)


def match(case, arrays, device):
    """Returns matching of the RPN; it answers how many anchors are foreground and background."""
    matcher = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)

    def call():
        matched = matcher(torchvision.ops.box_iou(arrays['objects'], arrays['anchors']))
        return lambda: [int((matched >= 0).sum()), int((matched == -1).sum())]

    return call


def nms(case, arrays, device):
    """Returns NMS as the RPN calls it on its ranked boxes; it answers the kept ones."""
    level = torch.zeros(len(arrays['boxes']), dtype=torch.int64, device=device)

    def call():
        kept = torchvision.ops.batched_nms(arrays['boxes'], arrays['scores'], level, 0.7)
        return kept[: case['limit']].tolist

    return call


KINDS = {'train': train, 'predict': predict, 'backbone': backbone, 'match': match, 'nms': nms}


class Worker:
    """One case at a time, on 'cpu' or 'cuda'; its methods are the orders."""

    def __init__(self, device):
        self.device = device

    def prepare(self, case):
        self.call = None  # its memory goes first
        gc.collect()
        torch.manual_seed(0)
        with np.load(case['arrays']) as file:
            arrays = {name: torch.from_numpy(file[name]).to(self.device) for name in file.files}
        self.call = KINDS[case['kind']](case, arrays, self.device)
        self.call()  # what it cannot do it refuses now
        return {}

    def run(self, calls):
        if self.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            self.call()
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return {'seconds': (time.perf_counter() - began) / calls}

    def report(self, _):
        memory = torch.cuda.max_memory_allocated() if self.device == 'cuda' else None
        answer = self.call()
        return {'memory': memory, 'answer': answer() if callable(answer) else None}


def main():
    out = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever else prints shall not speak to the benchmark
    worker = Worker('cuda' if sys.argv[1:] == ['gpu'] else 'cpu')
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    where = f'{torch.get_num_threads()} threads'
    where = torch.cuda.get_device_name() if worker.device == 'cuda' else where
    reply = {'ready': f'torch {torch.__version__}, torchvision {torchvision.__version__}, {where}'}
    print(json.dumps(reply), file=out, flush=True)
    for line in sys.stdin:
        ((order, value),) = json.loads(line).items()
        try:
            reply = getattr(worker, order)(value)
        except Exception as error:  # the benchmark tells the user, and goes on with other cases
            reply = {'error': f'{type(error).__name__}: {error}'.splitlines()[0]}
        print(json.dumps(reply), file=out, flush=True)


if __name__ == '__main__':
    main()
