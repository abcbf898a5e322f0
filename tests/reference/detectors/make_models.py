#!/usr/bin/env python3
"""Build the tiny graphs of this folder: one for each detector layout, with outputs that are known beforehand.

    pip install onnx==1.23.2 && python tests/reference/detectors/make_models.py tests/reference/detectors

No training and no weights (Apache-2.0, as Loupe). Every graph has an input of 64 x 64 and looks at one patch of it
(columns 8 to 16, rows 20 to 28): where that is pure red it proposes, in input pixels,

    class b  24 24 40 32   score 0.8   (twice where the layout leaves duplicates to Loupe; the other scores 0.6)
    class a   4 18 12 26   score 0.5
    class a  56 40 72 60   score 0.4   (reaches out of the input)

and nothing where it is black or blue; so colour order, scale, mean and element type of the input all count.
"""
import hashlib, math, pathlib, sys

import numpy as np
import onnx
from onnx import TensorProto as T, helper, numpy_helper

SIZE = 64
B, A, OUT = [24, 24, 40, 32], [4, 18, 12, 26], [56, 40, 72, 60]
THINGS = [(B, 1, 0.8), (B, 1, 0.6), (A, 0, 0.5), (OUT, 0, 0.4)]
FINAL = [THINGS[0], *THINGS[2:]]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Graph:
    def __init__(self):
        self.nodes, self.constants, self.count = [], [], 0

    def const(self, value, dtype="f4"):
        self.count += 1
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), f"c{self.count}"))
        return f"c{self.count}"

    def node(self, op, *inputs, out=None, **attributes):
        self.count += 1
        out = out or f"t{self.count}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def signal(self, images, red, k, nhwc=False, cast=False):
        """[N, 1, 1]: 1 where the patch is red, 0 where it is black or blue."""
        if cast:
            images = self.node("Cast", images, to=T.FLOAT)
        if nhwc:
            images = self.node("Transpose", images, perm=[0, 3, 1, 2])
        corners = self.const([20, 8], "i8"), self.const([28, 16], "i8"), self.const([2, 3], "i8")
        mean = self.node("ReduceMean", self.node("Slice", images, *corners), axes=[2, 3], keepdims=1)
        weights = [0.0, 0.0, 0.0]
        weights[red], weights[2 - red] = k, -k
        weighted = self.node("Mul", mean, self.const(np.reshape(weights, (1, 3, 1, 1))))
        total = self.node("ReduceSum", weighted, self.const([1], "i8"), keepdims=1)
        clipped = self.node("Clip", total, self.const(0.0), self.const(1.0))
        return self.node("Squeeze", clipped, self.const([3], "i8"))

    def rows(self, table, score_columns, signal, out=None):
        """The table, its score columns times the signal."""
        table = np.asarray(table, "f4")
        table = table.reshape((1,) + table.shape) if table.ndim == 2 else table
        scores = np.zeros_like(table)
        scores[..., score_columns] = table[..., score_columns]
        return self.node("Add", self.const(table - scores), self.node("Mul", self.const(scores), signal), out=out)


def centre(box):
    return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]


def yolo_rows(things, objectness=False, masks=()):
    rows = []
    for box, label, score in things:
        classes = [0.0, 0.0]
        classes[label] = score / 0.9 if objectness else score
        rows.append([*centre(box), *([0.9] if objectness else []), *classes, *masks])
    width = len(rows[0])
    return rows + [[0.0] * width] * (9 - len(rows))


def distances(box, x, y, stride):
    logits = []
    for value in [(x - box[0]) / stride, (y - box[1]) / stride, (box[2] - x) / stride, (box[3] - y) / stride]:
        assert 0 <= value <= 7, (box, x, y)
        low, part = int(value), value - int(value)
        row = [-30.0] * 8
        row[low] = math.log(max(1 - part, 1e-13))
        if part:
            row[low + 1] = math.log(part)
        logits += row
    return logits


def gfl_tables(strides, offset):
    """Class scores and distances of each grid; the things are seen by cells of stride 8."""
    cells = {(4, 3): THINGS[0], (3, 3): THINGS[1], (1, 3) if offset == 0 else (1, 2): THINGS[2], (7, 6): THINGS[3]}
    tables = []
    for stride in strides:
        side = -(-SIZE // stride)
        scores, boxes = np.zeros((side * side, 2), "f4"), np.zeros((side * side, 32), "f4")
        if stride == 8:
            for (x, y), (box, label, score) in cells.items():
                scores[y * side + x, label] = score
                boxes[y * side + x] = distances(box, (x + offset) * stride, (y + offset) * stride, stride)
        tables.append((scores, boxes))
    return tables


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


class Model:
    """A folder with model and manifest."""

    def __init__(self, folder, layout, inputs, outputs, graph, *, classes=("a", "b"), opset=13):
        self.path = folder
        self.layout, self.classes = layout, classes
        model = helper.make_model(
            helper.make_graph(graph.nodes, folder.name, inputs, outputs, graph.constants, "Test fixture of Loupe (Apache-2.0)"),
            opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="loupe")
        if opset < 30:
            onnx.checker.check_model(model, full_check=True)
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(model, folder / "model.onnx")

    def manifest(self, outputs, *, color="rgb", scale="0.00392156862745098", normalised=False, resize="letterbox", extra="", detector=""):
        digest = hashlib.sha256((self.path / "model.onnx").read_bytes()).hexdigest()
        mean, std = (MEAN, STD) if normalised else ([0.0] * 3, [1.0] * 3)
        if normalised and color == "bgr":
            mean, std = mean[::-1], std[::-1]
        lines = [
            "# Test fixture: make_models.py wrote it.", f'name = "{self.path.name}"', 'version = "1"', 'kind = "detector"',
            f'layout = "{self.layout}"', f"classes = {list(self.classes)}".replace("'", '"'), 'file = "model.onnx"',
            f'sha256 = "{digest}"', 'license = "Apache-2.0"', 'source = "tests/reference/detectors/make_models.py"', "",
            "[input]", 'name = "images"', f"size_px = [{SIZE}, {SIZE}]", f'color = "{color}"', f"scale = {scale}",
            f"mean = {mean}", f"std = {std}", f'resize = "{resize}"', *([extra] if extra else []),
        ]
        if detector:
            lines += ["", "[detector]", detector]
        for name, role, *stride in outputs:
            lines += ["", "[[outputs]]", f'name = "{name}"', f'role = "{role}"', *(f"stride = {s}" for s in stride)]
        (self.path / "manifest.toml").write_text("\n".join(lines) + "\n")


def images(kind=T.FLOAT, batch=1, nhwc=False):
    return value("images", kind, [batch, SIZE, SIZE, 3] if nhwc else [batch, 3, SIZE, SIZE])


def build(root):
    detections = [("output", "detections")]

    g = Graph()
    g.node("Transpose", g.rows(yolo_rows(THINGS), [4, 5], g.signal("images", 0, 1.1)), out="output", perm=[0, 2, 1])
    Model(root / "yolov8", "yolo", [images()], [value("output", T.FLOAT, [1, 6, 9])], g).manifest(detections)

    g = Graph()  # half precision in and out, any batch, one row a thing
    signal = g.signal("images", 0, 1.1, cast=True)
    g.node("Cast", g.rows(yolo_rows(THINGS), [4, 5], signal), out="output", to=T.FLOAT16)
    Model(root / "yolov8-rows-f16", "yolo", [images(T.FLOAT16, "N")], [value("output", T.FLOAT16, ["N", 9, 6])], g).manifest(detections)

    g = Graph()  # octets in, any batch
    g.rows(yolo_rows(THINGS, objectness=True), [5, 6], g.signal("images", 0, 1 / 250, cast=True), out="output")
    Model(root / "yolov5-u8", "yolov5", [images(T.UINT8, "N")], [value("output", T.FLOAT, ["N", 9, 7])], g).manifest(detections, scale="1.0")

    g = Graph()  # always two pictures
    g.node("Transpose", g.rows(yolo_rows(THINGS), [4, 5], g.signal("images", 0, 1.1)), out="output", perm=[0, 2, 1])
    Model(root / "yolov8-batch2", "yolo", [images(batch=2)], [value("output", T.FLOAT, [2, 6, 9])], g).manifest(detections)

    g = Graph()
    g.node("Transpose", g.rows(yolo_rows(THINGS, masks=[1.0, -1.0]), [4, 5], g.signal("images", 0, 1.1)), out="output", perm=[0, 2, 1])
    ramp = np.tile(np.arange(16, dtype="f4") - 7.5, (16, 1))  # positive from input column 32 on
    g.node("Identity", g.const(np.stack([ramp, -ramp])[None]), out="prototypes")
    outputs = [value("output", T.FLOAT, [1, 8, 9]), value("prototypes", T.FLOAT, [1, 2, 16, 16])]
    Model(root / "yolov8-seg", "yolo", [images()], outputs, g).manifest(detections + [("prototypes", "prototypes")])

    g = Graph()
    rows = [[*box, score, label] for box, label, score in FINAL] + [[0.0] * 6] * 3
    g.rows(rows, [4], g.signal("images", 0, 1.1), out="output")
    Model(root / "end-to-end", "end_to_end", [images()], [value("output", T.FLOAT, [1, 6, 6])], g).manifest(detections, resize="stretch")

    g = Graph()  # boxes are scaled by the second input, classes are integers
    signal = g.signal("images", 0, 0.26)
    scores = g.node("Squeeze", g.rows([[score] for _, _, score in FINAL], [0], signal), g.const([2], "i8"), out="scores")
    sides = g.node("Unsqueeze", g.node("Cast", "orig_target_sizes", to=T.FLOAT), g.const([1], "i8"))
    unit = g.const(np.asarray([[box for box, _, _ in FINAL]], "f4") / SIZE)
    g.node("Mul", unit, g.node("Concat", sides, sides, axis=2), out="boxes")
    g.node("Expand", g.const([[label for _, label, _ in FINAL]], "i8"), g.node("Shape", scores), out="labels")
    inputs = [images(batch="N"), value("orig_target_sizes", T.INT64, ["N", 2])]
    outputs = [value("labels", T.INT64, ["N", 3]), value("boxes", T.FLOAT, ["N", 3, 4]), value("scores", T.FLOAT, ["N", 3])]
    Model(root / "detr", "detr", inputs, outputs, g).manifest(
        [(name, name) for name in ("labels", "boxes", "scores")], normalised=True, resize="stretch", extra='sizes = "orig_target_sizes"')

    g, strides = Graph(), [8, 16, 32, 64]
    table = np.concatenate([np.concatenate(pair, 1) for pair in gfl_tables(strides, 0.0)])
    g.rows(table, [0, 1], g.signal("images", 2, 1 / 250), out="output")
    Model(root / "nanodet", "gfl", [images()], [value("output", T.FLOAT, [1, len(table), 34])], g).manifest(
        detections, color="bgr", scale="1.0", detector=f"strides = {strides}\ncell_offset = 0.0")

    g, strides, outputs, roles = Graph(), [8, 16, 32], [], []
    signal = g.signal("images", 2, 0.26)
    for stride, (scores, boxes) in zip(strides, gfl_tables(strides, 0.5)):
        g.rows(scores, [0, 1], signal, out=f"scores_{stride}")
        g.node("Identity", g.const(boxes[None]), out=f"boxes_{stride}")
        outputs += [value(f"scores_{stride}", T.FLOAT, [1, len(scores), 2]), value(f"boxes_{stride}", T.FLOAT, [1, len(boxes), 32])]
        roles += [(f"scores_{stride}", "scores", stride), (f"boxes_{stride}", "boxes", stride)]
    Model(root / "picodet", "gfl", [images()], outputs, g).manifest(roles[::-1], color="bgr", normalised=True)

    g = Graph()  # as TensorFlow exports: pixels last, octets, top-left order of 0..1, classes from 1 on
    signal = g.signal("images", 0, 1 / 250, nhwc=True, cast=True)
    unit = np.asarray([[[b[1], b[0], b[3], b[2]] for b, _, _ in FINAL] + [[0, 0, 1, 1]] * 2], "f4") / SIZE
    g.node("Identity", g.const(unit), out="detection_boxes")
    scores = g.rows([[score] for _, _, score in FINAL] + [[0.9]] * 2, [0], signal)
    g.node("Squeeze", scores, g.const([2], "i8"), out="detection_scores")
    g.node("Identity", g.const([[label + 1 for _, label, _ in FINAL] + [1, 1]]), out="detection_classes")
    g.node("Identity", g.const([len(FINAL)]), out="num_detections")
    outputs = [value("detection_boxes", T.FLOAT, [1, 5, 4]), value("detection_classes", T.FLOAT, [1, 5]),
               value("detection_scores", T.FLOAT, [1, 5]), value("num_detections", T.FLOAT, [1])]
    Model(root / "ssd-u8", "ssd", [images(T.UINT8, nhwc=True)], outputs, g).manifest(
        [("detection_boxes", "boxes"), ("detection_classes", "labels"), ("detection_scores", "scores"), ("num_detections", "count")],
        scale="1.0", resize="stretch", extra='axes = "nhwc"', detector="class_offset = 1")

    g = Graph()  # 10 000 boxes of 2 x 2, side by side
    index = g.node("Range", g.const(0), g.const(10000), g.const(1))
    column = g.node("Mod", index, g.const(100), fmod=1)
    row = g.node("Floor", g.node("Div", index, g.const(100)))
    x, y = g.node("Mul", column, g.const(0.6)), g.node("Mul", row, g.const(0.6))
    far = [g.node("Add", x, g.const(2.0)), g.node("Add", y, g.const(2.0))]
    zero = g.node("Mul", index, g.const(0.0))
    score = g.node("Add", zero, g.const(0.9))
    axis = g.const([1], "i8")
    stacked = g.node("Concat", *[g.node("Unsqueeze", v, axis) for v in (x, y, *far, score, zero)], axis=1)
    used = g.node("Mul", g.signal("images", 0, 1.1), g.const(0.0))
    g.node("Add", g.node("Unsqueeze", stacked, g.const([0], "i8")), used, out="output")
    Model(root / "many", "end_to_end", [images()], [value("output", T.FLOAT, [1, 10000, 6])], g).manifest(detections, resize="stretch")

    g = Graph()  # a red picture makes it divide by nothing
    table = g.rows(yolo_rows(THINGS), [4, 5], g.signal("images", 0, 1.1))
    rest = g.node("Sub", g.const(1.0), g.signal("images", 0, 1.1))
    g.node("Transpose", g.node("Mul", table, g.node("Div", rest, rest)), out="output", perm=[0, 2, 1])
    Model(root / "not-a-number", "yolo", [images()], [value("output", T.FLOAT, [1, 6, 9])], g).manifest(detections)

    g = Graph()
    g.node("Identity", "images", out="output")
    Model(root / "future-opset", "yolo", [images()], [value("output", T.FLOAT, [1, 3, 64, 64])], g, opset=99).manifest(detections)

    g = Graph()  # nothing is said about any side
    g.rows(yolo_rows(THINGS), [4, 5], g.signal("images", 0, 1.1), out="output")
    Model(root / "dynamic", "yolo", [value("images", T.FLOAT, ["n", "c", "h", "w"])], [value("output", T.FLOAT, ["n", "rows", "values"])], g).manifest(detections)

    g = Graph()  # weights beside the model
    g.node("Transpose", g.rows(yolo_rows(THINGS), [4, 5], g.signal("images", 0, 1.1)), out="output", perm=[0, 2, 1])
    model = Model(root / "external", "yolo", [images()], [value("output", T.FLOAT, [1, 6, 9])], g)
    weights = model.path / "weights.bin"
    weights.unlink(missing_ok=True)
    onnx.save(onnx.load(model.path / "model.onnx"), model.path / "model.onnx", save_as_external_data=True,
              all_tensors_to_one_file=True, location=weights.name, size_threshold=100)
    model.manifest(detections)
    text = (model.path / "manifest.toml").read_text()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (model.path / "manifest.toml").write_text(f'{text}\n[[external]]\nfile = "{weights.name}"\nsha256 = "{digest}"\n')


if __name__ == "__main__":
    build(pathlib.Path(sys.argv[1]))
