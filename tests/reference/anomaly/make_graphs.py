#!/usr/bin/env python3
"""Small anomaly graphs with the outputs of anomalib's exports, and files that are broken:
pip install onnx && python tests/reference/anomaly/make_graphs.py tests/reference/anomaly

Each is PaDiM in small without training: the mean colour of 8 x 8 pixels, its Mahalanobis distance to mid grey with a fixed
covariance, brought to 64 x 64 by bilinear interpolation. No weights, nothing random.

padim-2       outputs as anomalib 2 writes them: pred_score, pred_label, anomaly_map, pred_mask, normalised in the graph
padim-1       one output, the raw map; metadata.json as 1.1 writes it
score-0       one output, a single raw number; metadata.json as 0.7 writes it, pictures normalised before the graph
flow-1        a raw map between -1 and 0, as FastFlow gives it
not-a-number  a map that is 0 / 0 where a cell is exactly mid grey
wide          a map twice as wide as the picture
unnormalised  says that it normalises, and does not
"""
import hashlib, json, pathlib, sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, CELL = 64, 8
GREY, DEVIATION = 0.5, (0.1, 0.12, 0.15)
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class Build:
    def __init__(self):
        self.constants, self.nodes = [], []

    def const(self, name, value, dtype="f4"):
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def distance(self, mean, deviation):
        """[N, 1, 8, 8] Mahalanobis distance of each cell's mean colour."""
        self.node("AveragePool", ["input"], "cells", kernel_shape=[CELL] * 2, strides=[CELL] * 2)
        self.node("Sub", ["cells", self.const("mean", np.reshape(mean, (1, 3, 1, 1)))], "off")
        self.node("Div", ["off", self.const("deviation", np.reshape(deviation, (1, 3, 1, 1)))], "scaled")
        self.node("Mul", ["scaled", "scaled"], "squares")
        self.node("ReduceSum", ["squares", self.const("channels", [1], "i8")], "square", keepdims=1)
        return self.node("Sqrt", ["square"], "distance")

    def up(self, cells, name, factors=(1, 1, CELL, CELL)):
        self.const("roi", []), self.const("factors", factors)
        return self.node("Resize", [cells, "roi", "factors"], name, mode="linear", coordinate_transformation_mode="half_pixel")

    def save(self, folder, outputs, manifest_anomaly, metadata=None, input_values=None):
        folder.mkdir(parents=True, exist_ok=True)
        graph = helper.make_graph(
            self.nodes, folder.name, [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape, _ in outputs], self.constants,
            "Test fixture of Loupe (Apache-2.0): no training, no weights")
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="loupe")
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / "model.onnx")
        if metadata:
            (folder / "metadata.json").write_text(json.dumps(metadata) + "\n")
        values = input_values or {"mean": [0.0] * 3, "std": [1.0] * 3}
        digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        text = f'''name = "{folder.name}"
version = "1"
kind = "anomaly"
file = "model.onnx"
sha256 = "{digest}"
license = "Apache-2.0"
source = "tests/reference/anomaly/make_graphs.py"

[input]
name = "input"
size_px = [{SIZE}, {SIZE}]
color = "rgb"
scale = 0.00392156862745098
mean = {values["mean"]}
std = {values["std"]}
resize = "stretch"

[anomaly]
{manifest_anomaly}
'''
        for name, _, _, role in outputs:
            if role:
                text += f'\n[[outputs]]\nname = "{name}"\nrole = "{role}"\n'
        (folder / "manifest.toml").write_text(text)


FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
MAP = ["batch", 1, SIZE, SIZE]
THRESHOLD, LOW, HIGH = 2.0, 0.0, 6.0
SCALE = f"{{ threshold = {THRESHOLD}, min = {LOW}, max = {HIGH} }}"


def main(root):
    b = Build()
    b.distance([GREY] * 3, DEVIATION)
    b.up("distance", "raw")
    b.const("threshold", THRESHOLD), b.const("span", HIGH - LOW), b.const("half", 0.5), b.const("zero", 0), b.const("one", 1)
    b.node("ReduceMax", ["raw"], "raw_score", axes=[1, 2, 3], keepdims=0)
    for raw, name in (("raw", "anomaly_map"), ("raw_score", "pred_score")):
        b.node("Sub", [raw, "threshold"], f"{name}_over")
        b.node("Div", [f"{name}_over", "span"], f"{name}_part")
        b.node("Add", [f"{name}_part", "half"], f"{name}_open")
        b.node("Clip", [f"{name}_open", "zero", "one"], name)
    b.node("Greater", ["pred_score", "half"], "pred_label")
    b.node("Greater", ["anomaly_map", "half"], "pred_mask")
    b.save(root / "padim-2", [("pred_score", FLOAT, ["batch"], "anomaly_score"), ("pred_label", BOOL, ["batch"], "anomaly_label"),
                              ("anomaly_map", FLOAT, MAP, "anomaly_map"), ("pred_mask", BOOL, MAP, None)], 'normalisation = "in_graph"')

    b = Build()
    b.distance([GREY] * 3, DEVIATION)
    b.up("distance", "output")
    b.save(root / "padim-1", [("output", FLOAT, MAP, "anomaly_map")], f'normalisation = "min_max"\nimage = {SCALE}\npixel = {SCALE}',
           {"task": "segmentation", "image_threshold": THRESHOLD, "pixel_threshold": THRESHOLD, "pred_scores.min": LOW,
            "pred_scores.max": HIGH, "anomaly_maps.min": LOW, "anomaly_maps.max": HIGH})

    b = Build()
    mean = [(GREY - m) / s for m, s in zip(IMAGENET["mean"], IMAGENET["std"])]
    deviation = [d / s for d, s in zip(DEVIATION, IMAGENET["std"])]
    b.distance(mean, deviation)
    b.up("distance", "raw")
    b.node("ReduceMax", ["raw"], "output", axes=[1, 2, 3], keepdims=0)
    b.save(root / "score-0", [("output", FLOAT, ["batch"], "anomaly_score")], f'normalisation = "min_max"\nimage = {SCALE}',
           {"image_threshold": THRESHOLD, "min": LOW, "max": HIGH, "transform": {"transform": {"transforms": [
               {"__class_fullname__": "Resize", "height": SIZE, "width": SIZE}, {"__class_fullname__": "Normalize", **IMAGENET}]}}},
           IMAGENET)

    b = Build()
    b.distance([GREY] * 3, DEVIATION)
    b.node("Neg", ["distance"], "minus")
    b.node("Exp", ["minus"], "likelihood")
    b.node("Neg", ["likelihood"], "cells_of_map")
    b.up("cells_of_map", "output")
    import math
    threshold = -math.exp(-THRESHOLD)
    flow = f"{{ threshold = {threshold:.6f}, min = -1.0, max = 0.0 }}"
    b.save(root / "flow-1", [("output", FLOAT, MAP, "anomaly_map")], f'normalisation = "min_max"\nlowest = -2.0\nimage = {flow}\npixel = {flow}',
           {"image_threshold": threshold, "pixel_threshold": threshold, "pred_scores.min": -1.0, "pred_scores.max": 0.0,
            "anomaly_maps.min": -1.0, "anomaly_maps.max": 0.0})

    b = Build()
    b.distance([128 / 255] * 3, DEVIATION)
    b.node("Div", ["distance", "distance"], "broken")
    b.up("broken", "output")
    b.save(root / "not-a-number", [("output", FLOAT, MAP, "anomaly_map")], f'normalisation = "min_max"\nimage = {SCALE}')

    b = Build()
    b.distance([GREY] * 3, DEVIATION)
    b.up("distance", "output", (1, 1, CELL, 2 * CELL))
    b.save(root / "wide", [("output", FLOAT, ["batch", 1, SIZE, 2 * SIZE], "anomaly_map")], f'normalisation = "min_max"\nimage = {SCALE}')

    b = Build()
    b.distance([GREY] * 3, DEVIATION)
    b.up("distance", "anomaly_map")
    b.save(root / "unnormalised", [("anomaly_map", FLOAT, MAP, "anomaly_map")], 'normalisation = "in_graph"')


main(pathlib.Path(sys.argv[1]))
