"""How many parts of annotated trays were found and named right, from what `loupe inspect` printed.

    loupe inspect --recipe trays.toml --json TRAYS/*.jpg > found.ndjson
    trays.py found.ndjson TRAYS/annotations_coco.json [parts.csv]

`loupe inspect` may have been called once a picture, with that picture's scale in the recipe. With parts.csv, also of the
parts that the catalogue has: a part it lacks can only be found, and is left out with the item that found it.
A part counts as found when a box covers it with IoU ≥ 0.5, and as named when that item's best match is its part.
F1 is of found-and-named items over all items and all parts; also by overlap level, where the annotations have one.
"""
import collections
import csv
import json
import os
import sys


def iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    area = lambda r: (r[2] - r[0]) * (r[3] - r[1])
    return w * h / (area(a) + area(b) - w * h)


def corners(box):
    return [box[k] for k in ("x1", "y1", "x2", "y2")] if isinstance(box, dict) else list(box)


def main():
    coco = json.load(open(sys.argv[2]))
    names = {c["id"]: c["name"] for c in coco["categories"]}
    images = {i["file_name"]: i for i in coco["images"]}
    truth = collections.defaultdict(list)
    for a in coco["annotations"]:
        x, y, w, h = a["bbox"]
        truth[a["image_id"]].append(([x, y, x + w, y + h], names[a["category_id"]]))
    catalogue = set()
    if len(sys.argv) > 3:
        catalogue = {row["part_num"] for row in csv.DictReader(open(sys.argv[3], newline=""))}
    sums = collections.defaultdict(lambda: [0, 0, 0, 0])  # parts, items, found, named
    for line in open(sys.argv[1]):
        row = json.loads(line)
        image = images[os.path.basename(row["source"])]
        parts = truth[image["id"]]
        pairs = sorted(((iou(corners(i["bbox"]), p[0]), k, n) for k, i in enumerate(row["items"]) for n, p in enumerate(parts)), reverse=True)
        items, taken, named, foreign = set(), set(), 0, 0
        for overlap, k, n in pairs:
            if overlap < 0.5 or k in items or n in taken:
                continue
            items.add(k)
            taken.add(n)
            match = row["items"][k].get("matched")
            named += bool(match) and match["part_id"] == parts[n][1]
            foreign += bool(catalogue) and parts[n][1] not in catalogue
        known = sum(p[1] in catalogue for p in parts)
        counts = {"all": (len(parts), len(row["items"]), len(taken), named)}
        counts[f"overlap {image.get('overlap_level', '-')}"] = counts["all"]
        if catalogue:
            counts["catalogue"] = (known, len(row["items"]) - foreign, len(taken) - foreign, named)
        for key, values in counts.items():
            for at, value in enumerate(values):
                sums[key][at] += value
    for key, (parts, items, found, named) in sorted(sums.items()):
        print(f"{key:10} parts {parts}, items {items}, found F1 {2 * found / (parts + items):.3f}, found and named F1 {2 * named / (parts + items):.3f}")


main()
