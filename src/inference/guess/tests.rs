use super::*;

fn seen(name: &str, element: &str, sides: &[usize]) -> Seen {
    Seen { name: name.to_owned(), element: element.to_owned(), sides: sides.to_vec(), highest: None }
}

fn check_guess(size: usize, outputs: &[(&str, &[usize])], expected: Option<DetectorLayout>, classes: Option<usize>) {
    let inputs = [seen("images", "float32", &[1, 3, size, size])];
    let outputs: Vec<Seen> = outputs.iter().map(|(name, sides)| seen(name, "float32", sides)).collect();
    let found = guess(&Graph::default(), &inputs, &outputs).unwrap();
    assert_eq!((found.layout, found.class_count), (expected, classes), "{outputs:?}");
    assert!(!found.why.is_empty());
    let text = found.manifest(&Graph::default(), "m", "model.onnx", &"0".repeat(64), &[], None);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("manifest.toml"), &text).unwrap();
    let manifest = super::super::ModelManifest::load(folder.path()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(manifest.layout(), expected);
}

#[test]
fn exports_of_each_family_are_recognised_and_their_manifest_reads() {
    check_guess(416, &[("output", &[1, 3549, 85])], Some(DetectorLayout::Yolox), Some(80));
    check_guess(416, &[("output", &[1, 3549, 6])], Some(DetectorLayout::Yolox), Some(1));
    check_guess(640, &[("output0", &[1, 84, 8400])], Some(DetectorLayout::Yolo), Some(80));
    check_guess(640, &[("output0", &[1, 8400, 84])], Some(DetectorLayout::Yolo), Some(80));
    check_guess(640, &[("output0", &[1, 25_200, 85])], Some(DetectorLayout::Yolov5), Some(80));
    check_guess(640, &[("output0", &[1, 300, 6])], Some(DetectorLayout::EndToEnd), None);
    let seg: &[(&str, &[usize])] = &[("output0", &[1, 116, 8400]), ("output1", &[1, 32, 160, 160])];
    check_guess(640, seg, Some(DetectorLayout::Yolo), Some(80));
    check_guess(416, &[("output", &[1, 3598, 112])], Some(DetectorLayout::Gfl), Some(80));
    let detr: &[(&str, &[usize])] = &[("labels", &[1, 100]), ("boxes", &[1, 100, 4]), ("scores", &[1, 100])];
    check_guess(320, detr, Some(DetectorLayout::Detr), None);
    let ssd: &[(&str, &[usize])] = &[
        ("num_detections", &[1]),
        ("detection_boxes", &[1, 100, 4]),
        ("detection_scores", &[1, 100]),
        ("detection_classes", &[1, 100]),
    ];
    check_guess(300, ssd, Some(DetectorLayout::Ssd), None);
    let pico: &[(&str, &[usize])] = &[
        ("a", &[1, 1600, 80]),
        ("b", &[1, 400, 80]),
        ("c", &[1, 100, 80]),
        ("d", &[1, 1600, 32]),
        ("e", &[1, 400, 32]),
        ("f", &[1, 100, 32]),
    ];
    check_guess(320, pico, Some(DetectorLayout::Gfl), Some(80));
    check_guess(224, &[("s8", &[1, 32, 28, 28]), ("embedding", &[1, 1280])], None, None);
}

/// The manifest of a graph with this picture input and these outputs, their highest values known.
fn written(graph: &Graph, input: &Seen, outputs: &[(&str, &[usize], f32)]) -> (Guess, String) {
    let seen_with = |(name, sides, highest): &(&str, &[usize], f32)| Seen {
        highest: Some(*highest),
        ..seen(name, "float32", sides)
    };
    let outputs: Vec<Seen> = outputs.iter().map(seen_with).collect();
    let found = guess(graph, std::slice::from_ref(input), &outputs).unwrap();
    let text = found.manifest(graph, "m", "model.onnx", &"0".repeat(64), &[], None);
    assert_eq!(super::super::ModelManifest::fault_of(&text), None, "{text}");
    (found, text)
}

#[test]
fn what_a_run_shows_and_the_metadata_says_goes_into_the_manifest() {
    let plain = Graph::default();
    let pixels = seen("images", "float32", &[1, 3, 640, 640]);
    let (_, text) = written(&plain, &pixels, &[("output0", &[1, 300, 84], 1.01)]);
    assert!(text.contains("layout = \"yolo\"") && text.contains("boxes = \"unit\""), "{text}");
    let (_, text) = written(&plain, &pixels, &[("output0", &[1, 84, 8400], 639.0)]);
    assert!(!text.contains("boxes ="), "{text}");
    let (found, _) = written(&plain, &pixels, &[("output", &[1, 8400, 7], 4.5)]);
    assert_eq!(found.layout, Some(DetectorLayout::Yolox));
    let (found, text) = written(&plain, &pixels, &[("output", &[1, 8400, 7], 633.0)]);
    assert!(text.contains("color = \"bgr\"") && text.contains("placement = \"top_left\""), "{text}");
    assert_eq!(found.layout, Some(DetectorLayout::Yolov5));
    assert!(found.why.iter().any(|why| why.contains("`yolo` with 3 classes")), "{:?}", found.why);
    let queries: &[(&str, &[usize], f32)] = &[("logits", &[1, 300, 80], 3.0), ("pred_boxes", &[1, 300, 4], 0.9)];
    let (found, text) = written(&plain, &pixels, queries);
    assert_eq!((found.layout, found.class_count), (Some(DetectorLayout::Detr), Some(80)));
    assert!(text.contains("scores = \"logit\"") && text.contains("box_order = \"cxcywh\""), "{text}");
    let torchvision: &[(&str, &[usize], f32)] =
        &[("boxes", &[1, 100, 4], 600.0), ("labels", &[1, 100], 1.0), ("scores", &[1, 100], 0.9)];
    assert!(written(&plain, &pixels, torchvision).1.contains("class_offset = 1"));
    let octets = seen("images", "uint8", &[1, 3, 640, 640]);
    let (_, text) = written(&plain, &octets, &[("output0", &[1, 84, 8400], 639.0)]);
    assert!(text.contains("scale = 1.0 "), "{text}");
    let mut named = Graph::default();
    named.metadata.insert("names".to_owned(), "{0: 'bolt', 1: 'nut'}".to_owned());
    let (found, _) = written(&named, &pixels, &[("output0", &[1, 7, 8400], 639.0)]);
    assert!(found.why.iter().any(|why| why.contains("names 2 classes, its output has 3")), "{:?}", found.why);
}

#[test]
fn what_loupe_cannot_fill_or_read_is_refused_in_words() {
    let outputs = [seen("o", "float32", &[1, 84, 8400])];
    let refused = |graph: &Graph, inputs: &[Seen]| guess(graph, inputs, &outputs).unwrap_err();
    for (element, sides, word) in [
        ("double", [1, 3, 640, 640], "is of double"),
        ("float32", [1, 4, 640, 640], "4 channels"),
        ("float32", [1, 1, 640, 640], "1 channels"),
        ("float32", [0, 3, 640, 640], "a batch's 1 or more"),
        ("float32", [1, 3, 0, 640], "1 to 16384"),
        ("float32", [1, 3, 640, 200_000], "1 to 16384"),
    ] {
        let error = refused(&Graph::default(), &[seen("images", element, &sides)]);
        assert!(error.contains(word), "{error}");
    }
    let pixels = seen("images", "float32", &[1, 3, 640, 640]);
    let error = refused(&Graph::default(), &[pixels.clone(), seen("text", "int64", &[1, 77])]);
    assert!(error.contains("`text`"), "{error}");
    let mut pose = Graph::default();
    pose.metadata.insert("task".to_owned(), "pose".to_owned());
    assert!(refused(&pose, &[pixels]).contains("task `pose`"));
}

#[test]
fn what_fits_nothing_says_what_was_seen() {
    let error = guess(&Graph::default(), &[seen("ids", "int64", &[1, 7])], &[]).unwrap_err();
    assert!(error.contains("no input has four sides"), "{error}");
    let inputs = [seen("images", "float32", &[1, 3, 64, 64])];
    let error = guess(&Graph::default(), &inputs, &[seen("o", "float32", &[5])]).unwrap_err();
    assert!(error.contains("o [5]") && error.contains("by hand"), "{error}");
}

#[test]
fn class_names_come_from_the_metadata() {
    let mut graph = Graph::default();
    graph.metadata.insert("names".to_owned(), "{0: 'bolt', 1: 'nut'}".to_owned());
    let inputs = [seen("images", "float32", &[1, 3, 640, 640])];
    let found = guess(&graph, &inputs, &[seen("o", "float32", &[1, 6, 8400])]).unwrap();
    assert_eq!(found.classes(&graph), ["bolt", "nut"]);
}
