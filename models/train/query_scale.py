"""The true scale of rendered query views: replays the renderer's gen.py without drawing and writes queries.csv again
with a column px_per_mm, as a calibrated camera would know it.

    query_scale.py --tools DIR --geometry DIR --parts parts.csv --queries queries.csv --out scaled.csv

gen.py draws every random number from a generator seeded with the part; what it draws does not depend on the pixels,
so the same numbers come again when nothing is rendered.
"""
import argparse
import csv
import hashlib
import os
import sys

import numpy as np

MM_PER_LDU = 0.4


def px_per_ldu(ld, mesh, rotation, camera, up, field, size, fill):
    """Pixels per LDU at the part's centre plane, for a view that gen.py's `shot` fits into the picture."""
    points = (mesh.T.reshape(-1, 3) @ rotation.T) / mesh.R
    distance = 1.08 / np.sin(np.radians(field) / 2)
    project = ld.persp(field, max(0.05, distance - 4.5), distance + 6) @ ld.look(camera * distance, up)
    c = np.hstack([points, np.ones((len(points), 1))]) @ project.T
    flat = c[:, :2] / c[:, 3:]
    zoom = 2 * fill / (flat.max(0) - flat.min(0)).max()
    return zoom / np.tan(np.radians(field) / 2) / distance * size / 2 / mesh.R


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tools", "geometry", "parts", "queries", "out"):
        a.add_argument("--" + name, required=True)
    a = a.parse_args()
    os.environ["LDRAW_LIB"], os.environ["LDRAW_PARTS"] = a.geometry, a.parts
    sys.path.insert(0, a.tools)
    import bg
    import ldrender as ld

    size, colours = 192, [0, 1, 2, 4, 14, 15, 19, 25, 71, 72]
    with open(a.queries, newline="") as f:
        rows = list(csv.DictReader(f))
    with open(a.parts, newline="") as f:
        parts = [r["part_num"] for r in csv.DictReader(f)]
    scales = {}
    for part in parts:
        rng = np.random.default_rng(int(hashlib.md5((part + os.environ.get("LDRAW_SALT", "")).encode()).hexdigest()[:8], 16))
        mesh = ld.Mesh(part)
        rng.choice([c for c in colours if c != 71])
        for q in range(6):
            pose = 0
            if q >= 4:
                w = np.array([abs(r @ mesh.size) for r in ld.POSES[1:]])
                w = w[:, 0] * w[:, 2] / (w[:, 1] + 4)
                pose = 1 + int(rng.choice(5, p=w / w.sum()))
            code = int(rng.choice(colours))
            azimuth, elevation = rng.uniform(0, 360), rng.uniform(25, 80)
            elevation = elevation if abs(elevation - 55) > 4 else elevation + 6
            rng.uniform(0, 360), rng.uniform(30, 75), rng.uniform(-1, 1), rng.uniform(0.6, 1.5), rng.uniform(0.7, 1.5), rng.uniform(0.03, 0.2)
            camera, roll = ld.sph(azimuth, elevation), rng.uniform(-12, 12)
            side = np.cross(camera, [0, 1, 0])
            up = np.array([0, 1.0, 0]) * np.cos(np.radians(roll)) + side / np.linalg.norm(side) * np.sin(np.radians(roll))
            fill = rng.uniform(0.62, 0.88)
            slack = (1 - fill) * 0.6
            field = rng.uniform(18, 48)
            rng.uniform(-slack, slack, 2), rng.uniform(0.85, 1.2), rng.uniform(0.5, 1.3)
            bg.background(rng, size, size)
            rng.uniform(0.55, 0.9)
            bg.augment(rng, np.zeros((size, size, 3)))
            scales[f"queries/{part}/{q}_{code}.jpg"] = (
                px_per_ldu(ld, mesh, ld.POSES[pose], camera, up, field, size, fill) / MM_PER_LDU, azimuth, elevation)
    for row in rows:
        scale, azimuth, elevation = scales[row["file"]]
        if abs(azimuth - float(row["azimuth"])) > 0.06 or abs(elevation - float(row["elevation"])) > 0.06:
            raise SystemExit(f"{row['file']}: the replay went another way ({azimuth:.1f}, {elevation:.1f})")
        row["px_per_mm"] = f"{scale:.4f}"
    with open(a.out, "w", newline="") as f:
        w = csv.DictWriter(f, rows[0].keys())
        w.writeheader()
        w.writerows(rows)


if __name__ == "__main__":
    main()
