#!/usr/bin/env python3
"""PatchCore in numpy, written from the paper and apart from Loupe's code, and the vectors that Loupe is tested against.

    pip install numpy onnxruntime
    python tests/reference/patchcore.py vectors tests/reference/patchcore
    python tests/reference/patchcore.py pictures tests/reference/patchcore --samples samples/plate     # needs opencv too
    python tests/reference/patchcore.py split --split SPLIT --root ROOT [--loupe target/release/loupe]   # needs opencv too

`vectors` runs every step on the committed pictures and writes what it gives; `split` says the image AUROC of a whole
split and, with --loupe, how far each raw score is from Loupe's. Followed are Roth et al. 2022 (arXiv 2106.08265): local
neighbourhoods averaged 3 x 3 (zero padding, always divided by 9), coarser maps brought to the finest grid by bilinear
interpolation with half-pixel centres, greedy k-centre coreset, Euclidean distance to the nearest vector, the image score
of equation 7 with b = 9, and a map by bilinear up-sampling and a Gaussian of 4 px at 224 px.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MODEL = os.path.join(ROOT, "models", "mobilenetv2", "model.onnx")
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
OUTPUTS = ["stride8", "stride16"]
NEIGHBOURS, PROJECTED = 9, 128
# The committed case: width and height of the input, share of the patches kept, seed.
SIZE, RATIO, SEED = (96, 64), 0.1, 0
TRAIN, TEST = ["good-0", "good-1", "good-2"], ["good-3", "scratch", "crack"]


class Wyrand:
    """wyrand (Wang Yi), from which seeds draw."""
    MASK = (1 << 64) - 1

    def __init__(self, seed):
        self.state = seed

    def u64(self):
        self.state = (self.state + 0x2D358DCCAA6C78A5) & self.MASK
        product = self.state * (self.state ^ 0x8BB84B93962EACC9)
        return (product & self.MASK) ^ (product >> 64)

    def below(self, n):
        """Lemire's multiply and shift."""
        while True:
            product = self.u64() * n
            low = product & self.MASK
            if low >= n or low >= (-n & self.MASK) % n:
                return product >> 64

    def unit(self):
        """0 to 1, f32."""
        while True:
            value = np.float32(self.u64() >> 1) * np.float32(2.0 ** -63)
            if value < 1:
                return value

    def gaussian(self):
        """Box and Muller."""
        radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - self.unit()))
        return radius * np.cos(np.float32(2 * math.pi) * self.unit())


def triangle(picture, size):
    """Pillow's BILINEAR in octets, as it was until version 12: along the rows first, a filter as wide as the reduction."""
    for axis, target in [(1, size[0]), (0, size[1])]:
        source = picture.shape[axis]
        if source == target:
            continue
        scale = source / target
        weights = np.zeros((target, source))
        for index in range(target):
            taps = np.maximum(0.0, 1.0 - np.abs(np.arange(source) + 0.5 - (index + 0.5) * scale) / max(scale, 1.0))
            weights[index] = taps / taps.sum()
        weights = np.floor(weights * 2 ** 22 + 0.5).astype(np.int64)
        out = (np.tensordot(weights, np.moveaxis(picture.astype(np.int64), axis, 0), 1) + (1 << 21)) >> 22
        picture = np.moveaxis(np.clip(out, 0, 255).astype(np.uint8), 0, axis)
    return picture


class Backbone:
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])

    def tensor(self, bgr, size):
        rgb = triangle(bgr, size)[..., ::-1].astype(np.float32) * np.float32(1 / 255)
        return np.ascontiguousarray(((rgb - MEAN) / STD).transpose(2, 0, 1)[None])

    def maps(self, bgr, size):
        """[channels, height, width] of each stride."""
        return [m[0] for m in self.session.run(OUTPUTS, {"images": self.tensor(bgr, size)})]


def pool(m):
    padded = np.pad(m, ((0, 0), (1, 1), (1, 1)))
    height, width = m.shape[1:]
    return sum(padded[:, y:y + height, x:x + width] for y in range(3) for x in range(3)) / np.float32(9)


def resized(m, height, width):
    """Bilinear, half-pixel centres, the last two axes."""
    for axis, target in ((-2, height), (-1, width)):
        source = m.shape[axis]
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, source - 1)
        share = (at - low).astype(np.float32)
        share = share.reshape([-1, 1] if axis == -2 else [-1])
        m = np.take(m, low, axis) * (1 - share) + np.take(m, high, axis) * share
    return m


def patches(maps):
    """[height x width, channels of all maps]."""
    height, width = max((m.shape[1:] for m in maps), key=lambda side: side[0] * side[1])
    joined = np.concatenate([resized(pool(m), height, width) for m in maps])
    return np.ascontiguousarray(joined.reshape(len(joined), -1).T, dtype=np.float32), (height, width)


def coreset(vectors, count, seed):
    """Indices in the order of choice."""
    random = Wyrand(seed)
    points = vectors
    if vectors.shape[1] > PROJECTED:
        scale = np.float32(1) / np.sqrt(np.float32(PROJECTED))
        matrix = np.float32([[random.gaussian() * scale for _ in range(PROJECTED)] for _ in range(vectors.shape[1])])
        points = vectors @ matrix
    chosen = [random.below(len(points))]
    nearest = np.full(len(points), np.inf, np.float32)
    while len(chosen) < count:
        difference = points - points[chosen[-1]]
        nearest = np.minimum(nearest, np.einsum("nd,nd->n", difference, difference))
        chosen.append(int(np.argmax(nearest)))
    return chosen


def distances_to(bank, found):
    """Of each of `found` to its nearest bank vector, and which that is; the difference is taken, no digits are lost."""
    squares = (found ** 2).sum(1)[:, None] + (bank ** 2).sum(1) - 2 * found @ bank.T
    nearest = np.argmin(squares, 1)
    return np.sqrt(((found - bank[nearest]) ** 2).sum(1)), nearest


def image_score(bank, found, distances, nearest):
    """Equation 7: the largest distance, less where its neighbourhood in the bank is dense."""
    worst = int(np.argmax(distances))
    star = nearest[worst]
    around = np.argsort(((bank - bank[star]) ** 2).sum(1), kind="stable")[:NEIGHBOURS]
    around = [star] + [index for index in around if index != star]
    to = np.sqrt(((bank[around] - found[worst]) ** 2).sum(1)).astype(np.float64)
    if len(to) < 2:
        return float(distances[worst])
    return float((1 - np.exp(to[0] - to.max()) / np.exp(to - to.max()).sum()) * distances[worst])


def score_map(distances, grid, size):
    width, height = size
    up = resized(distances.reshape(1, *grid), height, width)[0].astype(np.float64)
    sigma = 4.0 * max(size) / 224
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(up, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="reflect")
        up = sum(k * np.take(padded, range(i, i + up.shape[axis]), axis) for i, k in enumerate(kernel))
    return up


def bank_of(all_patches, ratio, seed):
    vectors = np.concatenate(all_patches)
    chosen = coreset(vectors, int(min(max(math.floor(len(vectors) * ratio + 0.5), 1), len(vectors))), seed)
    return vectors, chosen


def vectors(folder):
    backbone = Backbone()
    load = lambda name: np.load(os.path.join(folder, f"{name}.npy"))
    save = lambda name, values: np.save(os.path.join(folder, f"{name}.npy"), np.ascontiguousarray(values, dtype=np.float32))
    train = [patches(backbone.maps(load(f"picture-{name}"), SIZE))[0] for name in TRAIN]
    train, chosen = bank_of(train, RATIO, SEED)
    bank = train[chosen]
    save("train-patches", train)
    document = {"size_px": SIZE, "coreset_ratio": RATIO, "seed": SEED, "train": TRAIN, "coreset": chosen, "test": {}}
    # Longer descriptors are projected before the choice: made-up ones, so that nothing has to be stored.
    random = Wyrand(3)
    wide = np.float32([[random.unit() for _ in range(160)] for _ in range(120)])
    document["projected_coreset"] = coreset(wide, 24, 7)
    for name in TEST:
        picture = load(f"picture-{name}")
        maps = backbone.maps(picture, SIZE)
        found, grid = patches(maps)
        distances, nearest = distances_to(bank, found)
        document["test"][name] = {
            "distances": [round(float(d), 6) for d in distances],
            "nearest": nearest.tolist(),
            "score": image_score(bank, found, distances, nearest),
        }
        if name == TEST[-1]:
            document["detail"], document["grid"] = name, [grid[1], grid[0]]
            for output, m in zip(OUTPUTS, maps):
                save(f"features-{output}", m)
            save("patches", found)
            save("map", score_map(distances, grid, SIZE))
    with open(os.path.join(folder, "expected.json"), "w") as file:
        json.dump(document, file)
        file.write("\n")


def pictures(folder, samples):
    """100 x 75 px of the bundled plates, by whole-block means of the middle."""
    import cv2
    sources = {f"good-{i}": f"good/{7 * i:03}.jpg" for i in range(4)}
    sources.update({kind: f"test/{kind}/00.jpg" for kind in ("scratch", "crack")})
    for name, path in sources.items():
        bgr = cv2.imread(os.path.join(samples, path))[15:465, 20:620]
        small = bgr.reshape(75, 6, 100, 6, 3).astype(np.float64).mean((1, 3))
        np.save(os.path.join(folder, f"picture-{name}.npy"), np.round(small).astype(np.uint8))


def auroc(good, bad):
    good, bad = np.asarray(good)[:, None], np.asarray(bad)[None]
    return float((bad > good).mean() + 0.5 * (bad == good).mean())


def split(args):
    import cv2
    lists = json.load(open(args.split))
    backbone, size = Backbone(), (224, 224)
    read = lambda file: cv2.imread(os.path.join(args.root, file))
    all_patches = [patches(backbone.maps(read(file), size))[0] for file in lists["train"]]
    train, chosen = bank_of(all_patches, args.coreset, 0)
    bank = train[chosen]
    scores = []
    for entry in lists["test"]:
        found, _ = patches(backbone.maps(read(entry["file"]), size))
        scores.append(image_score(bank, found, *distances_to(bank, found)))
    by = lambda values, label: [s for s, e in zip(values, lists["test"]) if e["label"] == label]
    report = {"split": os.path.basename(args.split), "pictures": len(scores), "bank": len(bank), "auroc": auroc(by(scores, 0), by(scores, 1))}
    if args.loupe:
        theirs = loupe_scores(args, [os.path.join(args.root, e["file"]) for e in lists["test"]])
        report["loupe_auroc"] = auroc(by(theirs, 0), by(theirs, 1))
        report["auroc_difference"] = abs(report["auroc"] - report["loupe_auroc"])
        report["score_difference_max"] = float(np.abs(np.float64(scores) - theirs).max())
    print(json.dumps(report))


def loupe_scores(args, paths):
    """Raw scores of Loupe with a bank of its own, in the order of `paths`."""
    with tempfile.TemporaryDirectory() as work:
        run = lambda *command: subprocess.run([args.loupe, *command], check=True, capture_output=True, text=True, cwd=ROOT).stdout
        run("bank", "build", "--split", os.path.abspath(args.split), "--root", os.path.abspath(args.root), "--out", f"{work}/bank",
            "--coreset", str(args.coreset), "--model", "mobilenetv2")
        with open(f"{work}/r.toml", "w") as file:
            file.write(f'name = "r"\n[anomaly]\nbank = "{work}/bank"\nmodels = "{ROOT}/models"\n{args.recipe}\n')
        lines = run("inspect", "--json", "--artifacts", "none", "--recipe", f"{work}/r.toml", "--state", f"{work}/s",
                    *[os.path.abspath(path) for path in paths]).splitlines()
        by_source = {os.path.abspath(line["source"]): line["anomaly"]["score_raw"] for line in map(json.loads, lines)}
        return np.float64([by_source[os.path.abspath(path)] for path in paths])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("vectors")
    command.add_argument("folder")
    command.set_defaults(run=lambda args: vectors(args.folder))
    command = commands.add_parser("pictures")
    command.add_argument("folder")
    command.add_argument("--samples", required=True)
    command.set_defaults(run=lambda args: pictures(args.folder, args.samples))
    command = commands.add_parser("split")
    command.add_argument("--split", required=True)
    command.add_argument("--root", required=True)
    command.add_argument("--coreset", type=float, default=0.1)
    command.add_argument("--loupe", help="the program, to compare scores with")
    command.add_argument("--recipe", default="", help="lines for the [anomaly] table of Loupe's recipe")
    command.set_defaults(run=split)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
