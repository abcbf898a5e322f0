//! COCO annotations and the average precision of detections against them, as pycocotools computes it.
//!
//! Formula: `COCOeval.evaluateImg` and `accumulate` of pycocotools 2.0 for boxes, area range *all*, at most 100 detections a
//! picture: greedy matching at the IoU thresholds 0.50 to 0.95, precision made falling, 101 recall points, mean over the
//! classes that occur. Crowds are matched by share of the detection and count neither way.
//! Pure; thread: the caller's; overload: quadratic in the boxes of one class of one picture.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Detection;
use crate::types::BoundingBox;

/// Detections of a picture that count, per class.
const DETECTIONS_MAX: usize = 100;
const RECALL_POINTS: u32 = 101;

/// A COCO annotation file, as far as boxes go.
#[derive(Debug, Clone, Deserialize)]
pub struct CocoFile {
    pub images: Vec<CocoImage>,
    pub annotations: Vec<CocoAnnotation>,
    pub categories: Vec<CocoCategory>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct CocoImage {
    pub id: i64,
    pub file_name: String,
    /// Pixels; 0 and less stand for unknown in some tools' files.
    #[serde(default)]
    pub width: Option<f64>,
    #[serde(default)]
    pub height: Option<f64>,
}

impl CocoImage {
    /// Why boxes of this annotation cannot be those of a picture of this size; `None` where the sizes agree or are not named.
    #[must_use]
    pub fn size_fault(&self, width_px: u32, height_px: u32) -> Option<String> {
        let (width, height) = self.width.zip(self.height).filter(|(width, height)| *width >= 1.0 && *height >= 1.0)?;
        let is =
            |across: u32, down: u32| (width - f64::from(across)).abs() < 0.5 && (height - f64::from(down)).abs() < 0.5;
        let differs = !is(width_px, height_px);
        let advice = match is(height_px, width_px) {
            true => "it is stored turned and says so by EXIF, which is not followed: turn the file, or the boxes",
            false => "the annotations are of another file, or of a scaled one",
        };
        differs
            .then(|| format!("the annotations say {width}x{height}, the picture is {width_px}x{height_px}; {advice}"))
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct CocoAnnotation {
    pub image_id: i64,
    pub category_id: i64,
    /// Left, top, width, height in pixels.
    pub bbox: [f32; 4],
    #[serde(default)]
    pub iscrowd: u8,
}

#[derive(Debug, Clone, Deserialize)]
pub struct CocoCategory {
    pub id: i64,
    pub name: String,
}

impl CocoFile {
    /// Read the text of an annotation file.
    ///
    /// # Errors
    /// When it is no COCO JSON, names an image or a category that it lacks, or a box that is none, in words.
    pub fn parse(text: &str) -> Result<CocoFile, String> {
        let file: CocoFile =
            serde_json::from_str(text).map_err(|error| format!("is no COCO annotation file: {error}"))?;
        let images: BTreeSet<i64> = file.images.iter().map(|image| image.id).collect();
        let categories: BTreeSet<i64> = file.categories.iter().map(|category| category.id).collect();
        if categories.len() != file.categories.len() {
            return Err("names two categories of the same id".to_owned());
        }
        if images.len() != file.images.len() {
            return Err("names two images of the same id".to_owned());
        }
        for (index, annotation) in file.annotations.iter().enumerate() {
            let CocoAnnotation { image_id, category_id, bbox, .. } = annotation;
            if !images.contains(image_id) {
                return Err(format!("annotation {index} is of image {image_id}, which it lacks"));
            }
            if !categories.contains(category_id) {
                return Err(format!("annotation {index} is of category {category_id}, which it lacks"));
            }
            if !bbox.iter().all(|value| value.is_finite()) || bbox[2] < 0.0 || bbox[3] < 0.0 {
                return Err(format!("annotation {index} has the box {bbox:?}, which is none"));
            }
        }
        Ok(file)
    }

    /// The things of one image, by class; all of one class where `is_class_agnostic`.
    #[must_use]
    pub fn truths(&self, image_id: i64, is_class_agnostic: bool) -> Vec<Truth> {
        let names: BTreeMap<i64, &str> =
            self.categories.iter().map(|category| (category.id, category.name.as_str())).collect();
        let of_image = self.annotations.iter().filter(|annotation| annotation.image_id == image_id);
        of_image
            .map(|annotation| {
                let [x, y, width, height] = annotation.bbox;
                let name = names.get(&annotation.category_id).copied().unwrap_or_default();
                Truth {
                    bbox: BoundingBox::new(x, y, x + width, y + height),
                    label: if is_class_agnostic { ANY_CLASS.to_owned() } else { name.to_owned() },
                    is_crowd: annotation.iscrowd != 0,
                }
            })
            .collect()
    }
}

/// Label of everything where classes do not count.
pub const ANY_CLASS: &str = "any";

/// A thing that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Truth {
    pub bbox: BoundingBox,
    pub label: String,
    pub is_crowd: bool,
}

/// How good the detections are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AveragePrecision {
    /// Mean over classes and the ten thresholds; `None` without any thing to find.
    pub map50_95: Option<f64>,
    pub map50: Option<f64>,
    pub map75: Option<f64>,
    /// Mean over classes and thresholds of the recall with at most 100 detections a picture.
    pub mar100: Option<f64>,
    /// Things that count.
    pub truth_count: usize,
    pub detection_count: usize,
    pub classes: Vec<ClassPrecision>,
}

/// One class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassPrecision {
    pub class: String,
    pub truth_count: usize,
    pub ap50_95: f64,
    pub ap50: f64,
    /// Share of the things found at IoU 0.5, whatever the score.
    pub recall50: f64,
}

/// Collects pictures, then computes.
#[derive(Debug, Default)]
pub struct Evaluator {
    pictures: Vec<(Vec<Detection>, Vec<Truth>)>,
}

/// One detection of one class after matching: its score and, for each threshold, whether it is right, wrong or not counted.
#[derive(Debug)]
struct Scored {
    score: f32,
    hits: [Hit; 10],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hit {
    Right,
    Wrong,
    /// It found a crowd.
    Ignored,
}

impl Evaluator {
    /// Pictures must come in the order of their image ids, as pycocotools sorts them.
    pub fn add(&mut self, detections: Vec<Detection>, truths: Vec<Truth>) {
        self.pictures.push((detections, truths));
    }

    #[must_use]
    pub fn finish(&self) -> AveragePrecision {
        let names: BTreeSet<&str> =
            self.pictures.iter().flat_map(|(_, truths)| truths.iter().map(|truth| truth.label.as_str())).collect();
        let mut classes = Vec::new();
        let mut sums = [0.0_f64; 4];
        for name in names {
            let mut scored = Vec::new();
            let mut truth_count = 0;
            for (detections, truths) in &self.pictures {
                let truths: Vec<&Truth> = truths.iter().filter(|truth| truth.label == name).collect();
                truth_count += truths.iter().filter(|truth| !truth.is_crowd).count();
                let detections = detections.iter().filter(|detection| detection.label == name).collect();
                scored.extend(matched(detections, truths));
            }
            if truth_count == 0 {
                continue;
            }
            // Stable, as pycocotools' mergesort: equal scores keep the order of the pictures.
            scored.sort_by(|a, b| b.score.total_cmp(&a.score));
            let curves: Vec<(f64, f64)> = (0..10).map(|threshold| curve(&scored, threshold, truth_count)).collect();
            let mean = curves.iter().map(|(precision, _)| precision).sum::<f64>() / 10.0;
            sums[0] += mean;
            sums[1] += curves[0].0;
            sums[2] += curves[5].0;
            sums[3] += curves.iter().map(|(_, recall)| recall).sum::<f64>() / 10.0;
            classes.push(ClassPrecision {
                class: name.to_owned(),
                truth_count,
                ap50_95: mean,
                ap50: curves[0].0,
                recall50: curves[0].1,
            });
        }
        let mean = |sum: f64| (!classes.is_empty()).then(|| sum / classes.len() as f64);
        AveragePrecision {
            map50_95: mean(sums[0]),
            map50: mean(sums[1]),
            map75: mean(sums[2]),
            mar100: mean(sums[3]),
            truth_count: classes.iter().map(|class| class.truth_count).sum(),
            detection_count: self.pictures.iter().map(|(detections, _)| detections.len()).sum(),
            classes,
        }
    }
}

/// Match the detections of one class in one picture, best first, at each threshold.
fn matched(mut detections: Vec<&Detection>, mut truths: Vec<&Truth>) -> Vec<Scored> {
    detections.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    detections.truncate(DETECTIONS_MAX);
    truths.sort_by_key(|truth| truth.is_crowd);
    let overlaps: Vec<Vec<f64>> =
        detections.iter().map(|one| truths.iter().map(|truth| overlap(&one.bbox, truth)).collect()).collect();
    let mut scored: Vec<Scored> =
        detections.iter().map(|one| Scored { score: one.confidence, hits: [Hit::Wrong; 10] }).collect();
    for threshold in 0..10_u32 {
        // As numpy's linspace rounds them.
        let iou_min = if threshold == 9 { 0.95 } else { 0.5 + f64::from(threshold) * ((0.95 - 0.5) / 9.0) };
        let mut taken = vec![false; truths.len()];
        for (one, overlaps) in scored.iter_mut().zip(&overlaps) {
            let mut best: Option<usize> = None;
            let mut least = iou_min.min(1.0 - 1e-10);
            for (index, truth) in truths.iter().enumerate() {
                if taken[index] && !truth.is_crowd {
                    continue;
                }
                // Crowds stand last: what found a thing does not look at them.
                if best.is_some_and(|best| !truths[best].is_crowd) && truth.is_crowd {
                    break;
                }
                if overlaps[index] >= least {
                    (best, least) = (Some(index), overlaps[index]);
                }
            }
            if let Some(best) = best {
                taken[best] = true;
                one.hits[threshold as usize] = if truths[best].is_crowd { Hit::Ignored } else { Hit::Right };
            }
        }
    }
    scored
}

/// IoU; of a crowd the share of the detection inside it. In f64, as pycocotools.
fn overlap(found: &BoundingBox, truth: &Truth) -> f64 {
    let [x1, y1, x2, y2] = <[f32; 4]>::from(*found).map(f64::from);
    let [u1, v1, u2, v2] = <[f32; 4]>::from(truth.bbox).map(f64::from);
    let common = (x2.min(u2) - x1.max(u1)).max(0.0) * (y2.min(v2) - y1.max(v1)).max(0.0);
    let (area, truth_area) = ((x2 - x1) * (y2 - y1), (u2 - u1) * (v2 - v1));
    let whole = if truth.is_crowd { area } else { area + truth_area - common };
    if whole > 0.0 { common / whole } else { 0.0 }
}

/// Mean precision at the recall points, and the largest recall.
fn curve(scored: &[Scored], threshold: usize, truth_count: usize) -> (f64, f64) {
    let (mut right, mut wrong) = (0_u32, 0_u32);
    let mut points: Vec<(f64, f64)> = Vec::with_capacity(scored.len());
    for one in scored {
        match one.hits[threshold] {
            Hit::Right => right += 1,
            Hit::Wrong => wrong += 1,
            Hit::Ignored => {}
        }
        let recall = f64::from(right) / truth_count as f64;
        let precision = f64::from(right) / (f64::from(right) + f64::from(wrong) + f64::EPSILON);
        points.push((recall, precision));
    }
    for index in (1..points.len()).rev() {
        points[index - 1].1 = points[index - 1].1.max(points[index].1);
    }
    let recall = points.last().map_or(0.0, |point| point.0);
    let sum: f64 = (0..RECALL_POINTS)
        .map(|step| {
            // As numpy's linspace rounds: a recall of 7/20 does not reach the point 0.35.
            let wanted = f64::from(step) * 0.01;
            let first = points.partition_point(|point| point.0 < wanted);
            points.get(first).map_or(0.0, |point| point.1)
        })
        .sum();
    (sum / f64::from(RECALL_POINTS), recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detection(x: f32, score: f32, label: &str) -> Detection {
        Detection { bbox: BoundingBox::new(x, 0.0, x + 10.0, 10.0), label: label.to_owned(), confidence: score }
    }

    fn truth(x: f32, label: &str, is_crowd: bool) -> Truth {
        Truth { bbox: BoundingBox::new(x, 0.0, x + 10.0, 10.0), label: label.to_owned(), is_crowd }
    }

    fn evaluated(pictures: Vec<(Vec<Detection>, Vec<Truth>)>) -> AveragePrecision {
        Evaluator { pictures }.finish()
    }

    #[test]
    fn another_size_than_the_picture_s_and_a_category_twice_are_faults() {
        let image = |width, height| CocoImage { id: 1, file_name: "a.jpg".to_owned(), width, height };
        assert_eq!(image(Some(320.0), Some(240.0)).size_fault(320, 240), None);
        assert_eq!(image(Some(0.0), Some(-1.0)).size_fault(320, 240), None);
        assert_eq!(image(None, Some(240.0)).size_fault(7, 7), None);
        assert!(image(Some(320.0), Some(240.0)).size_fault(240, 320).unwrap().contains("EXIF"));
        assert!(image(Some(320.0), Some(240.0)).size_fault(640, 480).unwrap().contains("scaled"));
        let two = |ids: [u8; 2]| {
            let category = |id: u8| format!(r#"{{"id": {id}, "name": "helmet"}}"#);
            format!(
                r#"{{"images": [], "annotations": [], "categories": [{}, {}]}}"#,
                category(ids[0]),
                category(ids[1])
            )
        };
        assert!(CocoFile::parse(&two([1, 1])).unwrap_err().contains("same id"));
        assert!(CocoFile::parse(&two([0, 1])).is_ok(), "as some tools write a class and its super-category");
    }

    #[test]
    fn perfect_is_one_and_nothing_found_is_zero() {
        let things = || vec![truth(0.0, "a", false), truth(50.0, "a", false)];
        let perfect = evaluated(vec![(vec![detection(0.0, 0.9, "a"), detection(50.0, 0.8, "a")], things())]);
        assert!((perfect.map50_95.unwrap() - 1.0).abs() < 1e-9 && perfect.mar100 == Some(1.0));
        let none = evaluated(vec![(vec![], things())]);
        assert_eq!((none.map50, none.classes[0].recall50), (Some(0.0), 0.0));
        assert_eq!(evaluated(vec![(vec![detection(0.0, 0.9, "a")], vec![])]).map50, None);
    }

    #[test]
    fn a_wrong_box_before_the_right_one_halves_the_precision() {
        let found = vec![detection(90.0, 0.9, "a"), detection(0.0, 0.8, "a")];
        let result = evaluated(vec![(found, vec![truth(0.0, "a", false)])]);
        assert!((result.map50.unwrap() - 0.5).abs() < 1e-9);
        // Shifted by 2 of 10: IoU 8/12 = 0.67 counts at four of the ten thresholds.
        let result = evaluated(vec![(vec![detection(2.0, 0.8, "a")], vec![truth(0.0, "a", false)])]);
        assert!((result.map50_95.unwrap() - 0.4).abs() < 1e-9 && result.map75 == Some(0.0));
    }

    #[test]
    fn a_second_box_on_the_same_thing_is_wrong_and_one_on_a_crowd_is_not_counted() {
        let twice = vec![detection(0.0, 0.9, "a"), detection(0.0, 0.8, "a"), detection(50.0, 0.7, "a")];
        let things = vec![truth(0.0, "a", false), truth(50.0, "a", false)];
        // Precision 1 up to recall 0.5 (51 points), then 2/3 (50 points).
        let expected = (51.0 + 50.0 * 2.0 / 3.0) / 101.0;
        assert!((evaluated(vec![(twice.clone(), things)]).map50.unwrap() - expected).abs() < 1e-9);
        let crowd = vec![truth(50.0, "a", false), truth(0.0, "a", true)];
        let result = evaluated(vec![(twice, crowd)]);
        assert!((result.map50.unwrap() - 1.0).abs() < 1e-9, "{result:?}");
        assert_eq!(result.truth_count, 1);
    }

    #[test]
    fn classes_count_alike_however_rare_and_other_labels_do_not_match() {
        let found = vec![detection(0.0, 0.9, "a"), detection(50.0, 0.9, "b")];
        let things = vec![truth(0.0, "a", false), truth(50.0, "a", false), truth(90.0, "b", false)];
        let result = evaluated(vec![(found, things)]);
        assert_eq!(result.classes.len(), 2);
        assert!((result.map50.unwrap() - (51.0 / 101.0) / 2.0).abs() < 1e-9);
    }

    #[test]
    fn files_that_contradict_themselves_are_refused_in_words() {
        let check = |text: &str, expected: &str| {
            let error = CocoFile::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("{}", "no COCO");
        let file = |image_id: i64, category_id: i64, bbox: &str| {
            format!(
                "{{\"images\":[{{\"id\":1,\"file_name\":\"a.jpg\"}}],\"categories\":[{{\"id\":7,\"name\":\"a\"}}],\
                 \"annotations\":[{{\"image_id\":{image_id},\"category_id\":{category_id},\"bbox\":{bbox}}}]}}"
            )
        };
        check(&file(2, 7, "[0,0,1,1]"), "image 2");
        check(&file(1, 8, "[0,0,1,1]"), "category 8");
        check(&file(1, 7, "[0,0,-1,1]"), "which is none");
        let good = CocoFile::parse(&file(1, 7, "[5,6,10,10]")).unwrap();
        assert_eq!(<[f32; 4]>::from(good.truths(1, false)[0].bbox), [5.0, 6.0, 15.0, 16.0]);
        assert_eq!(good.truths(1, true)[0].label, ANY_CLASS);
    }
}
