#!/usr/bin/env python3
"""Loupe's average precision against pycocotools on the same detections.

    pip install pycocotools
    python benches/peers/coco_check.py --loupe target/release/loupe --model DIR --coco A.json --root DIR [--class-agnostic]

Exits with 1 beyond 1e-6.
"""
import argparse, contextlib, io, json, pathlib, subprocess, sys, tempfile

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("loupe", "model", "coco", "root"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--class-agnostic", action="store_true")
    args = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp())
    results = work / "results.json"
    command = [args.loupe, "detect", "evaluate", "--model", args.model, "--coco", args.coco, "--root", args.root, "--results", results, "--json"]
    ours = json.loads(subprocess.run(command + ["--class-agnostic"] * args.class_agnostic, check=True, capture_output=True, text=True).stdout)["result"]
    truth = json.loads(pathlib.Path(args.coco).read_text())
    if args.class_agnostic:
        truth["categories"] = [{"id": 1, "name": "any"}]
        for annotation in truth["annotations"]:
            annotation["category_id"] = 1
    (work / "truth.json").write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(work / "truth.json"))
        judge = COCOeval(coco, coco.loadRes(str(results)), "bbox")
        judge.evaluate(), judge.accumulate(), judge.summarize()
    theirs = {"map50_95": judge.stats[0], "map50": judge.stats[1], "map75": judge.stats[2], "mar100": judge.stats[8]}
    worst = 0.0
    for key, value in theirs.items():
        print(f"{key:9} pycocotools {value:.6f}  loupe {ours[key]:.6f}")
        worst = max(worst, abs(value - ours[key]))
    print(f"largest difference {worst:.2e}")
    sys.exit(worst > 1e-6)


if __name__ == "__main__":
    main()
