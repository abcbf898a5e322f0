//! `loupe demo`: the whole way through on the bundled samples, with SQLite alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use serde::Serialize;

use super::console::InspectionLine;
use super::run::{Until, serve};
use super::{bank, index};
use crate::anomaly::{Bank, SearchMode};
use crate::capture::{SourceKind, SourceSpec};
use crate::config::{
    ArtifactPolicy, Change, Config, DashboardConfig, Recipe, StationConfig, StationRecipe, StorageConfig, SurfaceSource,
};
use crate::inference::ModelManifest;
use crate::matching::PartIndex;
use crate::pipeline::Outcome;
use crate::types::{BoundingBox, ConfigSource, Inspection, Verdict};

/// Show Loupe at work on the bundled samples.
///
/// Builds a part index and a bank of good plates out of the samples (once), then inspects a belt of parts and a series
/// of plates. Needs no camera, no GPU and no database.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go through the samples once, print a summary and exit; otherwise go round until stopped.
    #[arg(long)]
    once: bool,
    /// The bundled samples.
    #[arg(long, value_name = "DIR", default_value = "samples")]
    samples: PathBuf,
    /// The bundled models.
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// The recipes of the two demo stations.
    #[arg(long, value_name = "DIR", default_value = "config/recipes")]
    recipes: PathBuf,
    /// Where the index, the bank, the ledger and the pictures go.
    #[arg(long, value_name = "DIR", default_value = "var/demo")]
    state: PathBuf,
    /// Address and port of the dashboard; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8420")]
    listen: SocketAddr,
    /// The summary of --once as one JSON document.
    #[arg(long, requires = "once")]
    json: bool,
}

/// Frames a second of the endless demo: an unhurried counter, and room on the machine for the browser.
const PLATES_RATE_HZ: f64 = 0.5;
const BELT_RATE_HZ: f64 = 5.0;
/// Embedder of the belt and backbone of the plates.
const MODEL: &str = "mobilenetv2";
/// A named item counts against the truth when the boxes overlap this much.
const TRUTH_IOU_MIN: f32 = 0.5;

/// Run the command.
///
/// # Errors
/// When the samples are missing, or the index, the bank or the service cannot be made.
pub fn run(args: Args) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.samples.join("belt/belt.mp4").is_file(),
        "the samples are not in {}: run from the repository's folder, or name them with --samples",
        args.samples.display()
    );
    std::fs::create_dir_all(&args.state).with_context(|| format!("cannot make {}", args.state.display()))?;
    let belt_index = args.state.join("belt-index");
    let model = ModelManifest::load(&args.models.join(MODEL))?;
    if !is_index_of(&belt_index, &model) {
        eprintln!("building the part index of {} (once)", args.samples.join("parts").display());
        index::build_catalogue(&args.samples.join("parts"), &belt_index, &args.models.join(MODEL))?;
    }
    let plate_bank = args.state.join("plate-bank");
    if !is_bank_of(&plate_bank, &model) {
        if plate_bank.exists() {
            anyhow::ensure!(
                is_demos_own(&plate_bank),
                "{} is no bank of this demo: move it away, or name another folder with --state",
                plate_bank.display()
            );
            let cannot = || format!("cannot remove {}, which another version built", plate_bank.display());
            std::fs::remove_dir_all(&plate_bank).with_context(cannot)?;
        }
        eprintln!("building the bank of good plates of {} (once)", args.samples.join("plate/good").display());
        bank::build_from_folder(&args.samples.join("plate/good"), &plate_bank, &args.models, MODEL)?;
    }
    let truth = Truth::load(&args.samples)?;
    let summary = Arc::new(Mutex::new(Summary::default()));
    let config = configure(&args, belt_index, plate_bank)?;
    let (once, json) = (args.once, args.json);
    let tally = Arc::clone(&summary);
    let until = if once { Until::SourcesEnd } else { Until::Stopped };
    serve(
        config,
        until,
        |address| eprintln!("dashboard: http://{address}/   (stop with Ctrl-C)"),
        move |outcome| {
            if let (Outcome::Committed(inspection), false) = (outcome, json) {
                println!("{:6} {}", inspection.station, InspectionLine(inspection));
            }
            tally.lock().unwrap_or_else(PoisonError::into_inner).note(outcome, &truth);
        },
    )?;
    if once {
        let summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
        if json {
            println!("{}", serde_json::to_string_pretty(&*summary)?);
        } else {
            summary.print();
        }
    }
    Ok(())
}

/// Whether an index was built with this model, by a version that makes pictures into its input as this one does.
fn is_index_of(dir: &Path, model: &ModelManifest) -> bool {
    PartIndex::open(dir).is_ok_and(|index| {
        let built = &index.manifest().embedding;
        (built.model_sha256, built.input_sha256) == (model.sha256(), Some(model.input_sha256()))
    })
}

/// The same of a bank.
fn is_bank_of(dir: &Path, model: &ModelManifest) -> bool {
    Bank::open(dir).is_ok_and(|bank| {
        let built = &bank.manifest().model;
        (built.sha256, built.input_sha256) == (model.sha256(), Some(model.input_sha256()))
    })
}

/// Whether what lies there is a bank of the demo's model, of whatever format: only such is built anew.
fn is_demos_own(bank: &Path) -> bool {
    let text = std::fs::read(bank.join("manifest.json")).unwrap_or_default();
    let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(&text) else { return false };
    let is_bank = manifest["format"].as_str().is_some_and(|format| format.starts_with("loupe-bank/"));
    is_bank && manifest["model"]["name"] == MODEL
}

fn configure(args: &Args, belt_index: PathBuf, plate_bank: PathBuf) -> anyhow::Result<Config> {
    let mut belt = Recipe::load(&args.recipes.join("belt.toml"))?;
    if let Some(stage) = &mut belt.matching {
        stage.index = belt_index;
        stage.model = args.models.join(MODEL);
    }
    let mut plate = Recipe::load(&args.recipes.join("plate.toml"))?;
    if let Some(stage) = &mut plate.anomaly {
        let search = SearchMode::default();
        stage.source = SurfaceSource::Bank { bank: plate_bank, models: args.models.clone(), search };
    }
    let list = args.state.join("plates.txt");
    std::fs::write(&list, plates(&args.samples)?).with_context(|| format!("cannot write {}", list.display()))?;
    let station = |name: &str, recipe, kind, path: PathBuf, rate_hz| {
        let mut source = SourceSpec::new(kind, path);
        source.repeat = !args.once;
        source.rate_hz = (!args.once).then_some(rate_hz);
        StationConfig { name: name.to_owned(), recipe: StationRecipe::File(Box::new(recipe)), source }
    };
    Ok(Config {
        site_code: "demo".to_owned(),
        site_name: "Loupe demo".to_owned(),
        site_id: None,
        storage: StorageConfig {
            state_dir: args.state.clone(),
            artifacts: ArtifactPolicy::All,
            policy: crate::types::StoragePolicy::default(),
        },
        onnxruntime: None,
        workers: 0,
        dashboard: Some(DashboardConfig { listen: args.listen, allow_remote: false }),
        uplink: None,
        gpu_interval_s: 60,
        system_interval_s: 60,
        stations: vec![
            station("belt", belt, SourceKind::Video, args.samples.join("belt/belt.mp4"), BELT_RATE_HZ),
            station("plates", plate, SourceKind::List, list, PLATES_RATE_HZ),
        ],
        change: Change::default(),
        source: ConfigSource::Command,
    })
}

/// The test plates, good and bad mixed as a line would bring them, as absolute paths.
fn plates(samples: &Path) -> anyhow::Result<String> {
    let folder = samples.join("plate").canonicalize()?;
    let files: Vec<String> = Split::load(samples)?.test.into_iter().map(|test| test.file).collect();
    // A stride that shares no factor with the count visits each file once, out of order.
    let stride = (5..).step_by(2).find(|stride| !files.len().is_multiple_of(*stride) && is_prime(*stride)).unwrap_or(1);
    let mixed = (0..files.len()).map(|step| folder.join(&files[step * stride % files.len()]));
    Ok(mixed.map(|path| format!("{}\n", path.display())).collect())
}

fn is_prime(number: usize) -> bool {
    number > 1 && (2..number).all(|divisor| !number.is_multiple_of(divisor))
}

#[derive(Debug, serde::Deserialize)]
struct Split {
    test: Vec<SplitTest>,
}

#[derive(Debug, serde::Deserialize)]
struct SplitTest {
    file: String,
    label: u8,
}

impl Split {
    fn load(samples: &Path) -> anyhow::Result<Split> {
        let path = samples.join("plate/split.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a split", path.display()))
    }
}

/// What the samples really show.
#[derive(Debug, Default)]
struct Truth {
    /// File name's end below `plate/` → is defective.
    plates: BTreeMap<String, bool>,
    /// Belt frame → boxes and part numbers.
    belt: BTreeMap<u64, Vec<(BoundingBox, String)>>,
}

#[derive(Debug, serde::Deserialize)]
struct TruthRow {
    frame: u64,
    part_num: String,
    x1: f32,
    y1: f32,
    x2: f32,
    y2: f32,
}

impl Truth {
    fn load(samples: &Path) -> anyhow::Result<Truth> {
        let mut truth = Truth::default();
        for test in Split::load(samples)?.test {
            truth.plates.insert(test.file, test.label == 1);
        }
        let path = samples.join("belt/truth.csv");
        let mut reader = csv::Reader::from_path(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for row in reader.deserialize() {
            let row: TruthRow = row.with_context(|| format!("{} is damaged", path.display()))?;
            let bbox = BoundingBox::new(row.x1, row.y1, row.x2, row.y2);
            truth.belt.entry(row.frame).or_default().push((bbox, row.part_num));
        }
        Ok(truth)
    }
}

/// What the run came to, held against the truth.
#[derive(Debug, Default, Serialize)]
struct Summary {
    stations: BTreeMap<String, StationTally>,
    plates: PlateTally,
    belt: BeltTally,
}

#[derive(Debug, Default, Serialize)]
struct StationTally {
    inspected: u64,
    pass: u64,
    fail: u64,
    hold: u64,
    nothing_to_inspect: u64,
    not_stored: u64,
    total_ms: f64,
}

#[derive(Debug, Default, Serialize)]
struct PlateTally {
    good: u64,
    good_passed: u64,
    defective: u64,
    defective_passed: u64,
    defective_failed: u64,
}

#[derive(Debug, Default, Serialize)]
struct BeltTally {
    items: u64,
    named_right: u64,
    named_wrong: u64,
    in_doubt: u64,
}

impl Summary {
    fn note(&mut self, outcome: &Outcome, truth: &Truth) {
        let inspection = match outcome {
            Outcome::Committed(inspection) => inspection,
            Outcome::Unstored { inspection, .. } => {
                self.stations.entry(inspection.station.clone()).or_default().not_stored += 1;
                return;
            }
            Outcome::Refused { station, .. } => {
                self.stations.entry(station.clone()).or_default().nothing_to_inspect += 1;
                return;
            }
        };
        let tally = self.stations.entry(inspection.station.clone()).or_default();
        tally.inspected += 1;
        tally.total_ms += f64::from(inspection.timings_ms.total);
        match inspection.verdict {
            Verdict::Pass => tally.pass += 1,
            Verdict::Fail => tally.fail += 1,
            Verdict::Hold => tally.hold += 1,
        }
        self.note_plate(inspection, truth);
        self.note_belt(inspection, truth);
    }

    fn note_plate(&mut self, inspection: &Inspection, truth: &Truth) {
        let found = truth.plates.iter().find(|(file, _)| inspection.source.ends_with(file.as_str()));
        let Some((_, is_defective)) = found else { return };
        if *is_defective {
            self.plates.defective += 1;
            self.plates.defective_passed += u64::from(inspection.verdict == Verdict::Pass);
            self.plates.defective_failed += u64::from(inspection.verdict == Verdict::Fail);
        } else {
            self.plates.good += 1;
            self.plates.good_passed += u64::from(inspection.verdict == Verdict::Pass);
        }
    }

    fn note_belt(&mut self, inspection: &Inspection, truth: &Truth) {
        let frame = inspection.source.rsplit_once('#').and_then(|(_, frame)| frame.parse().ok());
        let Some(boxes) = frame.and_then(|frame: u64| truth.belt.get(&frame)) else { return };
        for item in &inspection.items {
            self.belt.items += 1;
            let best = boxes.iter().max_by(|a, b| a.0.iou(&item.bbox).total_cmp(&b.0.iou(&item.bbox)));
            let right = best.filter(|(bbox, _)| bbox.iou(&item.bbox) >= TRUTH_IOU_MIN).map(|(_, part)| part);
            match &item.part_id {
                None => self.belt.in_doubt += 1,
                Some(part) if Some(part) == right => self.belt.named_right += 1,
                Some(_) => self.belt.named_wrong += 1,
            }
        }
    }

    fn print(&self) {
        println!(
            "\n{:10} {:>9} {:>6} {:>6} {:>6} {:>8} {:>9}",
            "station", "inspected", "PASS", "FAIL", "HOLD", "nothing", "ms each"
        );
        for (station, tally) in &self.stations {
            let each_ms = tally.total_ms / (tally.inspected.max(1) as f64);
            println!(
                "{station:10} {:>9} {:>6} {:>6} {:>6} {:>8} {each_ms:>9.1}",
                tally.inspected, tally.pass, tally.fail, tally.hold, tally.nothing_to_inspect
            );
        }
        let PlateTally { good, good_passed, defective, defective_passed, defective_failed } = &self.plates;
        println!(
            "\nplates: {good_passed} of {good} good ones passed; of {defective} defective ones {defective_failed} failed and {defective_passed} passed"
        );
        let BeltTally { items, named_right, named_wrong, in_doubt } = &self.belt;
        println!(
            "belt:   {items} items seen; {named_right} named right, {named_wrong} named wrong, {in_doubt} held for a person"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{Bank, MODEL, ModelManifest, Path, is_bank_of, is_demos_own, is_index_of};
    use crate::anomaly::{BankBuilder, BankOptions};
    use crate::inference::{FeatureModel, ProviderPlan, Runtime};
    use crate::matching::{BuildOptions, Embedding, IndexBuilder, Template};
    use crate::types::{Digest, Image};

    fn model(name: &str) -> ModelManifest {
        ModelManifest::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)).unwrap()
    }

    #[test]
    fn an_index_of_another_model_or_an_older_version_is_built_anew() {
        let dir = tempfile::tempdir().unwrap();
        let embedder = model(MODEL);
        assert!(!is_index_of(&dir.path().join("none"), &embedder));
        let own = (embedder.sha256(), Some(embedder.input_sha256()));
        let older = (own.0, Some(Digest::of(b"another scaling")));
        for (at, built) in [own, older, (own.0, None), (model("partnet").sha256(), own.1)].into_iter().enumerate() {
            let (model_sha256, input_sha256) = built;
            let embedding =
                Embedding { model: MODEL.into(), model_sha256, input_px: 128, crop_margin_ratio: 0.0, input_sha256 };
            let mut builder = IndexBuilder::new(2, embedding, BuildOptions::default());
            for (part, vector) in [("one", [1.0, 0.0]), ("other", [0.0, 1.0])] {
                let template = Template { part_id: part.to_owned(), color_id: None, view: String::new() };
                builder.push(template, &vector).unwrap();
            }
            let index = dir.path().join(at.to_string());
            builder.build(&index).unwrap();
            assert_eq!(is_index_of(&index, &embedder), built == own, "{at}");
        }
    }

    #[test]
    fn a_bank_of_another_model_or_a_damaged_one_is_built_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (bank, backbone) = (dir.path().join("bank"), model(MODEL));
        let opened = FeatureModel::open(&Runtime::load(None).unwrap(), &backbone, &ProviderPlan::default()).unwrap();
        let options = BankOptions { input_px: Some((64, 64)), ..BankOptions::default() };
        let mut builder = BankBuilder::new(opened, options).unwrap();
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..8 {
            let noise = (0..64 * 64 * 3).map(|_| random.u8(..)).collect();
            builder.add(&Image::from_bgr(64, 64, noise).unwrap()).unwrap();
        }
        builder.finish(&bank).unwrap();
        assert!(is_bank_of(&bank, &backbone) && !is_bank_of(&bank, &model("partnet")));
        let largest =
            std::fs::read_dir(&bank).unwrap().flatten().max_by_key(|file| file.metadata().unwrap().len()).unwrap();
        std::fs::write(largest.path(), b"cut").unwrap();
        assert!(Bank::open(&bank).is_err() && !is_bank_of(&bank, &backbone));
        assert!(is_demos_own(&bank) && !is_demos_own(dir.path()));
        let manifest = std::fs::read_to_string(bank.join("manifest.json")).unwrap();
        std::fs::write(bank.join("manifest.json"), manifest.replace(MODEL, "another")).unwrap();
        assert!(!is_demos_own(&bank), "what somebody else built is never removed");
    }
}
