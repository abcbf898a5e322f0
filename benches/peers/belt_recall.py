"""Recall and precision of a detector on a belt clip whose boxes are known for each frame.

    loupe detect run --json --model models/partfinder --score-min 0.3 conveyor.mp4 > found.ndjson
    python benches/peers/belt_recall.py --truth frames.csv --found found.ndjson [--offset 0] [--score 0.3]

A box counts where its overlap (IoU) with one not yet taken is at least 0.5, best scores first, as COCO counts.
`--offset` is added to the frame numbers of the truth. Only the standard library is used.
"""
import argparse
import csv
import json


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return width * height / (area(a) + area(b) - width * height)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", required=True)
    parser.add_argument("--found", required=True)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--score", type=float, default=0.0)
    args = parser.parse_args()
    truth = {}
    for row in csv.DictReader(open(args.truth)):
        box = [float(row[key]) for key in ("x1", "y1", "x2", "y2")]
        truth.setdefault(int(row["frame"]) + args.offset, []).append((box, row["fully_visible"] == "1"))
    counts = {"parts": 0, "whole": 0, "found": 0, "whole_found": 0, "boxes": 0, "right": 0}
    for line in map(json.loads, open(args.found)):
        number = int(line["source"].rsplit("#", 1)[1])
        known = truth.get(number, [])
        taken = [False] * len(known)
        for detection in sorted(line["detections"], key=lambda d: -d["confidence"]):
            if detection["confidence"] < args.score:
                continue
            counts["boxes"] += 1
            best = max((i for i in range(len(known)) if not taken[i]), key=lambda i: iou(detection["bbox"], known[i][0]), default=None)
            if best is not None and iou(detection["bbox"], known[best][0]) >= 0.5:
                taken[best] = True
                counts["right"] += 1
        counts["parts"] += len(known)
        counts["whole"] += sum(whole for _, whole in known)
        counts["found"] += sum(taken)
        counts["whole_found"] += sum(t and whole for t, (_, whole) in zip(taken, known))
    counts["recall"] = round(counts["found"] / max(1, counts["parts"]), 4)
    counts["recall_whole"] = round(counts["whole_found"] / max(1, counts["whole"]), 4)
    counts["precision"] = round(counts["right"] / max(1, counts["boxes"]), 4)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
