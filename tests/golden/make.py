"""Makes the golden files again: what torch and torchvision compute of the stored inputs.

    python tests/golden/make.py FOLDER [NAME ..]

writes NAME.npz, or all of them, and torch's files into FOLDER, and prints how far each figure is
from the stored one. Needs torch and torchvision; the stored files were made with 2.13 and 0.28.
"""

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torchvision
from formula import formula
from torchvision.models.detection import _utils, image_list, rpn

GOLDEN = Path(__file__).parent
SIZES, ASPECT_RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
CANVAS, STRIDE = (608, 800), 16
ANCHORS = 'sizes', 'aspect_ratios', 'image', 'stride'  # what a case of anchors is made of


def network(head=None, sizes=SIZES, aspect_ratios=ASPECT_RATIOS, **keywords):
    """Returns torchvision's RPN of one level; only `training.npz` needs a head."""
    generator = rpn.AnchorGenerator((tuple(sizes),), (tuple(aspect_ratios),))
    limit = {'training': 1000, 'testing': 1000}
    settings = {'fg_iou_thresh': 0.7, 'bg_iou_thresh': 0.3, 'positive_fraction': 0.5}
    settings |= {'batch_size_per_image': 256, 'nms_thresh': 0.7}
    settings |= {'pre_nms_top_n': limit, 'post_nms_top_n': limit}
    return rpn.RegionProposalNetwork(generator, head, **settings | keywords)


def grid(generator, image, stride):
    """Returns the anchors of one image with a feature map of this stride."""
    feature_map = torch.zeros(1, 1, *(-(-side // stride) for side in image))
    images = image_list.ImageList(torch.zeros(1, 3, *image), [tuple(image)])
    return generator(images, [feature_map])[0]


def canvas_anchors(network):
    return grid(network.anchor_generator, CANVAS, STRIDE)


def anchors(stored):
    """Anchors of one cell, and the first, the last and the sum of all of an image."""
    figures = {}
    for case in sorted({key.partition('.')[0] for key in stored}):
        given = {key: stored[f'{case}.{key}'] for key in ANCHORS}
        sizes, ratios, image, stride = (value.tolist() for value in given.values())
        generator = network(sizes=sizes, aspect_ratios=ratios).anchor_generator
        boxes = grid(generator, image, stride).numpy()
        made = given | {
            'base': generator.cell_anchors[0].numpy(),
            'grid_shape': np.array(boxes.shape),
            'grid_head': boxes[:200],
            'grid_tail': boxes[-200:],
            'grid_sum': boxes.astype(np.float64).sum(0),
        }
        figures |= {f'{case}.{key}': value for key, value in made.items()}
    return figures


def coding(stored):
    """Deltas of boxes, boxes of deltas, and overlaps."""
    coder = _utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    boxes, base, random = (torch.tensor(stored[k]) for k in ('boxes', 'anchors', 'random_deltas'))
    return stored | {
        'deltas': coder.encode_single(boxes, base).numpy(),
        'decoded': coder.decode_single(random, base).numpy(),
        'iou': torchvision.ops.box_iou(base[:100], boxes[:80]).numpy(),
    }


def match(stored):
    """The label of every anchor, and the deltas to learn at the foreground."""
    figures, net = dict(stored), network()
    boxes = canvas_anchors(net)
    for case in [key.removesuffix('.boxes') for key in stored if key.endswith('.boxes')]:
        targets = [{'boxes': torch.tensor(stored[f'{case}.boxes'])}]
        labels, matched = net.assign_targets_to_anchors([boxes], targets)
        deltas = net.box_coder.encode(matched, [boxes])[0][labels[0] == 1]
        figures[f'{case}.labels'] = labels[0].numpy().astype(np.int8)
        figures[f'{case}.positive_target_deltas'] = deltas.numpy()
    return figures


def loss(stored):
    """Both losses of the sampled anchors of two images, and their gradients there."""
    net = network()
    boxes = canvas_anchors(net)
    sampled = torch.tensor(stored['sampled_labels'])
    net.fg_bg_sampler = lambda labels: (list(sampled == 1), list(sampled == 0))
    targets = [{'boxes': torch.tensor(stored[f'boxes{image}'])} for image in range(2)]
    labels, matched = net.assign_targets_to_anchors([boxes] * 2, targets)
    wanted = net.box_coder.encode(matched, [boxes] * 2)
    logits, deltas = (torch.tensor(stored[key]).float() for key in ('logits', 'deltas'))
    logits.requires_grad_(), deltas.requires_grad_()
    losses = net.compute_loss(logits.reshape(-1, 1), deltas.reshape(-1, 4), labels, wanted)
    sum(losses).backward()
    return stored | {
        'loss_objectness': losses[0].detach().numpy(),
        'loss_rpn_box_reg': losses[1].detach().numpy(),
        'grad_logits_at_sampled': logits.grad[sampled >= 0].numpy(),
        'grad_deltas_at_sampled': deltas.grad[sampled >= 0].numpy(),
    }


def nms(stored):
    """The boxes that are kept, best first."""
    figures = dict(stored)
    for case in sorted({key.partition('.')[0] for key in stored}):
        boxes, scores = (torch.tensor(stored[f'{case}.{key}']) for key in ('boxes', 'scores'))
        kept = torchvision.ops.nms(boxes, scores, float(stored[f'{case}.iou_threshold']))
        figures[f'{case}.keep'] = kept.numpy()
    return figures


def proposals(stored):
    """Proposals of two images of different sizes on one canvas."""
    net, figures = network(), dict(stored)
    net.eval()
    boxes = canvas_anchors(net)
    logits, deltas = (torch.tensor(stored[key]).float() for key in ('logits', 'deltas'))
    decoded = net.box_coder.decode(deltas.reshape(-1, 4), [boxes] * 2).reshape(2, -1, 4)
    sizes = [tuple(size) for size in stored['sizes'].tolist()]
    kept = net.filter_proposals(decoded, logits.reshape(-1, 1), sizes, [len(boxes)])
    for image in range(2):
        figures[f'{image}.boxes'], figures[f'{image}.scores'] = (k[image].numpy() for k in kept)
    return figures


def fill(module, prefix=''):
    """Gives every tensor of a module the weights of its name."""
    state = module.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if tensor.dim()}
    module.load_state_dict(
        state | {k: torch.tensor(formula(prefix + k, shape)) for k, shape in shapes.items()}
    )
    return module


def resnet(depth, **keywords):
    return fill(getattr(torchvision.models, f'resnet{depth}')(weights=None, **keywords))


def stages(net, x, last):
    """Returns the outputs of conv2 to conv`last`."""
    outputs = []
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    for layer in range(1, last):
        x = getattr(net, f'layer{layer}')(x)
        outputs.append(x)
    return outputs


@torch.no_grad()
def backbone(stored):
    """Feature maps of ResNet-50 and ResNet-101, with conv5 dilated too."""
    figures = dict(stored)
    for depth in (50, 101):
        image = torch.tensor(stored[f'{depth}.image'])
        net = resnet(depth).eval()
        maps = stages(net, image, 5)
        dilated = resnet(depth, replace_stride_with_dilation=[False, False, True]).eval()
        maps = dict(zip(('c3', 'c4', 'c5'), maps[1:], strict=True))
        maps['dc5'] = stages(dilated, image, 5)[-1]
        figures |= {f'{depth}.{name}': value.numpy() for name, value in maps.items()}
    return figures


def training(stored):
    """Losses before each of six steps of ResNet-101's conv4 and head, and weights after them.

    Every labelled anchor is used, so that nothing is random.
    """
    net = resnet(101, norm_layer=torchvision.ops.FrozenBatchNorm2d)
    head = fill(rpn.RPNHead(1024, len(stored['sizes']) * 3), 'rpn.head.')
    sizes = stored['sizes'].tolist()
    proposer = network(head, sizes, batch_size_per_image=10**6)
    learning = [*net.layer3.parameters(), *head.parameters()]
    settings = {key: float(stored[key]) for key in ('lr', 'momentum', 'weight_decay')}
    optimizer = torch.optim.SGD(learning, **settings)
    image = torch.tensor(stored['image'])
    targets = [{'boxes': torch.tensor(stored[f'boxes{i}'])} for i in range(2)]
    images = image_list.ImageList(image, [tuple(image.shape[2:])] * 2)
    history = []
    for _ in stored['losses']:
        features = OrderedDict(c4=stages(net, image, 4)[-1])
        _, losses = proposer(images, features, targets)
        history.append([losses[name].item() for name in ('loss_objectness', 'loss_rpn_box_reg')])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    tensors = {f'rpn.head.{name}': value for name, value in head.state_dict().items()}
    tensors |= net.state_dict()
    names = [name for name in stored if name in tensors]
    figures = {name: tensors[name].detach().numpy().reshape(-1)[:512] for name in names}
    return stored | figures | {'losses': np.float32(history)}


def torch_tensors():
    """Returns tensors of every kind that a file of torch may hold."""
    numbers = torch.arange(24.0)
    return OrderedDict(
        {
            'conv1.weight': torch.arange(48.0).reshape(4, 3, 2, 2) / 7,
            'turned': numbers.reshape(4, 6).T,
            'part': numbers[5:9],
            'strided': numbers[1::5],
            'half': torch.tensor([0.5, -2.25, 65504], dtype=torch.float16),
            'brain': torch.tensor([0.5, -2.25, 3e38], dtype=torch.bfloat16),
            'double': torch.tensor([[0.1], [1e300]], dtype=torch.float64),
            'bn1.num_batches_tracked': torch.tensor(7),
            'empty': torch.zeros(0, 3),
            'scalar': torch.tensor(2.5),
            'parameter': torch.nn.Parameter(torch.tensor([1.0, 2.0])),
        }
    )


def write_torch(folder):
    """Writes torch.pth, torch_checkpoint.pth, torch_legacy.pth, and their values as torch.npz."""
    tensors = torch_tensors()
    momentum = {'momentum_buffer': tensors['turned'].T.reshape(-1)}
    optimizer = {'state': {0: momentum}, 'param_groups': [{'lr': 0.1, 'params': [0]}]}
    checkpoint = {'model': tensors, 'optimizer': optimizer, 'iteration': 90000}
    torch.save(tensors, folder / 'torch.pth')
    torch.save(checkpoint, folder / 'torch_checkpoint.pth')
    torch.save(tensors, folder / 'torch_legacy.pth', _use_new_zipfile_serialization=False)
    values = {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}
    np.savez(folder / 'torch.npz', **values)


MAKERS = (anchors, coding, match, loss, nms, proposals, backbone, training)


def make(maker):
    """Returns (figures, stored ones) of one file."""
    with np.load(GOLDEN / f'{maker.__name__}.npz') as file:
        stored = dict(file)
    return {
        key: np.asarray(value, stored[key].dtype) for key, value in maker(stored).items()
    }, stored


def main():
    names = {maker.__name__: maker for maker in MAKERS}
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', type=Path, help='where the files are written')
    parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(names))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_torch(arguments.folder)
    for name in arguments.names or names:
        figures, stored = make(names[name])
        np.savez_compressed(arguments.folder / f'{name}.npz', **figures)
        for key, value in figures.items():
            if value.shape != stored[key].shape:
                print(f'{name}.npz {key}: {value.shape} instead of {stored[key].shape}')
            elif value.size and (distance := np.abs(value - stored[key].astype(float)).max()):
                print(f'{name}.npz {key}: differs by {distance:.1e} of {np.abs(value).max():.1e}')


if __name__ == '__main__':
    main()
