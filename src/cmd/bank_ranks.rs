//! Which pictures of an evaluation are ranked against their label: where a bank errs, or a label does.

use serde::Serialize;

/// Lines for people; the document of `--json` has them all.
const SHOWN_MAX: usize = 8;

/// One scored picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ranked {
    /// As the list names it.
    pub file: String,
    /// Kind of its defect; `None` = good.
    pub kind: Option<String>,
    /// What it is ranked by: raw, of banks with several groups the normalised score.
    pub score: f32,
    /// From the threshold on.
    pub is_rejected: bool,
    /// Pictures of the other label that it is on the wrong side of, or level with. What a perfect ranking lacks in image
    /// AUROC are these pairs, each counted for both of its pictures.
    pub wrong_side_of: usize,
}

/// Count for each picture what it is on the wrong side of.
pub fn rank(pictures: &mut [Ranked]) {
    let sorted = |is_bad: bool| {
        let of_label = pictures.iter().filter(|picture| picture.kind.is_some() == is_bad);
        let mut scores: Vec<f32> = of_label.map(|picture| picture.score).collect();
        scores.sort_by(f32::total_cmp);
        scores
    };
    let (good, bad) = (sorted(false), sorted(true));
    for picture in pictures {
        let score = picture.score;
        picture.wrong_side_of = match picture.kind {
            None => bad.partition_point(|other| *other <= score),
            Some(_) => good.len() - good.partition_point(|other| *other < score),
        };
    }
}

/// The pictures that stand most against their label, for people; nothing where all stand with it.
pub fn print(pictures: &[Ranked]) {
    let bad_count = pictures.iter().filter(|picture| picture.kind.is_some()).count();
    let good_count = pictures.len() - bad_count;
    let mut wrong: Vec<&Ranked> = pictures.iter().filter(|picture| picture.wrong_side_of > 0).collect();
    if wrong.is_empty() || bad_count == 0 {
        return;
    }
    wrong.sort_by(|a, b| b.wrong_side_of.cmp(&a.wrong_side_of).then_with(|| a.file.cmp(&b.file)));
    let shown = &wrong[..wrong.len().min(SHOWN_MAX)];
    println!(
        "\n{} of {} pictures rank on the wrong side of another; the {} that cost most (a label may be wrong):",
        wrong.len(),
        pictures.len(),
        shown.len()
    );
    for picture in shown {
        let (score, count) = (picture.score, picture.wrong_side_of);
        match &picture.kind {
            None => println!("  {score:8.4}  {:<16} above {count} of {bad_count} bad   {}", "good", picture.file),
            Some(kind) => println!("  {score:8.4}  {kind:<16} below {count} of {good_count} good  {}", picture.file),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Ranked, rank};
    use crate::anomaly::metrics;

    #[test]
    fn the_wrong_pairs_are_what_the_auroc_lacks() {
        let picture = |score: f32, is_bad: bool| Ranked {
            file: String::new(),
            kind: is_bad.then(|| "dent".to_owned()),
            score,
            is_rejected: false,
            wrong_side_of: 99,
        };
        let mut pictures = [(1.0, false), (2.0, false), (5.0, false), (1.5, true), (3.0, true), (9.0, true)]
            .map(|(s, b)| picture(s, b));
        rank(&mut pictures);
        assert_eq!(pictures.each_ref().map(|picture| picture.wrong_side_of), [0, 1, 2, 2, 1, 0]);
        let scores: Vec<(f32, bool)> = pictures.iter().map(|one| (one.score, one.kind.is_some())).collect();
        let of_good: usize = pictures.iter().filter(|one| one.kind.is_none()).map(|one| one.wrong_side_of).sum();
        assert!((metrics::auroc(&scores).unwrap() - (1.0 - of_good as f64 / 9.0)).abs() < 1e-12);
        let mut level = [picture(1.0, false), picture(1.0, true)];
        rank(&mut level);
        assert_eq!(level.map(|picture| picture.wrong_side_of), [1, 1]);
    }
}
