//! `loupe bank fit`: the thresholds of a bank from good pictures alone or from labelled ones.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;

use super::bank::{ensure_absent, open_scorer, progress_bar, report};
use super::bank_split::{LabelledPicture, Split, pictures_in};
use super::bank_view::threshold_rule;
use crate::anomaly::{Bank, FitOn, FitScores, refit};
use crate::capture;

#[derive(Debug, clap::Args)]
pub struct FitArgs {
    /// Folder of the bank; it is not changed.
    #[arg(long, value_name = "DIR")]
    bank: PathBuf,
    /// Folder to write the bank with the new thresholds to; it must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the threshold shall reach: `headroom` (above all good pictures), `false-reject=RATE` (at most this share of good
    /// pictures, such as 0.01) or `f1` (the largest F1; needs --split with bad pictures).
    #[arg(long, value_name = "OBJECTIVE", default_value = "headroom")]
    objective: String,
    /// How sure a false-reject rate must be, such as 0.95; in the mean if not given.
    #[arg(long, value_name = "RATIO")]
    confidence: Option<f64>,
    /// Folder of pictures of good parts that the bank has not learnt. Without it and --split, the scores that the bank keeps
    /// of its own pictures count, each by a bank without it.
    #[arg(long, value_name = "DIR", conflicts_with = "split")]
    images: Option<PathBuf>,
    /// JSON file whose `validation` list names pictures with their label (0 good, 1 bad).
    #[arg(long, value_name = "FILE", requires = "root")]
    split: Option<PathBuf>,
    /// Folder the split's file names are relative to.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Use the split's `test` list: what is measured on it afterwards is too good.
    #[arg(long, requires = "split")]
    use_test: bool,
    /// Fit this group of the bank alone; the others keep their thresholds. If not given, each picture counts for the group it
    /// is most alike, and groups that no picture counts for keep theirs.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Folder of model folders.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What the thresholds do to the pictures they were fitted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Outcome {
    good: usize,
    good_rejected: usize,
    bad: usize,
    bad_found: usize,
    not_registered: usize,
}

pub fn fit(args: &FitArgs) -> anyhow::Result<()> {
    ensure_absent(&args.out)?;
    let rule = threshold_rule(&args.objective, args.confidence)?;
    let pictures = pictures_of(args)?;
    let (scores, not_registered) = score(args, &pictures)?;
    let on = if pictures.is_empty() { FitOn::Own(args.group.as_deref()) } else { FitOn::Others(&scores) };
    let parent = Bank::open(&args.bank)?;
    let kept: Vec<String> =
        parent.group_names().into_iter().filter(|name| !on.names(name)).map(str::to_owned).collect();
    let bank = refit(parent, &args.out, rule, on)?;
    let outcome = outcome_of(&bank, &scores, not_registered);
    if args.json {
        let document = serde_json::json!({
            "bank": bank.folder(), "sha256": bank.sha256(), "manifest": bank.manifest(), "fitted_on": outcome,
        });
        println!("{document}");
        return Ok(());
    }
    report(&bank, false)?;
    if !kept.is_empty() {
        println!("as before  the thresholds of {}", kept.join(", "));
    }
    if pictures.is_empty() {
        println!("fitted on  the bank's own good pictures, each by a bank without it");
    } else {
        println!(
            "fitted on  {} good ({} rejected), {} bad ({} found), {not_registered} not in place",
            outcome.good, outcome.good_rejected, outcome.bad, outcome.bad_found
        );
    }
    Ok(())
}

/// Path and whether it is bad.
fn pictures_of(args: &FitArgs) -> anyhow::Result<Vec<(PathBuf, bool)>> {
    if let Some(images) = &args.images {
        return Ok(pictures_in(images)?.into_iter().map(|path| (path, false)).collect());
    }
    let (Some(split), Some(root)) = (&args.split, &args.root) else { return Ok(Vec::new()) };
    let lists = Split::read(split)?;
    let list = if args.use_test { lists.test } else { lists.validation };
    let name = if args.use_test { "test" } else { "validation" };
    let hint = "; name its test list with --use-test if nothing is to be measured on it afterwards";
    anyhow::ensure!(
        !list.is_empty(),
        "`{}` has no `{name}` pictures{}",
        split.display(),
        if args.use_test { "" } else { hint }
    );
    Ok(list.iter().map(|picture: &LabelledPicture| (root.join(&picture.file), picture.is_bad())).collect())
}

/// Scores by group, and how many pictures were not in place.
fn score(args: &FitArgs, pictures: &[(PathBuf, bool)]) -> anyhow::Result<(BTreeMap<String, FitScores>, usize)> {
    let mut scores: BTreeMap<String, FitScores> = BTreeMap::new();
    let mut not_registered = 0;
    if pictures.is_empty() {
        return Ok((scores, not_registered));
    }
    let mut scorer = open_scorer(&args.bank, &args.models, args.group.as_deref())?;
    let progress = progress_bar(pictures.len(), "scoring");
    for (path, is_bad) in pictures {
        let result = match scorer.score(&capture::read_image(path)?) {
            Err(error) if error.is_not_in_place() => {
                not_registered += 1;
                continue;
            }
            result => result.with_context(|| format!("cannot score `{}`", path.display()))?,
        };
        let evidence = result.evidence;
        let of_group = scores.entry(evidence.surface.group.unwrap_or_default()).or_default();
        of_group.image.push((evidence.score_raw, *is_bad));
        if !is_bad {
            of_group.good_map_max.push(evidence.map_max);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok((scores, not_registered))
}

fn outcome_of(bank: &Bank, scores: &BTreeMap<String, FitScores>, not_registered: usize) -> Outcome {
    let mut outcome = Outcome { good: 0, good_rejected: 0, bad: 0, bad_found: 0, not_registered };
    for group in &bank.manifest().groups {
        for &(score, is_bad) in scores.get(&group.name).map_or(&[][..], |scores| &scores.image) {
            let is_rejected = usize::from(score >= group.image_threshold_raw);
            if is_bad {
                outcome.bad += 1;
                outcome.bad_found += is_rejected;
            } else {
                outcome.good += 1;
                outcome.good_rejected += is_rejected;
            }
        }
    }
    outcome
}
