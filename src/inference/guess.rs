//! What a graph probably is, from its names and shapes, and a manifest to edit.
//!
//! Pure. A guess says why; what no graph tells (colour order, scale, mean) is taken as the family trains and marked.

use super::anomalib::{Metadata, recognise};
use super::anomaly::ScoreScale;
use super::layout::DetectorLayout;
use super::onnx::{Graph, TensorInfo};
use crate::limits;

/// Boxes of 0 to 1 reach a little beyond the picture at most.
const UNIT_HIGHEST: f32 = 2.0;

/// A tensor with sides that a run on a grey picture showed, where the graph leaves them open; 0 = still open.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub name: String,
    pub element: String,
    pub sides: Vec<usize>,
    /// Its largest value in that run, of floats.
    pub highest: Option<f32>,
}

/// What the graph probably is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guess {
    /// `None`: feature maps or embeddings.
    pub layout: Option<DetectorLayout>,
    pub why: Vec<String>,
    /// Output names with role and stride, as the manifest's tables.
    outputs: Vec<(String, &'static str, Option<usize>, Option<usize>)>,
    class_count: Option<usize>,
    input: String,
    /// Of the input.
    element: String,
    size_px: [usize; 2],
    is_nhwc: bool,
    sizes: Option<String>,
    detector: Vec<String>,
    /// Whether a YOLOX is decoded in the graph: its pictures are made as for the raw one.
    is_decoded_yolox: bool,
    /// Whether it is an anomaly graph, and if so whether it normalises its scores.
    anomaly: Option<bool>,
}

/// The picture input: four sides, of which one is 3 (or the only one of four sides).
#[must_use]
pub fn picture_input(inputs: &[Seen]) -> Option<(&Seen, bool)> {
    let four: Vec<&Seen> = inputs.iter().filter(|input| input.sides.len() == 4).collect();
    let is_first = |input: &&Seen| input.sides[1] == 3;
    let is_last = |input: &&Seen| input.sides[3] == 3 && input.sides[1] != 3;
    let planar = four.iter().copied().find(is_first).map(|input| (input, false));
    let with_pixels_last = || four.iter().copied().find(is_last).map(|input| (input, true));
    planar.or_else(with_pixels_last).or_else(|| four.first().map(|input| (*input, false)))
}

/// What the graph probably is; words where nothing fits.
///
/// # Errors
/// When there is no picture input that Loupe can fill, or no layout has such outputs.
pub fn guess(graph: &Graph, inputs: &[Seen], outputs: &[Seen]) -> Result<Guess, String> {
    let Some((input, is_nhwc)) = picture_input(inputs) else {
        let shapes: Vec<String> = graph.inputs.iter().map(TensorInfo::to_string).collect();
        return Err(format!("no input has four sides as a picture needs ([N, 3, H, W]); found {}", shapes.join(", ")));
    };
    let (height, width) = if is_nhwc { (input.sides[1], input.sides[2]) } else { (input.sides[2], input.sides[3]) };
    let sizes = inputs.iter().find(|other| other.element == "int64" && other.sides.last() == Some(&2));
    check_input(input, is_nhwc)?;
    if let Some(other) =
        inputs.iter().find(|other| other.name != input.name && sizes.is_none_or(|s| s.name != other.name))
    {
        return Err(format!("it wants `{}` besides the picture, which Loupe does not have to give", other.name));
    }
    if let Some(task @ ("pose" | "obb")) = graph.metadata.get("task").map(String::as_str) {
        return Err(format!("an Ultralytics export of task `{task}`; Loupe reads those of `detect` and `segment`"));
    }
    let mut guess = Guess {
        layout: None,
        why: Vec::new(),
        outputs: Vec::new(),
        class_count: None,
        input: input.name.clone(),
        element: input.element.clone(),
        size_px: [width, height],
        is_nhwc,
        sizes: sizes.map(|input| input.name.clone()),
        detector: Vec::new(),
        is_decoded_yolox: false,
        anomaly: None,
    };
    if guess.by_anomaly(outputs) {
        return Ok(guess);
    }
    let is_detector = guess.by_names(outputs) || guess.by_pairs(outputs) || guess.by_shape(graph, outputs);
    if is_detector {
        guess.compare_names(graph);
    }
    if is_detector || guess.features(outputs) {
        return Ok(guess);
    }
    let shapes: Vec<String> = outputs.iter().map(|output| format!("{} {:?}", output.name, output.sides)).collect();
    Err(format!("no layout has outputs like {}; write the manifest by hand (docs/detectors.md)", shapes.join(", ")))
}

/// Whether Loupe can fill the picture input.
fn check_input(input: &Seen, is_nhwc: bool) -> Result<(), String> {
    let Seen { name, element, sides, .. } = input;
    let (channels, pixels) = if is_nhwc { (sides[3], &sides[1..3]) } else { (sides[1], &sides[2..4]) };
    if !["float32", "float16", "uint8"].contains(&element.as_str()) {
        return Err(format!(
            "input `{name}` is of {element}; Loupe fills float32, float16 and uint8: export it with one of these"
        ));
    }
    if sides[0] == 0 || pixels.iter().any(|side| !(1..=limits::IMAGE_SIDE_PX_MAX as usize).contains(side)) {
        return Err(format!("input `{name}` has the sides {sides:?}: a picture's are 1 to 16384, a batch's 1 or more"));
    }
    if channels != 3 {
        return Err(format!("input `{name}` has {channels} channels; Loupe's pictures have 3 (BGR or RGB)"));
    }
    Ok(())
}

impl Guess {
    /// Say so where the metadata names other classes than the outputs have.
    fn compare_names(&mut self, graph: &Graph) {
        let named = names_of(graph).map_or(0, |names| names.len());
        if let Some(count) = self.class_count.filter(|count| named > 0 && *count != named) {
            self.why.push(format!("its metadata names {named} classes, its output has {count}: name them by hand, or look again at the layout"));
        }
    }

    fn take(&mut self, output: &Seen, role: &'static str) {
        self.outputs.push((output.name.clone(), role, None, None));
    }

    /// Scores and maps as anomalib exports them.
    fn by_anomaly(&mut self, outputs: &[Seen]) -> bool {
        let Some(found) = recognise(outputs, self.size_px) else { return false };
        self.outputs = found.outputs.into_iter().map(|(name, role)| (name, role, None, None)).collect();
        self.anomaly = Some(found.is_normalised);
        self.why.push(found.why);
        true
    }

    /// What is guessed: a layout, or what else it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match (self.layout, self.anomaly) {
            (Some(layout), _) => layout.as_str(),
            (None, Some(_)) => "anomaly",
            (None, None) => "features",
        }
    }

    /// Whether the numbers of a `metadata.json` are needed.
    #[must_use]
    pub fn wants_metadata(&self) -> bool {
        self.anomaly == Some(false)
    }

    fn anomaly_table(&self, metadata: Option<&Metadata>) -> String {
        let line = |name: &str, ScoreScale { threshold, min, max }: ScoreScale| {
            format!("{name} = {{ threshold = {threshold:?}, min = {min:?}, max = {max:?} }}\n")
        };
        match (self.anomaly, metadata) {
            (None, _) => String::new(),
            (Some(true), _) => "\n[anomaly]\nnormalisation = \"in_graph\"        # guessed\n".to_owned(),
            (Some(false), None) => "\n[anomaly]\nnormalisation = \"min_max\"\n\
                 # image = { threshold = 0.0, min = 0.0, max = 0.0 }   # needed: the numbers of anomalib's metadata.json\n\
                 # pixel = { threshold = 0.0, min = 0.0, max = 0.0 }\n"
                .to_owned(),
            (Some(false), Some(found)) => {
                let lowest = match found.lowest() {
                    0.0 => String::new(),
                    lowest => format!("lowest = {lowest:?}             # guessed: the least the graph can give\n"),
                };
                let pixel = found.pixel.map_or(String::new(), |scale| line("pixel", scale));
                format!("\n[anomaly]\nnormalisation = \"min_max\"\n{lowest}{}{pixel}", line("image", found.image))
            }
        }
    }

    /// Outputs that are named as exporters name them.
    fn by_names(&mut self, outputs: &[Seen]) -> bool {
        if self.by_class_scores(outputs) {
            return true;
        }
        let find = |words: &[&str]| outputs.iter().find(|output| words.iter().any(|word| output.name.contains(word)));
        let (boxes, scores) = (find(&["boxes", "bboxes"]), find(&["scores"]));
        let labels = find(&["labels", "classes"]);
        let count = find(&["num_det", "num_dets"]);
        let (Some(boxes), Some(scores)) = (boxes, scores) else { return false };
        if boxes.sides.last() != Some(&4) {
            return false;
        }
        if let (Some(labels), None) = (labels, count) {
            self.layout = Some(DetectorLayout::Detr);
            self.why.push(
                "outputs are called labels, boxes and scores, as RT-DETR, D-FINE and DEIM export them".to_owned(),
            );
            self.why.push(
                "its numbers hang on the resize of its training: `triangle` for Pillow and torchvision (RT-DETR, D-FINE, DEIM), \
                 `linear` where OpenCV resized; check against the training code"
                    .to_owned(),
            );
            let place = |wanted: &Seen| outputs.iter().position(|output| output.name == wanted.name);
            if self.sizes.is_none() && place(boxes) < place(labels) && place(labels) < place(scores) {
                self.why.push(
                    "boxes, labels and scores in this order may be torchvision's: set `class_offset = 1` where 0 is the background".to_owned(),
                );
                self.detector.push(
                    "# class_offset = 1             # where 0 is the background, as torchvision has it".to_owned(),
                );
            }
            if let Some(sizes) = &self.sizes {
                self.why.push(format!("input `{sizes}` takes the picture's size"));
            } else {
                self.why
                    .push("no input takes the picture's size: set `boxes = \"unit\"` if boxes are 0 to 1".to_owned());
            }
            [(labels, "labels"), (boxes, "boxes"), (scores, "scores")]
                .into_iter()
                .for_each(|(output, role)| self.take(output, role));
            return true;
        }
        let Some(count) = count else { return false };
        self.layout = Some(DetectorLayout::Ssd);
        self.why.push("boxes, scores and a count: duplicates are removed in the graph".to_owned());
        if boxes.name.starts_with("detection_") {
            self.why
                .push("names as TensorFlow writes them: top, left, bottom, right of 0..1, classes from 1".to_owned());
            self.detector.push("class_offset = 1".to_owned());
        } else {
            self.why.push("names as EfficientNMS writes them: corners in pixels, classes from 0".to_owned());
            self.detector.extend(["boxes = \"input_px\"".to_owned(), "box_order = \"xyxy\"".to_owned()]);
        }
        self.take(boxes, "boxes");
        self.take(scores, "scores");
        if let Some(labels) = labels {
            self.take(labels, "labels");
        }
        self.take(count, "count");
        true
    }

    /// Boxes and the scores of every class for each query, as Hugging Face exports RT-DETR and RF-DETR itself.
    fn by_class_scores(&mut self, outputs: &[Seen]) -> bool {
        let find = |names: &[&str]| outputs.iter().find(|output| names.contains(&output.name.as_str()));
        let pair = find(&["pred_boxes", "dets"]).zip(find(&["logits", "labels"]));
        let Some((boxes, scores)) = pair else { return false };
        let ([_, queries, 4], [_, rows, classes]) = (&boxes.sides[..], &scores.sides[..]) else { return false };
        if queries != rows || *classes == 0 {
            return false;
        }
        self.layout = Some(DetectorLayout::Detr);
        self.class_count = Some(*classes);
        self.why.push(format!(
            "{queries} boxes and {classes} class scores each, as Hugging Face (RT-DETR) and RF-DETR export them"
        ));
        if boxes.name == "dets" {
            self.why
                .push("RF-DETR counts classes from 1: then set `class_offset = 1` and name one class less".to_owned());
        }
        self.detector.push("scores = \"logit\"             # guessed".to_owned());
        self.detector.push("boxes = \"unit\"               # guessed: 0 to 1".to_owned());
        self.detector.push("box_order = \"cxcywh\"         # guessed".to_owned());
        self.take(boxes, "boxes");
        self.take(scores, "scores");
        true
    }

    /// Pairs of class scores and distances for each stride (NanoDet, PicoDet).
    fn by_pairs(&mut self, outputs: &[Seen]) -> bool {
        let three = outputs.iter().filter(|output| output.sides.len() == 3).count();
        if outputs.len() < 4 || three != outputs.len() || !outputs.len().is_multiple_of(2) {
            return false;
        }
        let mut strides = Vec::new();
        for stride in [8, 16, 32, 64, 128] {
            let rows = self.cells(stride);
            let level: Vec<&Seen> = outputs.iter().filter(|output| output.sides[1] == rows).collect();
            let [first, second] = level[..] else { continue };
            // 32 = 4 sides of 8 distances.
            let (scores, boxes) = if first.sides[2] == 32 { (second, first) } else { (first, second) };
            self.outputs.push((scores.name.clone(), "scores", Some(stride), None));
            self.outputs.push((boxes.name.clone(), "boxes", Some(stride), None));
            self.class_count = Some(scores.sides[2]);
            strides.push(stride);
        }
        if strides.len() * 2 != outputs.len() {
            self.outputs.clear();
            return false;
        }
        self.layout = Some(DetectorLayout::Gfl);
        self.why
            .push(format!("a pair of outputs for each of the strides {strides:?}, as NanoDet and PicoDet export them"));
        self.detector.push(format!("strides = {strides:?}"));
        true
    }

    /// One output of rows, mostly `[1, rows, columns]`.
    fn by_shape(&mut self, graph: &Graph, outputs: &[Seen]) -> bool {
        let Some(main) = outputs.iter().find(|output| output.sides.len() == 3) else { return false };
        let prototypes = outputs.iter().find(|output| output.sides.len() == 4 && output.sides[1] > 0);
        let masks = prototypes.map_or(0, |output| output.sides[1]);
        let (a, b) = (main.sides[1], main.sides[2]);
        let grids = |strides: &[usize]| strides.iter().map(|stride| self.cells(*stride)).sum::<usize>();
        let (three, four) = (grids(&[8, 16, 32]), grids(&[8, 16, 32, 64]));
        let named = graph.metadata.contains_key("names");
        // Centres of cells reach across the input; raw ones are offsets of a few cells.
        let is_decoded =
            main.highest.is_some_and(|highest| highest > self.size_px[0].max(self.size_px[1]) as f32 / 2.0);
        let gfl_classes = b.checked_sub(32).filter(|count| *count > 0 && masks == 0);
        let (layout, why, class_count) = match () {
            () if b == 6 + masks && a <= 1_000 && a != three => {
                (DetectorLayout::EndToEnd, format!("{a} rows of 6: corners, score, class"), None)
            }
            () if a == four && gfl_classes.is_some() => {
                self.detector.extend(["strides = [8, 16, 32, 64]".to_owned(), "cell_offset = 0.0".to_owned()]);
                let why = format!("{a} rows are the cells of strides 8 to 64, {b} = classes + 4 x 8: NanoDet-Plus");
                (DetectorLayout::Gfl, why, gfl_classes)
            }
            () if a == three && b == 112 => {
                (DetectorLayout::Gfl, "80 classes + 4 x 8 distances a cell: NanoDet or PicoDet".to_owned(), Some(80))
            }
            () if (a == 3 * three || b == 3 * three) && a.min(b) > 5 + masks => {
                let why = format!("{} rows are three anchors for each cell: YOLOv5 or v7", 3 * three);
                (DetectorLayout::Yolov5, why, Some(a.min(b) - 5 - masks))
            }
            () if a == three && b > 5 && !named && b != 84 && masks == 0 && is_decoded => {
                let why = format!(
                    "{a} rows of {b} are the cells of strides 8, 16, 32, with boxes in pixels: YOLOX decoded in the graph, 5 + {} \
                     values; if there is no objectness it is `yolo` with {} classes",
                    b - 5,
                    b - 4
                );
                self.is_decoded_yolox = true;
                (DetectorLayout::Yolov5, why, Some(b - 5))
            }
            () if a == three && b > 5 && !named && b != 84 && masks == 0 => {
                let why = format!(
                    "{a} rows of {b} are the cells of strides 8, 16, 32 with 5 + {} values: YOLOX, if the boxes are raw (an \
                     export that decodes them in the graph is `yolov5`)",
                    b - 5
                );
                (DetectorLayout::Yolox, why, Some(b - 5))
            }
            () if a.min(b) > 4 + masks && a != b => {
                let way = if a < b { "planes" } else { "rows" };
                let why = format!("4 + {} values in {way}, without objectness: YOLOv8, v9, v11", a.min(b) - 4 - masks);
                (DetectorLayout::Yolo, why, Some(a.min(b) - 4 - masks))
            }
            () => return false,
        };
        self.layout = Some(layout);
        self.why.push(why);
        self.class_count = class_count;
        // Some row's box always reaches far into the input, whatever the picture shows.
        let is_unit = main.highest.is_some_and(|highest| highest <= UNIT_HIGHEST);
        if is_unit && matches!(layout, DetectorLayout::Yolo | DetectorLayout::Yolov5) {
            self.why.push(
                "no value is above 2 in a run: boxes are 0 to 1 of the input, as Ultralytics exports RT-DETR"
                    .to_owned(),
            );
            self.detector.push("boxes = \"unit\"               # guessed: 0 to 1".to_owned());
        }
        if layout == DetectorLayout::EndToEnd {
            self.why.push(
                "boxes are taken for pixels: set `boxes = \"unit\"` under [detector] if they are 0 to 1".to_owned(),
            );
        }
        self.take(main, "detections");
        if let Some(prototypes) = prototypes {
            self.why.push(format!("{masks} mask prototypes in `{}`", prototypes.name));
            self.take(prototypes, "prototypes");
        }
        true
    }

    fn features(&mut self, outputs: &[Seen]) -> bool {
        for output in outputs {
            match output.sides[..] {
                [_, channels, height, _] if height > 0 && channels > 0 => {
                    let stride = self.size_px[1].div_ceil(height);
                    self.outputs.push((output.name.clone(), "features", Some(stride), Some(channels)));
                }
                [_, channels] if channels > 0 => {
                    self.outputs.push((output.name.clone(), "embedding", None, Some(channels)));
                }
                _ => {}
            }
        }
        self.why.push("outputs are maps or vectors: a backbone".to_owned());
        !self.outputs.is_empty()
    }

    fn cells(&self, stride: usize) -> usize {
        self.size_px[0].div_ceil(stride) * self.size_px[1].div_ceil(stride)
    }

    /// `manifest.toml` for a file of this name and digest, with what is guessed marked.
    #[must_use]
    pub fn manifest(
        &self,
        graph: &Graph,
        name: &str,
        file: &str,
        sha256: &str,
        external: &[(String, String)],
        metadata: Option<&Metadata>,
    ) -> String {
        let mut text = String::new();
        let classes = self.classes(graph);
        let kind = if self.layout.is_some() { "detector" } else { self.kind() };
        push(&mut text, format_args!("# Guessed by `loupe model probe`: check every line that says so."));
        push(&mut text, format_args!("name = \"{name}\"\nversion = \"1\"\nkind = \"{kind}\""));
        if let Some(layout) = self.layout {
            push(
                &mut text,
                format_args!("layout = \"{layout}\"             # guessed: {}", plain(&self.why.join("; "))),
            );
            push(&mut text, format_args!("classes = {classes:?}             # in the order of the output"));
        }
        push(&mut text, format_args!("file = \"{file}\"\nsha256 = \"{sha256}\""));
        push(
            &mut text,
            format_args!(
                "license = \"unknown\"             # say whose it is\nsource = \"{}\"",
                plain(&graph.producer)
            ),
        );
        text.push_str(&self.input_table(metadata));
        text.push_str(&self.anomaly_table(metadata));
        if !self.detector.is_empty() {
            push(&mut text, format_args!("\n[detector]\n{}", self.detector.join("\n")));
        }
        for (output, role, stride, channels) in &self.outputs {
            push(&mut text, format_args!("\n[[outputs]]\nname = \"{}\"\nrole = \"{role}\"", plain(output)));
            if let Some(stride) = stride {
                push(&mut text, format_args!("stride = {stride}"));
            }
            if let Some(channels) = channels {
                push(&mut text, format_args!("channels = {channels}"));
            }
        }
        for (file, sha256) in external {
            push(&mut text, format_args!("\n[[external]]\nfile = \"{}\"\nsha256 = \"{sha256}\"", plain(file)));
        }
        text
    }

    fn input_table(&self, metadata: Option<&Metadata>) -> String {
        const BY_255: &str = "0.00392156862745098";
        let imagenet = "mean = [0.485, 0.456, 0.406]     # guessed\nstd = [0.229, 0.224, 0.225]      # guessed";
        let imagenet_bgr = "mean = [0.406, 0.456, 0.485]     # guessed\nstd = [0.225, 0.224, 0.229]      # guessed";
        let plain_values = "mean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]";
        let (color, scale, values, resize) = match self.layout {
            _ if self.is_decoded_yolox => ("bgr", "1.0", plain_values, "letterbox"),
            Some(DetectorLayout::Yolox) => ("bgr", "1.0", plain_values, "letterbox"),
            Some(DetectorLayout::Yolo | DetectorLayout::Yolov5 | DetectorLayout::EndToEnd) => {
                ("rgb", BY_255, plain_values, "letterbox")
            }
            Some(DetectorLayout::Detr) => ("rgb", BY_255, plain_values, "stretch"),
            Some(DetectorLayout::Gfl) => ("bgr", BY_255, imagenet_bgr, "stretch"),
            Some(DetectorLayout::Ssd) => ("rgb", "1.0", plain_values, "stretch"),
            // Since 1.0 anomalib normalises pictures in the graph.
            None if self.anomaly.is_some() && !metadata.is_some_and(|found| found.is_normalised_before) => {
                ("rgb", BY_255, plain_values, "stretch")
            }
            None => ("rgb", BY_255, imagenet, "stretch"),
        };
        // A graph that takes octets scales them itself.
        let (scale, values) = if self.element == "uint8" { ("1.0", plain_values) } else { (scale, values) };
        let resample = match self.layout {
            None | Some(DetectorLayout::Detr) => "triangle",
            Some(_) => "linear",
        };
        let mut text = format!(
            "\n[input]\nname = \"{}\"\nsize_px = [{}, {}]\ncolor = \"{color}\"                # guessed: rgb | bgr\n\
             scale = {scale}    # guessed; multiplies 0..255 first\n{values}\n\
             resize = \"{resize}\"         # guessed: stretch | letterbox\n\
             resample = \"{resample}\"       # guessed: linear (OpenCV) | triangle (Pillow, torchvision)\n",
            plain(&self.input),
            self.size_px[0],
            self.size_px[1],
        );
        if self.is_decoded_yolox {
            text.push_str("placement = \"top_left\"      # guessed: as YOLOX letterboxes\n");
        }
        if self.is_nhwc {
            text.push_str("axes = \"nhwc\"\n");
        }
        if let Some(sizes) = &self.sizes {
            push(&mut text, format_args!("sizes = \"{}\"", plain(sizes)));
        }
        text
    }

    /// Names from Ultralytics' metadata (`{0: 'person', 1: 'bicycle'}`), else numbered ones.
    fn classes(&self, graph: &Graph) -> Vec<String> {
        match (names_of(graph), self.class_count) {
            (Some(names), count) if count.is_none_or(|count| count == names.len()) => names,
            (_, Some(1)) => vec!["object".to_owned()],
            (_, Some(count)) => (0..count).map(|class| format!("class_{class}")).collect(),
            (_, None) => Vec::new(),
        }
    }
}

/// Class names of Ultralytics' metadata.
fn names_of(graph: &Graph) -> Option<Vec<String>> {
    let parts = graph.metadata.get("names")?.trim_matches(['{', '}']).split(", ");
    let names = parts.filter_map(|part| Some(part.split_once(':')?.1.trim().trim_matches(['\'', '"']).to_owned()));
    Some(names.collect())
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.push_str(&line.to_string());
    text.push('\n');
}

/// Safe between the quotes of a TOML string.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect()
}

#[cfg(test)]
mod tests;
