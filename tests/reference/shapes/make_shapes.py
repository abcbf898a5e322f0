#!/usr/bin/env python3
"""Graphs whose axes are zero or not there: pip install onnx && python tests/reference/shapes/make_shapes.py tests/reference/shapes

no-rows    an end-to-end detector whose output has no row at all, as a graph with its own suppression gives on an empty picture
no-side    a detector whose input is 0 pixels high and wide
no-rank    a detector whose input says nothing, not even how many axes it has
one-axis   a detector whose input is a line of numbers
"""
import hashlib, pathlib, sys

import numpy as np
import onnx
from onnx import TensorProto as T, helper, numpy_helper


def save(folder, shape, table, size_px=64):
    folder.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("ReduceSum", ["images"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nothing"], ["zero"]),
        helper.make_node("Add", ["table", "zero"], ["output"]),
    ]
    constants = [numpy_helper.from_array(np.zeros((), "f4"), "nothing"), numpy_helper.from_array(np.asarray(table, "f4"), "table")]
    graph = helper.make_graph(nodes, folder.name, [helper.make_tensor_value_info("images", T.FLOAT, shape)],
                              [helper.make_tensor_value_info("output", T.FLOAT, ["batch", "rows", 6])], constants,
                              "Test fixture of Loupe (Apache-2.0): no training, no weights")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="loupe")
    onnx.save(model, folder / "model.onnx")
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "manifest.toml").write_text(f'''name = "{folder.name}"
version = "1"
kind = "detector"
layout = "end_to_end"
classes = ["a"]
file = "model.onnx"
sha256 = "{digest}"
license = "Apache-2.0"
source = "tests/reference/shapes/make_shapes.py"

[input]
name = "images"
size_px = [{size_px}, {size_px}]
color = "rgb"
scale = 1.0
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
resize = "stretch"

[[outputs]]
name = "output"
role = "detections"
''')


root = pathlib.Path(sys.argv[1])
row = [[[1, 2, 30, 40, 0.9, 0]]]
save(root / "no-rows", [1, 3, 64, 64], np.zeros((1, 0, 6)))
save(root / "no-side", [1, 3, 0, 0], row)
save(root / "no-rank", None, row)
save(root / "one-axis", [12288], row)
