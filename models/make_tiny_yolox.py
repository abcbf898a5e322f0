#!/usr/bin/env python3
"""Build models/tiny-yolox/model.onnx: a hand-made graph with the raw-head layout of YOLOX and no weights.

    pip install onnx==1.23.2 && python models/make_tiny_yolox.py models/tiny-yolox

It averages the image over cells of 32 x 32 pixels and calls a cell red or blue where that channel stands out from
the other two. The output has one row for each cell of strides 8, 16 and 32, in that order, rows before columns:
cx, cy (offset from the cell's corner, in cells), ln(w / stride), ln(h / stride), objectness, red, blue.
Only the 13 x 13 rows of stride 32 are ever anything but zero.
"""
import hashlib, math, pathlib, re, sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, STRIDES, STRIDE, BOX_PX = 416, (8, 16, 32), 32, 96
CELLS = SIZE // STRIDE
ROWS = [(SIZE // s) ** 2 for s in STRIDES]  # 2704, 676, 169

def graph():
    constants, nodes = [], []

    def const(name, value, dtype="f4"):
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(op, inputs, outputs, **attributes):
        nodes.append(helper.make_node(op, inputs, outputs, **attributes))

    node("AveragePool", ["images"], ["cells"], kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2)
    node("Split", ["cells"], ["b", "g", "r"], axis=1)
    const("zero", 0), const("one", 1), const("floor", 40), const("soft", 1 / 80), const("hard", 1 / 8)
    for name, this, other in (("red", "r", "b"), ("blue", "b", "r")):
        node("Max", [other, "g"], [f"{name}_rest"])
        node("Sub", [this, f"{name}_rest"], [f"{name}_excess"])
        node("Sub", [f"{name}_excess", "floor"], [f"{name}_over"])
        for kind in ("soft", "hard"):
            node("Mul", [f"{name}_over", kind], [f"{name}_{kind}_raw"])
            node("Clip", [f"{name}_{kind}_raw", "zero", "one"], [f"{name}_{kind}"])
    node("Max", ["red_soft", "blue_soft"], ["objectness"])
    box = np.array([0.5, 0.5, math.log(BOX_PX / STRIDE), math.log(BOX_PX / STRIDE)]).reshape(1, 4, 1, 1)
    # The box is the same in every cell, and zero where nothing is seen: "seen" is 1 or 0
    node("Sign", ["objectness"], ["seen"])
    node("Mul", ["seen", const("box", box)], ["boxes"])
    node("Concat", ["boxes", "objectness", "red_hard", "blue_hard"], ["head"], axis=1)
    node("Reshape", ["head", const("flat", [1, 7, ROWS[2]], "i8")], ["columns"])
    node("Transpose", ["columns"], ["rows"], perm=[0, 2, 1])
    node("Pad", ["rows", const("finer", [0, ROWS[0] + ROWS[1], 0, 0, 0, 0], "i8")], ["output"])
    return helper.make_graph(
        nodes, "tiny-yolox",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, sum(ROWS), 7])],
        constants, "Test fixture of Loupe (Apache-2.0): YOLOX raw-head layout, no training, no weights")

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
model = helper.make_model(graph(), opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="loupe")
onnx.checker.check_model(model, full_check=True)
onnx.save(model, out / "model.onnx")
digest = hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()
manifest = out / "manifest.toml"
if manifest.exists():
    manifest.write_text(re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{digest}"', manifest.read_text()))
print("sha256", digest)
