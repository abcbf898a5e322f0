"""Scenes of parts for the finder: sprites of render.py strewn over a ground, and which pixel shows which of them.

Everything is drawn from one generator. Parts lie apart, side by side, or over each other; some are cut by the border.
"""
import cv2
import numpy as np

from views import FILL, disturb, ground, recolour


def grounds(rng, count, px, drawn=None):
    """Surfaces, u8 BGR [h, w, 3]; every second one by `drawn(rng)` if given."""
    pool = []
    for k in range(count):
        if drawn and k % 2:
            image = drawn(rng)
        else:
            image = cv2.resize(ground(rng, 256), (2 * px, 2 * px), interpolation=cv2.INTER_CUBIC)
        pool.append(image)
    return pool


def surface(rng, pool, px):
    g = pool[rng.integers(len(pool))]
    k = int(rng.integers(min(px, min(g.shape[:2])) * 3 // 4, min(g.shape[:2]) + 1))
    x, y = rng.integers(0, g.shape[1] - k + 1), rng.integers(0, g.shape[0] - k + 1)
    out = np.ascontiguousarray(np.rot90(cv2.resize(g[y : y + k, x : x + k], (px, px)), int(rng.integers(4))), "f4")
    if rng.random() < 0.5:
        clutter(rng, out, px)
    return out


def clutter(rng, image, px):
    """What is no part: rims, rails, seams, bands and stains."""
    for _ in range(int(rng.integers(1, 4))):
        tone = tuple(float(v) for v in np.clip(image.mean((0, 1)) * rng.uniform(0.3, 1.8), 0, 255))
        kind = rng.integers(4)
        if kind == 0:
            x, y = rng.integers(-px // 4, px, 2)
            w, h = rng.integers(px // 2, 2 * px, 2)
            cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), tone, int(rng.integers(1, 14)))
        elif kind == 1:
            p = rng.integers(-px // 2, px * 3 // 2, (2, 2))
            cv2.line(image, tuple(int(v) for v in p[0]), tuple(int(v) for v in p[1]), tone, int(rng.integers(1, 6)))
        elif kind == 2:
            at, wide = int(rng.integers(0, px)), int(rng.integers(4, px // 3))
            band = np.s_[at : at + wide] if rng.random() < 0.5 else np.s_[:, at : at + wide]
            image[band] = image[band] * rng.uniform(0.4, 1.5)
        else:
            stain = np.zeros((px, px), "f4")
            cv2.ellipse(stain, (int(rng.integers(px)), int(rng.integers(px))), tuple(int(v) for v in rng.integers(8, px // 3, 2)), float(rng.uniform(0, 180)), 0, 360, 1, -1)
            stain = cv2.GaussianBlur(stain, (0, 0), rng.uniform(4, 25)) * rng.uniform(-0.5, 0.25)
            image *= (1 + stain)[..., None]
    np.clip(image, 0, 255, out=image)


def sprite(rng, catalogue, px, px_per_mm=None):
    """A part turned and scaled: colour f4 [h, w, 3] times coverage, coverage and shadow f4 [h, w]. At `px_per_mm` it is
    as large as it would be there, without it of any size."""
    part = catalogue.parts[rng.integers(len(catalogue.parts))]
    views = catalogue.rendered[part]
    above = catalogue.above[part]  # as the camera over a tray looks
    k = int(above[rng.integers(len(above))]) if above and rng.random() < 0.75 else int(rng.integers(len(views)))
    view = views[k].astype("f4")
    view[..., :3] = view[..., 2::-1]
    if rng.random() < 0.6:
        view[..., :3] = recolour(rng, view[..., :3])
    longest = float(np.exp(rng.uniform(np.log(18), np.log(min(190, px * 0.7)))))
    scale = longest / (FILL * view.shape[0])
    if px_per_mm and np.isfinite(catalogue.px_per_mm[part][k]):
        true = px_per_mm / catalogue.px_per_mm[part][k]
        if 14 <= true * FILL * view.shape[0] <= px * 0.75:
            scale = true
    if scale < 0.6:  # no aliasing: first by areas, then turned
        n = max(2, round(1.5 * scale * view.shape[0]))
        view = np.dstack([cv2.resize(layers, (n, n), interpolation=cv2.INTER_AREA) for layers in (view[..., :3], view[..., 3:])])
        scale = 1 / 1.5
    n = int(view.shape[0] * scale * 1.42) + 2
    m = cv2.getRotationMatrix2D((view.shape[1] / 2, view.shape[0] / 2), rng.uniform(-180, 180), scale)
    m[:, 2] += n / 2 - view.shape[0] / 2
    colour = cv2.warpAffine(view[..., :3].copy(), m, (n, n), flags=cv2.INTER_LINEAR)
    rest = cv2.warpAffine(view[..., 3:].copy(), m, (n, n), flags=cv2.INTER_LINEAR) / 255
    return colour, rest[..., 0], rest[..., 1]


def strew(rng, catalogue, pool, px):
    """One scene: picture u8 BGR [px, px, 3], ids i4 [px, px] (0: ground, k: the k-th part), full areas in pixels."""
    image, ids, areas, boxes = surface(rng, pool, px), np.zeros((px, px), "i4"), [], []
    dark = rng.uniform(0.4, 0.95)
    limit = [0.0, 0.05, 0.5][rng.choice(3, p=(0.2, 0.25, 0.55))]  # most to learn from those that lie over each other
    wanted = int(rng.integers(0, 15) if limit < 0.1 else rng.integers(3, 19)) if rng.random() < 0.97 else 0
    # A camera over a tray sees all parts at one scale; parts of any size beside each other teach the rest
    px_per_mm = float(np.exp(rng.uniform(np.log(1.4), np.log(4.0)))) if rng.random() < 0.65 else None
    for _ in range(wanted):
        colour, cover, shadow = sprite(rng, catalogue, px, px_per_mm)
        solid = cover > 0.5
        if solid.sum() < 40:
            continue
        rows, columns = np.nonzero(solid.any(1))[0], np.nonzero(solid.any(0))[0]
        own = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        for _ in range(25):
            if limit > 0.1 and boxes and rng.random() < 0.6:
                o = boxes[rng.integers(len(boxes))]
                reach = (o[2:] - o[:2] + own[2:] - own[:2]) / 2 * 0.85
                centre = (o[:2] + o[2:]) / 2 + rng.uniform(-1, 1, 2) * reach
            else:
                centre = rng.uniform(-0.02, 1.02, 2) * px
            x, y = np.round(centre - (own[:2] + own[2:]) / 2).astype(int)
            box = own + [x, y, x, y]
            if all(shared(box, o) <= limit for o in boxes):
                break
        else:
            continue
        if paste(image, ids, len(areas) + 1, colour, cover, shadow * dark, x, y):
            areas.append(int(solid.sum()))
            boxes.append(box)
    return disturb(rng, np.clip(image, 0, 255).astype("u1")), ids, areas


def shared(a, b):
    """Intersection of two boxes over the smaller one."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def paste(image, ids, k, colour, cover, shadow, x, y):
    px, n = image.shape[0], cover.shape[0]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + n, px), min(y + n, px)
    if right <= left or bottom <= top:
        return False
    s, d = np.s_[top - y : bottom - y, left - x : right - x], np.s_[top:bottom, left:right]
    image[d] = colour[s] + ((1 - cover[s]) * (1 - shadow[s]))[..., None] * image[d]
    ids[d][cover[s] > 0.5] = k
    return True


def targets(ids, areas, stride):
    """Visible boxes f4 [n, 4] (x1, y1, x2, y2) of the parts of which 15 % and 30 px are seen, and for each cell the
    box it answers for: i8 [h/stride, w/stride], −1 ground, −2 a cell that is asked nothing."""
    boxes, cell = [], np.full((ids.shape[0] // stride, ids.shape[1] // stride), -1, "i8")
    centres = ids[stride // 2 :: stride, stride // 2 :: stride]
    for k, full in enumerate(areas, 1):
        seen = ids == k
        area = int(seen.sum())
        if area == 0:
            continue
        rows, columns = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], "f4")
        mine = centres == k
        if area < max(30, 0.15 * full):
            cell[mine] = -2
            continue
        yy, xx = (np.mgrid[0 : cell.shape[0], 0 : cell.shape[1]] + 0.5) * stride
        away = np.maximum(np.abs(xx - (box[0] + box[2]) / 2) / (box[2] - box[0]), np.abs(yy - (box[1] + box[3]) / 2) / (box[3] - box[1]))
        core = mine & (away < 0.3)
        inside = (xx > box[0]) & (xx < box[2]) & (yy > box[1]) & (yy < box[3])
        if core.sum() < 2:  # thin, hollow or tiny: the nearest cells inside the box
            free = np.where(inside & (cell < 0), away, 9.0)
            order = np.argsort(free, axis=None)[: max(2, int(core.sum()))]
            core |= (free < 9.0) & np.isin(np.arange(free.size).reshape(free.shape), order)
        cell[mine & (cell == -1) & (away < 0.4)] = -2
        cell[core] = len(boxes)
        boxes.append(box)
    return np.array(boxes, "f4").reshape(-1, 4), cell
