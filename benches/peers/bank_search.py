"""The search of a bank against OpenBLAS's product of the same matrices, and the fast search against the model, in one run.

    python benches/peers/bank_search.py --loupe target/release/loupe --bank BANK --images a.jpg b.jpg [--rounds 3]

Rounds alternate: `loupe bank bench` (model, exact and fast search), then numpy's `matmul` (OpenBLAS) of [patches, dim] by
[dim, vectors] into a ready array, both on the same number of threads. Loupe's time is the whole search: checks, packing,
products, the smallest of each row, its exact distance and the image score; OpenBLAS's is the product alone.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
ENV = {"ORT_DYLIB_PATH": os.path.join(ROOT, ".cache/onnxruntime/libonnxruntime.so"), **os.environ}
PRODUCT = """
import sys, time, numpy as np
n, m, dim = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
a, b = rng.random((n, dim), np.float32), rng.random((m, dim), np.float32)
out, times = np.empty((n, m), np.float32), []
for _ in range(20):
    start = time.perf_counter()
    np.matmul(a, b.T, out=out)
    times.append(time.perf_counter() - start)
print(sorted(times)[len(times) // 2] * 1000)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loupe", default=os.path.join(ROOT, "target", "release", "loupe"))
    parser.add_argument("--bank", required=True)
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--models", default=os.path.join(ROOT, "models"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for threads in range(1, (os.cpu_count() or 1) + 1):
        runs, products = [], []
        for _ in range(args.rounds):
            command = [args.loupe, "bank", "bench", "--json", "--bank", args.bank, "--models", args.models, "--threads", str(threads),
                       "--rounds", "9", "--images", *args.images]
            done = subprocess.run(command, capture_output=True, text=True, env=ENV)
            if done.returncode != 0:
                sys.exit(done.stderr)
            runs.append(json.loads(done.stdout))
            shape = [str(runs[0][key]) for key in ("patches", "vectors", "dim")]
            product = subprocess.run([sys.executable, "-c", PRODUCT, *shape], capture_output=True, text=True, check=True,
                                     env={**os.environ, "OPENBLAS_NUM_THREADS": str(threads)})
            products.append(float(product.stdout))
        middle = lambda key: statistics.median(run[key] for run in runs)
        product_ms = statistics.median(products)
        work = 2 * runs[0]["patches"] * runs[0]["vectors"] * runs[0]["dim"]
        print(json.dumps({
            "threads": threads, "patches": runs[0]["patches"], "vectors": runs[0]["vectors"], "dim": runs[0]["dim"],
            "openblas_ms": round(product_ms, 2), "openblas_gflops": round(work / product_ms / 1e6, 1),
            "exact_ms": round(middle("exact_ms"), 2), "exact_gflops": round(middle("exact_gflops"), 1),
            "exact_over_openblas": round(product_ms / middle("exact_ms"), 3),
            "fast_ms": round(middle("fast_ms"), 2), "backbone_ms": round(middle("backbone_ms"), 2),
            "fast_over_backbone": round(middle("fast_ms") / middle("backbone_ms"), 3),
            "score_difference_max": max(run["score_difference_max"] for run in runs),
            "map_differs_ratio": max(run["map_differs_ratio"] for run in runs),
        }), flush=True)


if __name__ == "__main__":
    main()
