"""Loupe's whole pipeline against the same job in Python, on the same images, models, boxes and cores, in one run.

Rounds alternate (Loupe, Python, Loupe, …); the medians and their ratio are printed. Start-up is left out on both
sides: the clocks run from the first frame to the last commit.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
LOUPE = os.path.join(ROOT, "target", "release", "loupe")
MODEL = os.path.join(ROOT, "models", "mobilenetv2")
ENV = {"ORT_DYLIB_PATH": os.path.join(ROOT, ".cache/onnxruntime/libonnxruntime.so"), **os.environ}


def loupe(*args):
    done = subprocess.run([LOUPE, *args], capture_output=True, text=True, env=ENV)
    if done.returncode != 0:
        sys.exit(f"loupe {' '.join(args)} failed:\n{done.stderr}")
    return done


def inspect(recipe, paths, work, number):
    """One timed run of Loupe; wall, decode and session milliseconds, and its JSON lines."""
    done = loupe("inspect", "--recipe", recipe, "--json", "--stats", "--artifacts", "none", "--state", f"{work}/state-{number}", *paths)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    frames, wall_ms, session_ms = re.search(r"(\d+) frames in (\d+) ms.*?; (\d+) ms of it inside", done.stderr).groups()
    return {"frames": int(frames), "wall_ms": float(wall_ms), "session_ms": float(session_ms), "lines": lines}


def peer(*args):
    done = subprocess.run([sys.executable, os.path.join(HERE, "peer.py"), "--model", MODEL, *args], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"peer.py failed:\n{done.stderr}")
    return json.loads(done.stdout) if done.stdout else None


def decode_ms(paths):
    """Decoding alone, by OpenCV, one after the other."""
    import time
    sys.path.insert(0, HERE)
    from peer import frames
    start = time.perf_counter()
    for path in paths:
        for _ in frames(path):
            pass
    return (time.perf_counter() - start) * 1000


def report(name, recipe, paths, peer_input, peer_args, rounds, work):
    warm = inspect(recipe, paths, work, f"{name}-warm")
    boxes = {line["source"]: [item["bbox"] for item in line["items"]] for line in warm["lines"]}
    with open(f"{work}/{name}-boxes.json", "w") as file:
        json.dump(boxes, file)
    args = ["--input", peer_input, *peer_args]
    if "--bank" not in peer_args:
        args += ["--boxes", f"{work}/{name}-boxes.json"]
    ours, theirs, theirs_quiet = [], [], []
    for number in range(rounds):
        ours.append(inspect(recipe, paths, work, f"{name}-{number}"))
        theirs.append(peer(*args))
        theirs_quiet.append(peer(*args, "--no-spin"))
    wall = statistics.median(run["wall_ms"] for run in ours)
    python = statistics.median(run["wall_ms"] for run in theirs)
    quiet = statistics.median(run["wall_ms"] for run in theirs_quiet)
    session = statistics.median(run["session_ms"] for run in ours)
    frames = ours[0]["frames"]
    cores = os.cpu_count()
    floor = (session + decode_ms(paths)) / cores
    items = sum(len(b) for b in boxes.values())
    stages = {k: round(v / theirs[0]["frames"], 2) for k, v in theirs[0]["stages_ms"].items()}
    row = {
        "set": name, "frames": frames, "items": items,
        "loupe_frames_per_s": round(frames / wall * 1000, 1),
        "python_frames_per_s": round(frames / python * 1000, 1),
        "python_no_spin_frames_per_s": round(frames / quiet * 1000, 1),
        "ratio": round(python / wall, 2), "ratio_no_spin": round(quiet / wall, 2),
        "over_floor": round(wall / floor, 3),
        "python_ms_per_frame": stages,
        "loupe_ms_per_frame": {
            stage: round(sum(line["timings_ms"][stage] for line in ours[0]["lines"]) / max(1, len(ours[0]["lines"])), 2)
            for stage in ("decode", "quality", "locate", "embed", "match", "anomaly", "decide", "commit", "total")},
    }
    print(json.dumps(row), flush=True)


def write(path, text):
    with open(path, "w") as file:
        file.write(text)
    return path


def parts(args, work):
    loupe("index", "build", "--parts", f"{args.parts}/parts.csv", "--templates", f"{args.parts}/templates.csv",
          "--root", args.parts, "--out", f"{work}/index", "--model", MODEL)
    templates = f"{work}/templates.npy"
    peer("--input", "-", "--make-templates", f"{args.parts}/templates.csv", "--root", args.parts, "--templates", templates)
    belt = write(f"{work}/belt.toml", f'''name = "belt"
[locate]
kind = "blob"
[match]
index = "{work}/index"
model = "{MODEL}"
''')
    report("clip", belt, [args.clip], args.clip, ["--templates", templates], args.rounds, work)
    if args.trays:
        report("trays", belt, [args.trays], args.trays, ["--templates", templates], args.rounds, work)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default=f"{ROOT}/samples/parts", help="folder with parts.csv and templates.csv")
    parser.add_argument("--clip", default=f"{ROOT}/samples/belt/belt.mp4")
    parser.add_argument("--trays", help="folder of tray images")
    parser.add_argument("--split", default=f"{ROOT}/samples/plate/split.json")
    parser.add_argument("--photos", default=f"{ROOT}/samples/plate", help="folder the split's files are relative to")
    parser.add_argument("--photos-only", action="store_true", help="leave the belt and the trays out")
    parser.add_argument("--search", default="exact", choices=["exact", "fast"], help="how Loupe searches the bank")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if not args.photos_only:
            parts(args, work)
        loupe("bank", "build", "--split", args.split, "--root", args.photos, "--out", f"{work}/bank", "--model", "mobilenetv2",
              "--models", os.path.dirname(MODEL))
        plate = write(f"{work}/plate.toml", f'''name = "plate"
[anomaly]
bank = "{work}/bank"
models = "{os.path.dirname(MODEL)}"
search = "{args.search}"
''')
        files = [os.path.join(args.photos, test["file"]) for test in json.load(open(args.split))["test"]]
        photos = write(f"{work}/photos.txt", "\n".join(files))
        report("photos", plate, files, photos, ["--bank", f"{work}/bank/bank.faiss"], args.rounds, work)


if __name__ == "__main__":
    main()
