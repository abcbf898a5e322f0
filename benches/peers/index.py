"""FAISS from Python on the vectors of `loupe index bench`: the same vectors, queries, number of lists and recall.

Reads what the bench left in its cache folder, builds IVF,Flat once (kept beside it), and measures single queries on one
thread: in memory, memory-mapped as FAISS does it, and (with --sq8, --pq) 8-bit or product codes with exact re-ranking.
"""
import argparse
import json
import os
import statistics
import time

import faiss
import numpy as np


def anonymous_bytes():
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Anonymous:"))


def timed(index, queries, truth, rounds=3):
    """p50 and p99 in µs of single queries after one uncounted pass, and recall@1."""
    times, hits = [], 0
    for number in range(rounds + 1):
        for query, right in zip(queries, truth):
            start = time.perf_counter()
            _, ids = index.search(query[None, :], 1)
            took = (time.perf_counter() - start) * 1e6
            if number == 0:
                hits += int(ids[0, 0] == right)
            else:
                times.append(took)
    times.sort()
    return {"p50_us": statistics.median(times), "p99_us": times[int(len(times) * 0.99)], "recall_at_1": hits / len(truth)}


def reranked(codes, count, vectors, queries, truth):
    """p50 in µs and recall@1 where the best `count` by their codes are compared by their whole vectors."""
    times, hits = [], 0
    for query, right in zip(queries, truth):
        start = time.perf_counter()
        _, ids = codes.search(query[None, :], count)
        near = ids[0][ids[0] >= 0]
        best = near[np.argmax(vectors[near] @ query)]
        times.append((time.perf_counter() - start) * 1e6)
        hits += int(best == right)
    return {"p50_us": statistics.median(times), "recall_at_1": hits / len(truth)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="one index's folder in the cache of `loupe index bench`")
    parser.add_argument("--nprobe", type=int, nargs="*", default=[], help="besides Loupe's own number")
    parser.add_argument("--sq8", action="store_true", help="also 8-bit codes with exact re-ranking")
    parser.add_argument("--pq", type=int, nargs="*", default=[], metavar="BYTES", help="also product codes of so many bytes a vector")
    parser.add_argument("--rerank", type=int, nargs="*", default=[32], help="how many are compared exactly")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    root = os.path.join(args.folder, "index")
    generation = os.path.join(root, open(os.path.join(root, "CURRENT")).read().strip())
    manifest = json.load(open(os.path.join(generation, "manifest.json")))
    dim, lists = manifest["dim"], manifest["l2"]["lists"]
    vectors = np.memmap(os.path.join(generation, "l2.vectors"), dtype="<f4", mode="r").reshape(-1, dim)
    queries = np.fromfile(os.path.join(args.folder, "queries.f32"), dtype="<f4").reshape(-1, dim)
    truth = np.fromfile(os.path.join(args.folder, "truth.u32"), dtype="<u4")
    # Loupe's own centroids, so that both visit the same lists.
    table = np.fromfile(os.path.join(generation, "l2.lists"), dtype="<u4")
    at = -(-(64 + (lists + 1) * 4) // 64) * 64
    centroids = table[at // 4:].view("<f4").reshape(lists, dim)

    def build(kind):
        quantiser = faiss.IndexFlatIP(dim)
        quantiser.add(np.ascontiguousarray(centroids))
        if kind == "flat":
            index = faiss.IndexIVFFlat(quantiser, dim, lists, faiss.METRIC_INNER_PRODUCT)
        else:
            if kind == "sq8":
                index = faiss.IndexIVFScalarQuantizer(quantiser, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
            else:
                index = faiss.IndexIVFPQ(quantiser, dim, lists, int(kind[2:]), 8, faiss.METRIC_INNER_PRODUCT)
            index.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // 100_000)]))
        index.is_trained = True
        starts = table[16:16 + lists + 1]
        step = 65_536
        faiss.omp_set_num_threads(os.cpu_count())
        for first in range(0, len(vectors), step):
            rows = np.arange(first, min(first + step, len(vectors)))
            # swig_ptr keeps no reference: both arrays must outlive the call.
            assigned = (np.searchsorted(starts, rows, side="right") - 1).astype("int64")
            block = np.ascontiguousarray(vectors[rows])
            index.add_core(len(rows), faiss.swig_ptr(block), None, faiss.swig_ptr(assigned))
        faiss.omp_set_num_threads(1)
        index.referenced_objects = [quantiser]
        return index

    probes = [manifest["l2"]["nprobe"], *args.nprobe]
    report = {"vectors": len(vectors), "dim": dim, "lists": lists, "faiss": faiss.__version__, "runs": []}
    path = os.path.join(args.folder, "ivf.faiss")
    if not os.path.exists(path):
        faiss.write_index(build("flat"), path)
    before = anonymous_bytes()
    start = time.perf_counter()
    mapped = faiss.read_index(path, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    opened = {"open_ms": (time.perf_counter() - start) * 1e3}
    for nprobe in probes:
        mapped.nprobe = nprobe
        report["runs"].append({"kind": "mapped", "nprobe": nprobe, **opened, **timed(mapped, queries, truth)})
    report["mapped_anonymous_bytes"] = anonymous_bytes() - before
    memory = faiss.read_index(path)
    for nprobe in probes:
        memory.nprobe = nprobe
        report["runs"].append({"kind": "memory", "nprobe": nprobe, **timed(memory, queries, truth)})
    for kind in ["sq8"] * args.sq8 + [f"pq{size}" for size in args.pq]:
        codes = build(kind)
        for nprobe in probes:
            codes.nprobe = nprobe
            report["runs"].append({"kind": kind, "nprobe": nprobe, **timed(codes, queries, truth)})
            for count in args.rerank:
                report["runs"].append({"kind": f"{kind}, {count} re-ranked", "nprobe": nprobe, **reranked(codes, count, vectors, queries, truth)})
    print(json.dumps(report, indent=1))


main()
