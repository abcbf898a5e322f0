#!/usr/bin/env python3
"""Made-up annotations and detections with what pycocotools says of them: coco.json in this folder.

    pip install pycocotools==2.0.11 numpy && python tests/reference/detectors/make_coco.py tests/reference/detectors/coco.json

Three classes (one of them never found, one label unknown to the truth), crowds, shifted, doubled, wrong and missing boxes, equal
scores, and one picture with more than 100 detections.
"""
import contextlib, io, json, sys, tempfile

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

rng = np.random.default_rng(7)
images = [{"id": i + 1, "file_name": f"{i}.png", "width": 640, "height": 480} for i in range(8)]
annotations, detections = [], []
for image in images:
    for _ in range(rng.integers(0, 9)):
        x, y, w, h = (int(v) for v in (rng.integers(0, 500), rng.integers(0, 400), rng.integers(8, 120), rng.integers(8, 80)))
        label, crowd = int(rng.integers(1, 4)), int(rng.random() < 0.15)
        annotations.append({"id": len(annotations) + 1, "image_id": image["id"], "category_id": label, "bbox": [x, y, w, h],
                            "area": w * h, "iscrowd": crowd})
        for _ in range(rng.integers(0, 4)):
            if label == 3:
                continue
            jitter = rng.normal(0, 0.08, 4) * [w, h, w, h]
            box = [float(np.float32(v)) for v in np.array([x, y, w, h]) + jitter]
            other = label if rng.random() < 0.85 else int(rng.integers(1, 3))
            detections.append({"image_id": image["id"], "category_id": other, "bbox": box, "score": round(float(rng.random()), 2)})
for _ in range(130):
    x, y = rng.integers(0, 500, 2)
    detections.append({"image_id": 3, "category_id": 1, "bbox": [float(x), float(y), 30.0, 30.0], "score": round(float(rng.random()) / 3, 2)})
truth = {"images": images, "annotations": annotations, "categories": [{"id": i, "name": n} for i, n in ((1, "bolt"), (2, "nut"), (3, "washer"))]}

with tempfile.NamedTemporaryFile("w", suffix=".json") as file, contextlib.redirect_stdout(io.StringIO()):
    json.dump(truth, file)
    file.flush()
    coco = COCO(file.name)
    judge = COCOeval(coco, coco.loadRes(detections), "bbox")
    judge.evaluate(), judge.accumulate(), judge.summarize()
expected = dict(zip(("map50_95", "map50", "map75"), judge.stats[:3])) | {"mar100": judge.stats[8]}
document = {"truth": truth, "detections": detections, "expected": {key: float(value) for key, value in expected.items()}}
open(sys.argv[1], "w").write(json.dumps(document, separators=(",", ":")) + "\n")
print(len(annotations), len(detections), expected)
