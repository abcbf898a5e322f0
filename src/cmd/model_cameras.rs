//! `loupe model bench --cameras N`: what it brings that cameras share one session and their pictures one run.
//!
//! Three ways, in turns within one process, so that a busy machine slows them alike. In each, every camera asks for its own
//! picture, waits for the answer and asks again:
//! `per_camera`: a thread and a session of one core for each camera (what a program a camera does);
//! `per_core`: a session for each core, cameras take turns (the daemon's default on a CPU);
//! `batched`: a session for each core behind the batcher.

use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use crossbeam_channel::bounded;
use serde::Serialize;

use super::model_bench::synthetic;
use crate::clock::{Clock, Stopwatch};
use crate::inference::{
    BatchLimits, Batching, FeatureModel, ModelHealth, ModelKind, ModelManifest, ModelPool, OutputRole, ProviderPlan,
    Runtime,
};
use crate::limits::BATCH_PICTURES_MAX;
use crate::locate::{DetectorLocator, DetectorOptions};
use crate::types::{BoundingBox, Image};

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub cameras: usize,
    pub deadline: Duration,
    /// Pictures in one run at most.
    pub batch_max: usize,
    /// Side of the input, pixels, for models that leave it open; `None`: the manifest's.
    pub input_px: Option<u32>,
    pub rounds: usize,
    /// Of one way in one round.
    pub span: Duration,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    model: String,
    cores: usize,
    cameras: usize,
    input_px: [u32; 2],
    deadline_ms: f64,
    batch_max: usize,
    rounds: usize,
    per_camera: WayReport,
    per_core: WayReport,
    batched: WayReport,
    /// Pictures in one run of the batching sessions, on average.
    batch_mean: f64,
    /// Batched over per camera, median of the rounds.
    ratio: f64,
    /// Batched over per core.
    ratio_per_core: f64,
    /// The same by processor time, which other programs of the machine disturb less.
    cpu_ratio: f64,
    cpu_ratio_per_core: f64,
    /// Between a camera's answer with and without batching.
    difference_max: f32,
}

#[derive(Debug, Serialize)]
struct WayReport {
    pictures_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Answers within the deadline, 0 to 1.
    within_deadline: f64,
    /// Processor time of the whole program for one picture.
    cpu_ms: f64,
}

/// One camera's model.
enum Eye {
    Embedding(Box<FeatureModel>, u32),
    Maps(Box<FeatureModel>, (u32, u32)),
    Detector(Box<DetectorLocator>),
}

impl Eye {
    fn open(
        pool: &ModelPool,
        manifest: &ModelManifest,
        plan: &ProviderPlan,
        input_px: [u32; 2],
    ) -> anyhow::Result<Eye> {
        let host = pool.worker();
        if manifest.kind() == ModelKind::Detector {
            let options = DetectorOptions::default();
            return Ok(Eye::Detector(Box::new(DetectorLocator::open(&host, manifest, plan, options)?)));
        }
        let model = Box::new(FeatureModel::open(&host, manifest, plan)?);
        let has_embedding = manifest.outputs_of(OutputRole::Embedding).next().is_some();
        Ok(if has_embedding { Eye::Embedding(model, input_px[0]) } else { Eye::Maps(model, input_px.into()) })
    }

    /// The answer's numbers.
    fn look(&mut self, image: &Image) -> anyhow::Result<Vec<f32>> {
        let area = BoundingBox::whole(image.width_px(), image.height_px());
        Ok(match self {
            Eye::Embedding(model, input_px) => model.embed(&[(image, area)], *input_px)?,
            Eye::Maps(model, input_px) => {
                model.features(image, area, *input_px)?.maps.into_iter().flat_map(|map| map.data).collect()
            }
            Eye::Detector(locator) => {
                let boxes = locator.locate(image)?.into_iter();
                boxes.flat_map(|one| <[f32; 4]>::from(one.bbox).into_iter().chain([one.confidence])).collect()
            }
        })
    }

    fn health(&self) -> ModelHealth {
        match self {
            Eye::Embedding(model, _) | Eye::Maps(model, _) => model.health().clone(),
            Eye::Detector(locator) => locator.health().clone(),
        }
    }
}

/// One way of asking, measured.
#[derive(Debug, Default)]
struct Measured {
    rates: Vec<f64>,
    cpu_ms: Vec<f64>,
    latencies_ms: Vec<f64>,
}

/// Measure all ways in turns.
///
/// # Errors
/// When the model cannot be opened or run.
pub fn measure(runtime: &Arc<Runtime>, manifest: &ModelManifest, plan: Plan) -> anyhow::Result<Report> {
    anyhow::ensure!((1..=256).contains(&plan.cameras), "--cameras must be 1 to 256");
    anyhow::ensure!(
        (1..=BATCH_PICTURES_MAX).contains(&plan.batch_max),
        "--batch-max must be 1 to {BATCH_PICTURES_MAX}"
    );
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let input_px = plan.input_px.map_or(manifest.input().size_px, |side| [side, side]);
    let pool = ModelPool::new(Arc::clone(runtime), Clock::system(), super::model::decode);
    let own = ProviderPlan { batching: Batching::Off, intra_threads: Some(1), ..ProviderPlan::default() };
    let limits = BatchLimits { max: plan.batch_max, deadline: plan.deadline };
    let shared = ProviderPlan { batching: Batching::On(limits), ..ProviderPlan::default() };
    let open = |plan: &ProviderPlan, count: usize| -> anyhow::Result<Vec<Eye>> {
        (0..count).map(|_| Eye::open(&pool, manifest, plan, input_px)).collect()
    };
    let (mut each, mut core_eyes, mut batched) =
        (open(&own, plan.cameras)?, open(&own, cores)?, open(&shared, plan.cameras)?);
    let images: Vec<Image> = (0..plan.cameras).map(|camera| synthetic(256, 192, seed(camera))).collect();
    let difference_max = difference(&mut each, &mut batched, &images)?;
    let health = batched[0].health();
    let before = health.batches();
    let mut found: [Measured; 3] = Default::default();
    for _ in 0..plan.rounds.max(1) {
        found[0].take(|| every_camera(&mut each, &images, plan.span))?;
        found[1].take(|| by_turns(&mut core_eyes, &images, plan.span))?;
        found[2].take(|| every_camera(&mut batched, &images, plan.span))?;
    }
    let after = health.batches();
    let ratio = |a: fn(&Measured) -> &Vec<f64>, other: usize, inverse: bool| {
        let pairs = a(&found[2]).iter().zip(a(&found[other]));
        let mut ratios: Vec<f64> =
            pairs.map(|(batched, other)| if inverse { other / batched } else { batched / other }).collect();
        median(&mut ratios)
    };
    let runs = after.0 - before.0;
    Ok(Report {
        model: manifest.name().to_owned(),
        cores,
        cameras: plan.cameras,
        input_px,
        deadline_ms: plan.deadline.as_secs_f64() * 1_000.0,
        batch_max: plan.batch_max,
        rounds: plan.rounds,
        batch_mean: if runs == 0 { 1.0 } else { (after.1 - before.1) as f64 / runs as f64 },
        ratio: ratio(|m| &m.rates, 0, false),
        ratio_per_core: ratio(|m| &m.rates, 1, false),
        cpu_ratio: ratio(|m| &m.cpu_ms, 0, true),
        cpu_ratio_per_core: ratio(|m| &m.cpu_ms, 1, true),
        difference_max,
        per_camera: found[0].report(plan.deadline),
        per_core: found[1].report(plan.deadline),
        batched: found[2].report(plan.deadline),
    })
}

impl Measured {
    fn take(&mut self, round: impl FnOnce() -> anyhow::Result<Vec<f64>>) -> anyhow::Result<()> {
        let (watch, cpu_before) = (Stopwatch::start(), cpu_ms());
        let latencies = round()?;
        let count = latencies.len().max(1) as f64;
        self.rates.push(count / watch.elapsed().as_secs_f64().max(1e-9));
        self.cpu_ms.push((cpu_ms() - cpu_before).max(1e-9) / count);
        self.latencies_ms.extend(latencies);
        Ok(())
    }

    fn report(&self, deadline: Duration) -> WayReport {
        let mut latencies = self.latencies_ms.clone();
        latencies.sort_by(f64::total_cmp);
        let deadline_ms = deadline.as_secs_f64() * 1_000.0;
        let within = latencies.partition_point(|ms| *ms <= deadline_ms) as f64 / latencies.len().max(1) as f64;
        WayReport {
            pictures_per_s: median(&mut self.rates.clone()),
            p50_ms: share(&latencies, 50),
            p99_ms: share(&latencies, 99),
            within_deadline: within,
            cpu_ms: median(&mut self.cpu_ms.clone()),
        }
    }
}

/// Each camera on a thread of its own; milliseconds of each answer.
fn every_camera(eyes: &mut [Eye], images: &[Image], span: Duration) -> anyhow::Result<Vec<f64>> {
    let start = Barrier::new(eyes.len());
    let found: Vec<anyhow::Result<Vec<f64>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = eyes
            .iter_mut()
            .zip(images)
            .map(|(eye, image)| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let whole = Stopwatch::start();
                    let mut latencies = Vec::new();
                    while whole.elapsed() < span {
                        let watch = Stopwatch::start();
                        eye.look(image)?;
                        latencies.push(watch.elapsed().as_secs_f64() * 1_000.0);
                    }
                    Ok(latencies)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a camera died"))).collect()
    });
    Ok(found.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat())
}

/// Cameras wait for one of few models; milliseconds of each answer, waiting included.
fn by_turns(eyes: &mut Vec<Eye>, images: &[Image], span: Duration) -> anyhow::Result<Vec<f64>> {
    let (free, waiting) = bounded::<Eye>(eyes.len());
    for eye in eyes.drain(..) {
        free.send(eye).map_err(|_| anyhow::anyhow!("the models are gone"))?;
    }
    let found: Vec<anyhow::Result<Vec<f64>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = images
            .iter()
            .map(|image| {
                let (free, waiting) = (&free, &waiting);
                scope.spawn(move || {
                    let whole = Stopwatch::start();
                    let mut latencies = Vec::new();
                    while whole.elapsed() < span {
                        let watch = Stopwatch::start();
                        let mut eye = waiting.recv()?;
                        let seen = eye.look(image);
                        free.send(eye).map_err(|_| anyhow::anyhow!("the models are gone"))?;
                        seen?;
                        latencies.push(watch.elapsed().as_secs_f64() * 1_000.0);
                    }
                    Ok(latencies)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a camera died"))).collect()
    });
    eyes.extend(waiting.try_iter());
    Ok(found.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat())
}

/// The largest difference between what each camera is told alone and in a batch; also warms the sessions.
fn difference(each: &mut [Eye], batched: &mut [Eye], images: &[Image]) -> anyhow::Result<f32> {
    let mut largest = 0.0_f32;
    let together: Vec<anyhow::Result<Vec<f32>>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            batched.iter_mut().zip(images).map(|(eye, image)| scope.spawn(move || eye.look(image))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a camera died"))).collect()
    });
    for ((eye, image), together) in each.iter_mut().zip(images).zip(together) {
        let (alone, together) = (eye.look(image)?, together?);
        anyhow::ensure!(alone.len() == together.len(), "{} numbers alone, {} in a batch", alone.len(), together.len());
        largest = alone.iter().zip(&together).map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
    }
    Ok(largest)
}

/// Processor time of the program so far, in steps of 10 ms; 0 where the system does not say.
fn cpu_ms() -> f64 {
    let text = std::fs::read_to_string(Path::new("/proc/self/stat")).unwrap_or_default();
    // After the name in brackets; user and system time are the 14th and 15th field of the line, in hundredths.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() * 10.0
}

fn seed(camera: usize) -> u32 {
    u32::try_from(camera).unwrap_or(0) + 1
}

fn share(sorted: &[f64], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(0.0)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    share(values, 50)
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [width, height] = self.input_px;
        writeln!(f, "{} at {width}x{height}, {} cameras on {} cores", self.model, self.cameras, self.cores)?;
        writeln!(
            f,
            "{:26} {:>12} {:>9} {:>9} {:>16} {:>12}",
            "",
            "pictures/s",
            "p50 ms",
            "p99 ms",
            format!("in {:.0} ms", self.deadline_ms),
            "CPU ms each"
        )?;
        for (name, way) in [
            ("a session a camera", &self.per_camera),
            ("a session a core", &self.per_core),
            ("a session a core, batched", &self.batched),
        ] {
            writeln!(
                f,
                "{name:26} {:12.1} {:9.2} {:9.2} {:14.2} % {:12.3}",
                way.pictures_per_s,
                way.p50_ms,
                way.p99_ms,
                way.within_deadline * 100.0,
                way.cpu_ms
            )?;
        }
        writeln!(
            f,
            "batched is {:.2} x a session a camera ({:.2} by processor time), {:.2} x a session a core ({:.2})",
            self.ratio, self.cpu_ratio, self.ratio_per_core, self.cpu_ratio_per_core
        )?;
        write!(f, "{:.1} pictures a run; answers differ by at most {:.1e}", self.batch_mean, self.difference_max)
    }
}
