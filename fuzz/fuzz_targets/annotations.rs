//! Any text as a COCO file, evaluated against itself.
#![no_main]

use loupe::locate::coco::{CocoFile, Evaluator};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(coco) = CocoFile::parse(text) {
        let mut evaluator = Evaluator::default();
        for image in coco.images.iter().take(8) {
            evaluator.add(Vec::new(), coco.truths(image.id, false));
        }
        drop(evaluator.finish());
    }
});
