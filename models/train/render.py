"""Renders training views of catalogue parts from LDraw geometry: colour, coverage and shadow, no background.

    render.py --tools DIR --geometry DIR --parts parts.csv --out views/ --salt loupe-1 --views 44 --top 12

`--tools` is the folder with the LDraw renderer (ldrender.py), `--geometry` the LDraw part files it reads.
One file a part: views/PART.npz with `views` [n, size, size, 5] uint8 (r, g, b premultiplied, coverage, shadow),
`pose` [n] and `px_per_mm` [n], the scale at the part's middle. Views are drawn from a generator seeded with the part number and the salt, so a run can be
repeated, and a salt that is not empty never repeats the views of a set rendered without one.
Run several at once with --shard i/n; a part whose file is there is skipped.
"""
import argparse
import csv
import hashlib
import os
import sys

import numpy as np

from query_scale import MM_PER_LDU, px_per_ldu
from views import FILL


def arguments():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--tools", required=True)
    a.add_argument("--geometry", required=True)
    a.add_argument("--parts", required=True, help="CSV with a column part_num")
    a.add_argument("--out", required=True)
    a.add_argument("--salt", default="loupe-1")
    a.add_argument("--views", type=int, default=44, help="oblique views a part")
    a.add_argument("--top", type=int, default=12, help="views a part from straight above")
    a.add_argument("--size", type=int, default=128, help="pixels a side")
    a.add_argument("--shard", default="0/1")
    return a.parse_args()


def rest_pose(ld, rng, mesh):
    """A side to lie on: half the time upright, else by how broad and low the part then lies."""
    if rng.random() < 0.45:
        return 0
    weights = []
    for rotation in ld.POSES[1:]:
        s = np.abs(rotation @ mesh.size)
        weights.append(s[0] * s[2] / (s[1] + 4))
    weights = np.sqrt(np.array(weights))
    return 1 + int(rng.choice(5, p=weights / weights.sum()))


def light(ld, rng):
    t = rng.uniform(-1, 1)
    return ld.light_rig(
        None, ld.sph(rng.uniform(0, 360), rng.uniform(30, 78)), rng.uniform(0.6, 1.5),
        np.array([1 + 0.12 * t, 1, 1 - 0.16 * t]), rng.uniform(0.7, 1.5),
        np.array([1 - 0.06 * t, 1, 1 + 0.08 * t]), spread=rng.uniform(0.03, 0.2))


def view(ld, renderer, rng, mesh, size, colours, top):
    pose = rest_pose(ld, rng, mesh)
    colour, rotation = int(rng.choice(colours)), ld.rot("y", rng.uniform(0, 360)) @ ld.POSES[pose]
    renderer.set_mesh(mesh, colour, rotation)
    renderer.set_lights(*light(ld, rng))
    if top:
        camera, up, field = ld.sph(0, rng.uniform(86, 89.5)), np.array([0, 0, -1.0]), rng.uniform(10, 24)
    else:
        camera, up, field = ld.sph(0, rng.uniform(18, 84)), np.array([0, 1.0, 0]), rng.uniform(16, 50)
    rgb, alpha, shadow, _ = renderer.shot(
        camera, up, field, size, size, fill=FILL, ground=True, expo=rng.uniform(0.85, 1.2), gloss=rng.uniform(0.5, 1.3))
    stack = np.dstack([rgb, alpha, shadow])
    scale = px_per_ldu(ld, mesh, rotation, camera, up, field, size, FILL) / MM_PER_LDU
    return (np.clip(stack, 0, 1) * 255 + 0.5).astype("u1"), pose, scale


def main():
    a = arguments()
    os.environ["LDRAW_LIB"] = a.geometry
    sys.path.insert(0, a.tools)
    import ldrender as ld

    shard, shards = map(int, a.shard.split("/"))
    with open(a.parts, newline="") as f:
        parts = [r["part_num"] for r in csv.DictReader(f)]
    os.makedirs(a.out, exist_ok=True)
    renderer, colours = ld.Renderer(), [0, 1, 2, 4, 14, 15, 19, 25, 71, 72]
    for i, part in enumerate(parts):
        path = f"{a.out}/{part}.npz"
        if i % shards != shard or os.path.exists(path):
            continue
        rng = np.random.default_rng(int(hashlib.md5((part + a.salt).encode()).hexdigest()[:8], 16))
        mesh = ld.Mesh(part)
        shots = [view(ld, renderer, rng, mesh, a.size, colours, k >= a.views) for k in range(a.views + a.top)]
        np.savez(path + ".part", views=np.stack([s[0] for s in shots]), pose=np.array([s[1] for s in shots]), px_per_mm=np.array([s[2] for s in shots]))
        os.replace(path + ".part.npz", path)
        if i % 20 == shard:
            print(f"{i} of {len(parts)} parts", flush=True)


main()
