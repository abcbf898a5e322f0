#!/usr/bin/env python3
"""Boxes of a YOLOX and of a DEIM/D-FINE export: an independent reference (onnxruntime, numpy, OpenCV, Pillow) against Loupe.

    pip install numpy onnxruntime==1.31.1 opencv-python-headless pillow
    python benches/peers/detect_reference.py --loupe target/release/loupe --video bottle-detection.mp4 \\
        --yolox yolox_nano.onnx --deim deimv2_hgnetv2_atto_coco.onnx [--every 6] [--work DIR]

Frames are written as PNG first, so that both sides see the same pixels. Loupe's manifests come from `loupe model probe`.
Prints the largest differences and exits with 1 beyond 0.5 px or 1e-3 in score. DEIM is compared behind OpenCV's resize
(`resample = "linear"`) and behind Pillow's (`triangle`), which it was trained with.
"""
import argparse, json, pathlib, shutil, subprocess, sys, tempfile

import cv2
import numpy as np
import onnxruntime as ort
from PIL import Image

SCORE_MIN, IOU_MAX = 0.3, 0.45


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def nms(boxes, scores, labels):
    order, kept = np.argsort(-scores, kind="stable"), []
    for i in order:
        for k in kept:
            if labels[i] != labels[k]:
                continue
            w = min(boxes[i, 2], boxes[k, 2]) - max(boxes[i, 0], boxes[k, 0])
            h = min(boxes[i, 3], boxes[k, 3]) - max(boxes[i, 1], boxes[k, 1])
            common = max(w, 0.0) * max(h, 0.0)
            area = lambda b: (b[2] - b[0]) * (b[3] - b[1])
            if common / (area(boxes[i]) + area(boxes[k]) - common) > IOU_MAX:
                break
        else:
            kept.append(i)
    return kept


def yolox(net, bgr):
    """As YOLOX's demo: OpenCV's resize, top left, grey 114, BGR 0..255; grids of strides 8, 16, 32."""
    side = net.get_inputs()[0].shape[2]
    ratio = min(side / bgr.shape[0], side / bgr.shape[1])
    small = cv2.resize(bgr, (int(bgr.shape[1] * ratio), int(bgr.shape[0] * ratio)), interpolation=cv2.INTER_LINEAR)
    padded = np.full((side, side, 3), 114, np.uint8)
    padded[: small.shape[0], : small.shape[1]] = small
    out = net.run(None, {net.get_inputs()[0].name: padded.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
    grids, strides = [], []
    for stride in (8, 16, 32):
        n = side // stride
        y, x = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
        grids.append(np.stack([x, y], -1).reshape(-1, 2))
        strides.append(np.full((n * n, 1), stride))
    grid, stride = np.concatenate(grids), np.concatenate(strides)
    centre, size = (out[:, :2] + grid) * stride, np.exp(out[:, 2:4]) * stride
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1) / ratio
    probabilities = out[:, 4:5] * out[:, 5:]
    labels, scores = probabilities.argmax(1), probabilities.max(1)
    keep = scores >= SCORE_MIN
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    kept = nms(boxes, scores, labels)
    return boxes[kept], scores[kept], labels[kept]


def deim(net, bgr, pillow=False):
    """As D-FINE's tools: resize to a square, RGB 0..1, boxes scaled to the picture by the graph."""
    side = net.get_inputs()[0].shape[2]
    picture = cv2.resize(bgr[:, :, ::-1], (side, side), interpolation=cv2.INTER_LINEAR)
    if pillow:
        picture = Image.fromarray(bgr[:, :, ::-1]).resize((side, side), Image.Resampling.BILINEAR)
    values = (np.asarray(picture, np.float32) / 255).transpose(2, 0, 1)[None]
    size = np.array([[bgr.shape[1], bgr.shape[0]]], np.int64)
    labels, boxes, scores = net.run(["labels", "boxes", "scores"], {"images": values, "orig_target_sizes": size})
    keep = scores[0] >= SCORE_MIN
    return boxes[0][keep], scores[0][keep], labels[0][keep]


def clipped(found, bgr):
    boxes, scores, labels = found
    height, width = bgr.shape[:2]
    return np.clip(boxes, 0, [width, height, width, height]), scores, labels


def frames_of(video, every, folder):
    capture, index, paths = cv2.VideoCapture(str(video)), 0, []
    while True:
        ok, frame = capture.read()
        if not ok:
            return paths
        if index % every == 0:
            paths.append(folder / f"{index:05}.png")
            cv2.imwrite(str(paths[-1]), frame)
        index += 1


def compare(name, theirs, ours, worst):
    """Pairs by label and nearest box; scores at the very threshold may fall on either side of it."""
    boxes, scores, labels = theirs
    left = list(ours)
    for box, score, label in zip(boxes, scores, labels):
        same = [one for one in left if one["label"] == f"class_{label}"]
        if not same:
            if score > SCORE_MIN + 1e-3:
                worst["missing"].append((name, float(score)))
            continue
        best = min(same, key=lambda one: np.abs(np.array(one["bbox"]) - box).max())
        left.remove(best)
        worst["box_px"] = max(worst["box_px"], float(np.abs(np.array(best["bbox"]) - box).max()))
        worst["score"] = max(worst["score"], float(abs(best["confidence"] - score)))
        worst["pairs"] += 1
    worst["extra"] += [(name, one["confidence"]) for one in left if one["confidence"] > SCORE_MIN + 1e-3]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loupe", required=True)
    parser.add_argument("--video", required=True)
    parser.add_argument("--yolox"), parser.add_argument("--deim")
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--work", type=pathlib.Path)
    args = parser.parse_args()
    work = args.work or pathlib.Path(tempfile.mkdtemp())
    pictures = work / "frames"
    pictures.mkdir(parents=True, exist_ok=True)
    paths = frames_of(args.video, args.every, pictures)
    failed = False
    for name, model, reference in (
        ("yolox", args.yolox, yolox), ("deim", args.deim, deim), ("deim-pillow", args.deim, lambda net, bgr: deim(net, bgr, True))):
        if not model:
            continue
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([args.loupe, "model", "probe", model, "--write", folder, "--json"], check=True, stdout=subprocess.DEVNULL)
        if name == "deim":
            manifest = folder / "manifest.toml"
            manifest.write_text(manifest.read_text().replace('resample = "triangle"', 'resample = "linear"'))
        said = subprocess.run(
            [args.loupe, "detect", "run", "--model", folder, "--json", "--score-min", str(SCORE_MIN), "--iou-max", str(IOU_MAX), pictures],
            check=True, capture_output=True, text=True).stdout
        ours = {pathlib.Path(line["source"]).name: line["detections"] for line in map(json.loads, said.splitlines())}
        net, worst = session(model), {"pairs": 0, "box_px": 0.0, "score": 0.0, "missing": [], "extra": []}
        for path in paths:
            bgr = cv2.imread(str(path))
            compare(path.name, clipped(reference(net, bgr), bgr), ours[path.name], worst)
        bad = worst["box_px"] > 0.5 or worst["score"] > 1e-3 or worst["missing"] or worst["extra"] or not worst["pairs"]
        failed |= bool(bad)
        print(f"{name}: {len(paths)} frames, {worst['pairs']} boxes, largest difference {worst['box_px']:.4f} px and "
              f"{worst['score']:.2e} in score; {len(worst['missing'])} missing, {len(worst['extra'])} extra"
              f"{'  beyond the tolerance' if bad else ''}")
        for one in (worst["missing"] + worst["extra"])[:10]:
            print("   ", *one)
    sys.exit(failed)


if __name__ == "__main__":
    main()
