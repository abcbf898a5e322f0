"""The same job in plain Python: onnxruntime + opencv + faiss + sqlite3, one frame after the other.

Each frame is decoded, measured (focus, noise, contrast, brightness, saturation, clipping, perceptual hash), its boxes
are embedded and matched exhaustively (or the frame is scored by PatchCore), and one row is committed with
synchronous=FULL. The boxes are given: what Loupe's locator costs, this script does not pay.

Prints one JSON object: frames, wall_ms, and the milliseconds of each stage.
"""
import argparse
import hashlib
import json
import math
import os
import sqlite3
import tempfile
import time
import tomllib

import cv2
import faiss
import numpy as np
import onnxruntime


class Clock:
    def __init__(self):
        self.ms = {}
        self.last = time.perf_counter()

    def lap(self, stage=None):
        now = time.perf_counter()
        if stage:
            self.ms[stage] = self.ms.get(stage, 0.0) + (now - self.last) * 1000
        self.last = now


class Model:
    def __init__(self, folder, spin):
        with open(os.path.join(folder, "manifest.toml"), "rb") as file:
            self.manifest = tomllib.load(file)
        options = onnxruntime.SessionOptions()
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(folder, self.manifest["file"])
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.manifest["input"]
        self.names = {}
        for output in self.manifest["outputs"]:
            self.names.setdefault(output["role"], []).append(output["name"])

    def tensor(self, bgr):
        rgb = bgr[..., ::-1] if self.input["color"] == "rgb" else bgr
        x = rgb.astype(np.float32) * self.input["scale"]
        x = (x - np.array(self.input["mean"], np.float32)) / np.array(self.input["std"], np.float32)
        return np.ascontiguousarray(x.transpose(2, 0, 1)[None], dtype=np.float32)

    def embed(self, bgr, side):
        height, width = bgr.shape[:2]
        scale = side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        canvas = np.full((side, side, 3), 127, np.uint8)
        left, top = (side - size[0]) // 2, (side - size[1]) // 2
        canvas[top:top + size[1], left:left + size[0]] = small
        vector = self.session.run(self.names["embedding"], {self.input["name"]: self.tensor(canvas)})[0]
        return vector / np.linalg.norm(vector, axis=1, keepdims=True)

    def patches(self, bgr, size):
        small = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
        maps = self.session.run(self.names["features"], {self.input["name"]: self.tensor(small)})
        maps = [m[0].transpose(1, 2, 0) for m in maps]
        height, width = maps[0].shape[:2]
        pooled = []
        for m in maps:
            # cv2.blur handles any number of channels when they are split into planes.
            m = np.dstack([cv2.blur(np.ascontiguousarray(m[..., c]), (3, 3), borderType=cv2.BORDER_CONSTANT) for c in range(m.shape[2])])
            if m.shape[:2] != (height, width):
                m = np.dstack([cv2.resize(np.ascontiguousarray(m[..., c]), (width, height)) for c in range(m.shape[2])])
            pooled.append(m)
        return np.ascontiguousarray(np.concatenate(pooled, axis=2).reshape(height * width, -1)), (width, height)


def quality(bgr):
    gray = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    noise = np.abs(cv2.filter2D(gray, cv2.CV_32F, kernel)).mean() * math.sqrt(math.pi / 2) / 6
    mean, deviation = cv2.meanStdDev(gray)
    saturation = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)[..., 1].mean() / 255
    clipped = float(np.mean((gray <= 2) | (gray >= 253)))
    spectrum = cv2.dct(cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32))[:8, :8].ravel()
    phash = int("".join("1" if v > np.median(spectrum) else "0" for v in spectrum), 2)
    return [cv2.Laplacian(gray, cv2.CV_32F).var(), noise, deviation[0, 0] / 127.5, mean[0, 0] / 255, saturation, clipped, phash]


def frames(path):
    if os.path.isdir(path):
        for name in sorted(os.listdir(path)):
            if name.lower().endswith((".jpg", ".jpeg", ".png")):
                full = os.path.join(path, name)
                yield full, cv2.imread(full)
        return
    if path.endswith(".txt"):
        for line in open(path).read().split("\n"):
            if line:
                yield line, cv2.imread(line)
        return
    if path.lower().endswith((".jpg", ".jpeg", ".png")):
        yield path, cv2.imread(path)
        return
    video = cv2.VideoCapture(path)
    number = 0
    while True:
        ok, image = video.read()
        if not ok:
            return
        yield f"{path}#{number}", image
        number += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="folder, list of images (.txt) or video")
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--boxes", help="JSON object: source -> [[x1, y1, x2, y2], ...]")
    parser.add_argument("--templates", help="npy of template vectors [N, D], made by --make-templates")
    parser.add_argument("--make-templates", help="templates.csv to embed into --templates, then exit")
    parser.add_argument("--root", default=".", help="folder the template paths are relative to")
    parser.add_argument("--input-px", type=int, default=160)
    parser.add_argument("--bank", help="bank.faiss of a Loupe bank: score frames instead of matching boxes")
    parser.add_argument("--bank-input-px", type=int, default=224)
    parser.add_argument("--no-spin", action="store_true", help="switch off ONNX Runtime's thread spinning")
    args = parser.parse_args()
    model = Model(args.model, spin=not args.no_spin)
    if args.make_templates:
        import csv
        with open(args.make_templates) as file:
            vectors = [model.embed(cv2.imread(os.path.join(args.root, row["file"])), args.input_px) for row in csv.DictReader(file)]
        np.save(args.templates, np.concatenate(vectors))
        return
    boxes = json.load(open(args.boxes)) if args.boxes else {}
    index = None
    if args.templates:
        vectors = np.load(args.templates)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
    bank = faiss.read_index(args.bank) if args.bank else None
    folder = tempfile.mkdtemp()
    database = sqlite3.connect(os.path.join(folder, "rows.db"))
    database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE rows(source TEXT, sha256 TEXT, body TEXT);")
    clock = Clock()
    start = time.perf_counter()
    count = 0
    for source, bgr in frames(args.input):
        clock.lap("decode")
        digest = hashlib.sha256(bgr.data).hexdigest()
        body = {"quality": [float(v) for v in quality(bgr)]}
        clock.lap("quality")
        if bank is not None:
            patches, (width, height) = model.patches(bgr, (args.bank_input_px, args.bank_input_px))
            clock.lap("backbone")
            distances, _ = bank.search(patches, 1)
            distances = np.sqrt(np.maximum(distances[:, 0], 0))
            clock.lap("search")
            grid = distances.reshape(height, width).astype(np.float32)
            smooth = cv2.GaussianBlur(cv2.resize(grid, (224, 224)), (0, 0), 4)
            body["score"], body["map_max"] = float(distances.max()), float(smooth.max())
            clock.lap("map")
        else:
            items = []
            for x1, y1, x2, y2 in boxes.get(source, []):
                crop = bgr[max(0, int(y1)):math.ceil(y2), max(0, int(x1)):math.ceil(x2)]
                vector = model.embed(crop, args.input_px)
                clock.lap("embed")
                similarities, ids = index.search(vector, 18)
                items.append([[x1, y1, x2, y2], float(similarities[0, 0]), int(ids[0, 0])])
                clock.lap("match")
            body["items"] = items
        database.execute("INSERT INTO rows VALUES (?, ?, ?)", (source, digest, json.dumps(body)))
        database.commit()
        clock.lap("commit")
        count += 1
    wall_ms = (time.perf_counter() - start) * 1000
    print(json.dumps({"frames": count, "wall_ms": wall_ms, "frames_per_s": count / wall_ms * 1000, "stages_ms": clock.ms}))


if __name__ == "__main__":
    main()
