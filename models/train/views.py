"""Training pictures of catalogue parts: what is drawn from a part's views, and how it is disturbed.

A view is either rendered (`views/PART.npz` of render.py: colour, coverage and shadow, laid over a random ground here)
or a catalogue picture (`templates.csv`: file, part_num; a photo or render on an even ground, used with its own).
A picture is never mirrored: a left wing is not a right wing.
"""
import csv
import os
from collections import defaultdict

import cv2
import numpy as np

FILL = 0.86  # of a rendered view's side that the part takes
PAD = 114  # grey around a crop that is not square; the same as the model manifest's pad_value


class Catalogue:
    """Views by part, in memory, of one folder of renders or of several. `parts[i]` is the name of class i."""

    def __init__(self, rendered=(), templates=None):
        self.rendered, self.px_per_mm, pictures = defaultdict(list), defaultdict(list), defaultdict(list)
        self.above = defaultdict(list)  # which of a part's rendered views look from straight above
        for folder in [rendered] if isinstance(rendered, str) else rendered or ():
            for name in sorted(os.listdir(folder)):
                if name.endswith(".npz"):
                    part, found = name[:-4], np.load(f"{folder}/{name}")
                    views = list(found["views"])
                    self.rendered[part] += views
                    self.above[part] += range(len(self.rendered[part]) - len(views) // 4, len(self.rendered[part]))  # render.py's last
                    self.px_per_mm[part] += list(found["px_per_mm"] if "px_per_mm" in found else np.full(len(views), np.nan))
        if templates:
            root = os.path.dirname(templates)
            with open(templates, newline="") as f:
                for row in csv.DictReader(f):
                    image = cv2.imread(f"{root}/{row['file']}")
                    if image is None:
                        raise SystemExit(f"{row['file']}: not a picture")
                    pictures[row["part_num"]].append(image)
        self.pictures = dict(pictures)
        self.parts = sorted(set(self.rendered) | set(self.pictures))
        if len(self.parts) < 2:
            raise SystemExit("training needs views of at least two parts")
        self.index = [(c, True, k) for c, p in enumerate(self.parts) for k in range(len(self.rendered.get(p, ())))]
        self.index += [(c, False, k) for c, p in enumerate(self.parts) for k in range(len(self.pictures.get(p, ())))]

    def sprite(self, rng, entry):
        """(colour u8 BGR, coverage u8, shadow u8, has its own ground)"""
        c, rendered, k = entry
        if rendered:
            view = self.rendered[self.parts[c]][k]
            return view[..., 2::-1], view[..., 3], view[..., 4], False
        image = self.pictures[self.parts[c]][k]
        return image, foreground(image), np.zeros(image.shape[:2], "u1"), True


def foreground(image):
    """255 where the picture differs from the colour of its border."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(int)
    away = np.abs(image.astype(int) - np.median(border, 0)).max(2) > 10
    return (away * 255).astype("u1") if away.sum() > 20 else np.full(image.shape[:2], 255, "u1")


def noise_field(rng, size, cells, octaves=4):
    out, weight = np.zeros((size, size), "f4"), 1.0
    for k in range(octaves):
        n = min(size, max(2, int(cells * 2**k)))
        out += weight * cv2.resize(rng.random((n, n), dtype="f4"), (size, size), interpolation=cv2.INTER_CUBIC)
        weight *= rng.uniform(0.4, 0.7)
    return (out - out.min()) / (np.ptp(out) + 1e-6)


def ground(rng, size=192):
    """A random surface, u8 BGR: even, grained, striped, dotted or blotched, lit from one side."""
    a = rng.uniform(0.03, 0.97) * rng.uniform(0.8, 1.0, 3)
    if rng.random() < 0.35:
        a = rng.uniform(0.05, 0.95, 3)
    kind = rng.integers(5)
    field = noise_field(rng, size, rng.integers(2, 6))
    yy, xx = np.mgrid[0:size, 0:size].astype("f4") / size
    spread = rng.uniform(0.05, 0.35)
    if kind == 1:
        field = 0.5 + 0.5 * np.sin(field * rng.uniform(8, 45) + yy * rng.uniform(0, 30))
    elif kind == 2:
        field = 0.5 + 0.5 * np.sin(xx * rng.uniform(40, 150) + yy * rng.uniform(-20, 20))
        spread *= 0.4
    elif kind == 3:
        p = rng.uniform(50, 160)
        field = ((np.sin(xx * p) * np.sin(yy * p)) > 0.5).astype("f4")
        spread *= 0.5
    elif kind == 4:
        spread = rng.uniform(0.3, 0.8)
    tint = rng.normal(0, 0.04, 3) if kind != 4 else rng.normal(0, 0.3, 3)
    out = a + ((field - 0.5) * spread)[..., None] * (1 + tint) + rng.normal(0, rng.uniform(0, 0.03), (size, size, 1))
    if rng.random() < 0.2:
        p, q = rng.integers(0, size, (2, 2))
        cv2.line(out, tuple(int(v) for v in p), tuple(int(v) for v in q), tuple(float(v) for v in a * rng.uniform(0.5, 1.4)), int(rng.integers(1, 8)))
    angle = rng.uniform(0, 2 * np.pi)
    out = out * (1 + (np.cos(angle) * (xx - 0.5) + np.sin(angle) * (yy - 0.5)) * rng.uniform(0, 0.4))[..., None]
    return (np.clip(out, 0, 1) * 255).astype("u1")


def placement(rng, coverage, px, calm):
    """Matrix sprite → picture after a random turn, tilt and box, the box in the picture, and its longer side in the sprite."""
    h, w = coverage.shape
    hull = cv2.convexHull(cv2.findNonZero((coverage > 127).astype("u1"))).astype("f4")
    turn = rng.uniform(-180, 180) if rng.random() < (0.2 if calm else 0.5) else rng.normal(0, 8)
    m = np.vstack([cv2.getRotationMatrix2D((w / 2, h / 2), turn, 1.0), [0, 0, 1]])
    if rng.random() < 0.6:
        corner = np.float32([[0, 0], [w, 0], [w, h], [0, h]])
        jitter = rng.uniform(-0.05, 0.05, (4, 2)).astype("f4") * [w, h]
        m = cv2.getPerspectiveTransform(corner, (corner + jitter).astype("f4")) @ m
    points = cv2.perspectiveTransform(hull, m)[:, 0]
    lo, hi = points.min(0), points.max(0)
    size = hi - lo
    slack = rng.normal(0.0, 0.03, 4) if rng.random() < 0.8 else rng.uniform(-0.1, 0.12, 4)
    lo, hi = lo - size * slack[:2], hi + size * slack[2:]
    size = np.maximum(hi - lo, 2)
    scale = px / size.max()
    pad = (px - size * scale) / 2
    m = np.array([[scale, 0, pad[0] - lo[0] * scale], [0, scale, pad[1] - lo[1] * scale], [0, 0, 1]]) @ m
    middle = np.float32([[[w / 2, h / 2]], [[w / 2 + 8, h / 2]], [[w / 2, h / 2 + 8]]])
    o, x, y = cv2.perspectiveTransform(middle, m)[:, 0]
    grown = np.sqrt(abs((x - o)[0] * (y - o)[1] - (x - o)[1] * (y - o)[0])) / 8
    return m, (np.round(pad).astype(int), np.round(px - pad).astype(int)), px / max(grown, 1e-6)


def disturb(rng, image):
    """What camera, light and compression do to a picture; u8 in and out."""
    px = image.shape[0]
    if rng.random() < 0.5:
        k = rng.uniform(0.4, 0.9)
        image = cv2.resize(cv2.resize(image, None, fx=k, fy=k, interpolation=cv2.INTER_AREA), (px, px))
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.25, 1.1))
    if rng.random() < 0.2:
        n = int(rng.integers(3, 6))
        kernel = np.zeros((n, n), "f4")
        kernel[n // 2] = 1
        kernel = cv2.warpAffine(kernel, cv2.getRotationMatrix2D((n / 2 - 0.5, n / 2 - 0.5), rng.uniform(0, 180), 1), (n, n))
        image = cv2.filter2D(image, -1, kernel / max(kernel.sum(), 1e-3))
    levels = np.linspace(0, 1, 256, dtype="f4")[:, None] ** rng.uniform(0.7, 1.4)
    levels = ((levels - 0.5) * rng.uniform(0.7, 1.25) + 0.5 + rng.uniform(-0.1, 0.1)) * rng.uniform(0.9, 1.1, 3)
    image = cv2.LUT(image, (np.clip(levels, 0, 1) * 255).astype("u1").reshape(1, 256, 3))
    if rng.random() < 0.7:
        grain = cv2.resize(rng.normal(0, 1, (px // 2, px // 2)).astype("f4"), (px, px)) + rng.normal(0, 1, (px, px)).astype("f4")
        image = np.clip(image + grain[..., None] * (rng.uniform(0.5, 7)), 0, 255).astype("u1")
    if rng.random() < 0.6:
        image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 93))])[1], 1)
    return image


def recolour(rng, colour):
    """Another moulding colour: channels exchanged and scaled, sometimes greyed."""
    out = colour.astype("f4")
    if rng.random() < 0.35:
        out = out[..., rng.permutation(3)]
    if rng.random() < 0.3:
        out = out * rng.uniform(0.5, 1.4, 3).astype("f4")
    if rng.random() < 0.15:
        out = np.repeat(out.mean(2, keepdims=True), 3, 2)
    return np.clip(out, 0, 255)


def neighbour(rng, catalogue, image):
    """Another part that reaches in over the border, as in a heap; u8 in and out."""
    px = image.shape[0]
    part = catalogue.parts[rng.integers(len(catalogue.parts))]
    if part not in catalogue.rendered:
        return image
    view = catalogue.rendered[part][rng.integers(len(catalogue.rendered[part]))]
    size = view.shape[0]
    m = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(-180, 180), px * rng.uniform(0.3, 1.0) / size)
    along, away = rng.uniform(0, px), rng.uniform(-0.12, 0.25) * px
    centre = [(along, -away), (along, px + away), (-away, along), (px + away, along)][rng.integers(4)]
    m[:, 2] += np.array(centre) - size / 2
    over = cv2.warpAffine(np.ascontiguousarray(view[..., 3::-1]), m, (px, px)).astype("f4")  # coverage, b, g, r
    if over[..., 0].mean() > 60:  # hides too much of what is asked
        return image
    over = over[..., [1, 2, 3, 0]]
    return np.clip(recolour(rng, over[..., :3]) + image * (1 - over[..., 3:] / 255), 0, 255).astype("u1")


def picture(rng, catalogue, entry, px, grounds):
    """One training picture, [px, px, 3] u8 BGR, letterboxed as a query is."""
    return drawn(rng, catalogue, entry, px, grounds)[0]


def drawn(rng, catalogue, entry, px, grounds):
    """A training picture and the longer side of its box, mm; that is not a number where the view's scale is not known."""
    colour, coverage, shadow, own_ground = catalogue.sprite(rng, entry)
    m, (lo, hi), long_px = placement(rng, coverage, px, own_ground)
    size = (px, px)
    if own_ground:
        edge = tuple(int(v) for v in colour[0, 0])
        image = cv2.warpPerspective(colour, m, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=edge)
        if rng.random() < 0.4:
            mask = cv2.warpPerspective(cv2.erode(coverage, np.ones((2, 2), "u1")), m, size)[..., None] / 255.0
            image = (image * mask + some_ground(rng, grounds, px) * (1 - mask)).astype("u1")
        if rng.random() < 0.5:
            image = recolour(rng, image).astype("u1")
    else:
        view = np.dstack([colour, coverage])
        view = cv2.warpPerspective(view, m, size).astype("f4")
        dark = cv2.warpPerspective(shadow, m, size).astype("f4")[..., None] / 255
        alpha = view[..., 3:] / 255
        under = some_ground(rng, grounds, px) * (1 - dark * rng.uniform(0.4, 0.95))
        image = (recolour(rng, view[..., :3]) if rng.random() < 0.6 else view[..., :3]) + (1 - alpha) * under
        image = np.clip(image, 0, 255).astype("u1")
    crowd = rng.random()
    if crowd < 0.2 and catalogue.rendered:
        for _ in range(int(rng.integers(1, 3))):
            image = neighbour(rng, catalogue, image)
    elif crowd < 0.3:  # something even over a corner of the box
        w, h = (rng.uniform(0.1, 0.35, 2) * px).astype(int)
        x, y = rng.integers(0, px - w), rng.integers(0, px - h)
        if rng.random() < 0.5:
            x = int(rng.choice([0, px - w]))
        else:
            y = int(rng.choice([0, px - h]))
        image[y : y + h, x : x + w] = some_ground(rng, grounds, px)[y : y + h, x : x + w]
    image = disturb(rng, image)
    boxed = np.full_like(image, PAD)
    boxed[lo[1] : hi[1], lo[0] : hi[0]] = image[lo[1] : hi[1], lo[0] : hi[0]]
    c, rendered, k = entry
    return boxed, long_px / catalogue.px_per_mm[catalogue.parts[c]][k] if rendered else np.nan


def some_ground(rng, grounds, px):
    g = grounds[rng.integers(len(grounds))]
    k = int(rng.integers(px // 2, min(g.shape[0], 2 * px)))
    x, y = rng.integers(0, g.shape[0] - k + 1, 2)
    out = cv2.resize(g[y : y + k, x : x + k], (px, px))
    return np.rot90(out, int(rng.integers(4)))


def letterbox(image, box, px):
    """A query's crop as the engine makes it: scaled as a whole, centred on grey. u8 BGR."""
    x1, y1, x2, y2 = box
    crop = image[y1:y2, x1:x2]
    k = px / max(crop.shape[:2])
    w, h = max(1, round(crop.shape[1] * k)), max(1, round(crop.shape[0] * k))
    out = np.full((px, px, 3), PAD, "u1")
    x, y = (px - w) // 2, (px - h) // 2
    out[y : y + h, x : x + w] = cv2.resize(crop, (w, h), interpolation=cv2.INTER_AREA if k < 1 else cv2.INTER_LINEAR)
    return out
