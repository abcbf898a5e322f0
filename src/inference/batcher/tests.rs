use std::path::Path;
use std::sync::Barrier;

use super::*;
use crate::clock::Clock;
use crate::inference::keeper::Recovery;
use crate::inference::pool::ModelPool;
use crate::inference::provider::{Batching, ProviderPlan};
use crate::inference::session::ModelSession;
use crate::inference::{FeatureModel, ModelManifest, OutputRole, Runtime};
use crate::types::{BoundingBox, Image};

fn manifest(name: &str) -> ModelManifest {
    ModelManifest::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn pool() -> ModelPool {
    ModelPool::new(Runtime::load(None).unwrap(), Clock::system(), |_| Err("no pictures here".to_owned()))
}

fn plan(max: usize, deadline_ms: u64) -> ProviderPlan {
    let limits = BatchLimits { max, deadline: Duration::from_millis(deadline_ms) };
    ProviderPlan { batching: Batching::On(limits), intra_threads: Some(1), ..ProviderPlan::default() }
}

fn noise(seed: u64) -> Image {
    let mut random = fastrand::Rng::with_seed(seed);
    Image::from_bgr(90, 70, (0..90 * 70 * 3).map(|_| random.u8(..)).collect()).unwrap()
}

/// Each of `workers` embeds its own pictures, `rounds` times; what each got.
fn embed_at_once(pool: &ModelPool, plan: &ProviderPlan, workers: u64, rounds: usize) -> (Vec<Vec<f32>>, ModelHealth) {
    let manifest = manifest("models/mobilenetv2");
    let mut models: Vec<FeatureModel> =
        (0..workers).map(|_| FeatureModel::open(pool.worker(), &manifest, plan).unwrap()).collect();
    let health = models[0].health().clone();
    let start = Barrier::new(models.len());
    let found = std::thread::scope(|scope| {
        let threads: Vec<_> = models
            .iter_mut()
            .enumerate()
            .map(|(index, model)| {
                let start = &start;
                scope.spawn(move || {
                    let image = noise(index as u64);
                    let crops = vec![(&image, BoundingBox::whole(90, 70)); index % 3 + 1];
                    start.wait();
                    let mut found = Vec::new();
                    (0..rounds).for_each(|_| found = model.embed(&crops, 64).unwrap());
                    assert!(model.session_ms() > 0.0);
                    found
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    (found, health)
}

#[test]
fn answers_are_the_same_with_and_without_batching_and_reach_who_asked() {
    let pool = pool();
    let (alone, health) = embed_at_once(&pool, &ProviderPlan::default(), 5, 1);
    assert_eq!(health.batches(), (0, 0), "a CPU's workers have their own sessions unless told otherwise");
    let (batched, health) = embed_at_once(&pool, &plan(8, 200), 5, 12);
    let (runs, requests) = health.batches();
    assert!(requests == 60 && runs < requests, "{runs} runs for {requests} requests");
    for (alone, batched) in alone.iter().zip(&batched) {
        assert_eq!(alone.len(), batched.len());
        let difference = alone.iter().zip(batched).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 1e-5, "{difference}");
    }
}

#[test]
fn nobody_waits_for_company_that_cannot_come() {
    let watch = Stopwatch::start();
    // A minute of patience, four workers, room for more: only knowing that all four wait ends the waiting.
    let (_, health) = embed_at_once(&pool(), &plan(64, 60_000), 4, 3);
    assert!(watch.elapsed() < Duration::from_secs(30), "{:?}", watch.elapsed());
    assert_eq!(health.batches().1, 12);
}

#[test]
fn a_lone_request_among_quiet_workers_is_answered_when_its_deadline_says_so() {
    let pool = pool();
    let manifest = manifest("models/mobilenetv2");
    let mut models: Vec<FeatureModel> =
        (0..3).map(|_| FeatureModel::open(pool.worker(), &manifest, &plan(8, 80)).unwrap()).collect();
    let image = noise(1);
    let watch = Stopwatch::start();
    let found = models[1].embed(&[(&image, BoundingBox::whole(90, 70))], 64).unwrap();
    assert!(found.len() == 1_280 && watch.elapsed() < Duration::from_secs(20));
    // Once the quiet ones are gone it waits for nobody.
    models.truncate(2);
    models.remove(0);
    let slow = plan(8, 60_000);
    drop(models);
    let mut alone = FeatureModel::open(pool.worker(), &manifest, &slow).unwrap();
    let watch = Stopwatch::start();
    alone.embed(&[(&image, BoundingBox::whole(90, 70))], 64).unwrap();
    assert!(watch.elapsed() < Duration::from_secs(20), "{:?}", watch.elapsed());
}

fn batcher(name: &str, limits: BatchLimits) -> (Arc<Batcher>, ModelHealth) {
    let session = ModelSession::open(&Runtime::load(None).unwrap(), &manifest(name), &ProviderPlan::default()).unwrap();
    let health = ModelHealth::default();
    (Batcher::start(Keeper::new(session, None), Vec::new(), limits, &health).unwrap(), health)
}

#[test]
fn two_sessions_share_what_waits_and_a_lone_rest_does_not_wait_for_its_deadline() {
    let open = || {
        let manifest = manifest("models/mobilenetv2");
        let session = ModelSession::open(&Runtime::load(None).unwrap(), &manifest, &ProviderPlan::default()).unwrap();
        Keeper::new(session, None)
    };
    let limits = BatchLimits { max: 8, deadline: Duration::from_secs(60) };
    let health = ModelHealth::default();
    let batcher = Batcher::start(open(), vec![open()], limits, &health).unwrap();
    let specs: Arc<[OutputSpec]> = batcher.facts.manifest.outputs_of(OutputRole::Embedding).cloned().collect();
    let mut clients: Vec<Client> = (0..8).map(|lane| batcher.client(lane)).collect();
    let (watch, rounds) = (Stopwatch::start(), 6);
    // In step: who was answered does not ask again before all were.
    let start = Barrier::new(clients.len());
    std::thread::scope(|scope| {
        for client in &mut clients {
            let (specs, start) = (Arc::clone(&specs), &start);
            scope.spawn(move || {
                let wanted = Wanted::new(specs, "m").unwrap();
                let values = vec![0.1_f32; 3 * 64 * 64];
                for _ in 0..rounds {
                    start.wait();
                    client.run(View::F32(&values), [1, 3, 64, 64], &wanted, |_| Ok(())).unwrap();
                }
            });
        }
    });
    let (runs, requests) = health.batches();
    assert_eq!(requests, 8 * rounds);
    assert!((2 * rounds..8 * rounds).contains(&runs), "{runs} runs, of four requests at most");
    assert!(watch.elapsed() < Duration::from_secs(30), "{:?}", watch.elapsed());
}

#[test]
fn a_session_that_is_lost_leaves_its_requests_to_the_others() {
    let name = "models/mobilenetv2";
    let session = || ModelSession::open(&Runtime::load(None).unwrap(), &manifest(name), &ProviderPlan::default());
    let gone = || InferenceError::NoProvider { model: "m".to_owned(), message: "no device".to_owned() };
    let (clock, health) = (Clock::system(), ModelHealth::default());
    let recovery = Recovery { clock, health: health.clone(), reopen: Box::new(move || Err(gone())) };
    let lost = Keeper::new(session().unwrap(), Some(recovery));
    let limits = BatchLimits { max: 8, deadline: Duration::from_millis(20) };
    let well = Keeper::new(session().unwrap(), None);
    let batcher = Batcher::start(Arc::clone(&lost), vec![Arc::clone(&well)], limits, &health).unwrap();
    let specs: Arc<[OutputSpec]> = batcher.facts.manifest.outputs_of(OutputRole::Embedding).cloned().collect();
    let (wanted, values) = (Wanted::new(specs, "m").unwrap(), vec![0.1_f32; 3 * 64 * 64]);
    let fault = InferenceError::Device { model: "m".to_owned(), message: "out of memory".to_owned() };
    lost.run(View::F32(&values), [1, 3, 64, 64], &wanted, |_| Err::<(), _>(fault)).unwrap_err();
    let mut client = batcher.client(0);
    let mut ask = || client.run(View::F32(&values), [1, 3, 64, 64], &wanted, |_| Ok(()));
    // The lost one's thread may have been waiting for a request since before the fault: it takes one, whichever, and no more.
    let refused: Vec<InferenceError> = (0..21).filter_map(|_| ask().err()).collect();
    let is_known = |error: &InferenceError| matches!(error, InferenceError::Unavailable { .. });
    assert!(refused.len() <= 1 && refused.iter().all(is_known), "{refused:?}");
    assert!(!lost.is_ready() && well.is_ready() && !health.is_ready());
}

#[test]
fn a_bad_request_fails_alone_and_the_others_of_its_batch_are_answered() {
    let limits = BatchLimits { max: 8, deadline: Duration::from_secs(60) };
    let (batcher, health) = batcher("models/mobilenetv2", limits);
    let specs: Arc<[OutputSpec]> =
        batcher.facts.manifest.outputs_of(OutputRole::Embedding).cloned().collect::<Vec<_>>().into();
    let mut clients: Vec<Client> = (0..4).map(|lane| batcher.client(lane)).collect();
    let outcomes: Vec<Result<usize, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .enumerate()
            .map(|(index, client)| {
                let specs = Arc::clone(&specs);
                scope.spawn(move || {
                    let wanted = Wanted::new(specs, "m").unwrap();
                    // The third says two pictures and sends one.
                    let pictures = if index == 2 { 2 } else { 1 };
                    let values = vec![0.1_f32; 3 * 64 * 64];
                    let found = client
                        .run(View::F32(&values), [pictures, 3, 64, 64], &wanted, |outputs| Ok(outputs[0].values.len()));
                    found.map(|(count, _)| count).map_err(|error| error.to_string())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(outcomes[2].is_err(), "{outcomes:?}");
    assert!([0, 1, 3].iter().all(|index| outcomes[*index] == Ok(1_280)), "{outcomes:?}");
    assert_eq!(health.batches(), (4, 4), "each was run alone");
}

#[test]
fn requests_of_another_size_keep_their_place_in_line() {
    let limits = BatchLimits { max: 8, deadline: Duration::from_millis(200) };
    let (batcher, _) = batcher("models/mobilenetv2", limits);
    let specs: Arc<[OutputSpec]> = batcher.facts.manifest.outputs_of(OutputRole::Features).cloned().collect();
    let mut clients: Vec<Client> = (0..4).map(|lane| batcher.client(lane)).collect();
    std::thread::scope(|scope| {
        for (index, client) in clients.iter_mut().enumerate() {
            let specs = Arc::clone(&specs);
            scope.spawn(move || {
                let side = if index % 2 == 0 { 64 } else { 96 };
                let wanted = Wanted::new(specs, "m").unwrap();
                let values = vec![0.1_f32; 3 * side * side];
                let shapes = client.run(View::F32(&values), [1, 3, side, side], &wanted, |outputs| {
                    Ok(outputs.iter().map(|output| output.shape.clone()).collect::<Vec<_>>())
                });
                let expected = vec![vec![1, 32, side / 8, side / 8], vec![1, 96, side / 16, side / 16]];
                assert_eq!(shapes.unwrap().0, expected);
            });
        }
    });
}

#[test]
fn a_batch_is_taken_apart_by_pictures_and_one_without_batch_axis_is_refused() {
    let spec = manifest("models/mobilenetv2").outputs()[0].clone();
    let output = |shape: &[usize], count: u8| Output {
        shape: shape.to_vec(),
        values: (0..count).map(f32::from).collect::<Vec<_>>().into(),
    };
    let parts = apart(&[output(&[3, 2], 6)], &[1, 2], std::slice::from_ref(&spec), "m").unwrap();
    assert_eq!(parts[0], [(vec![1, 2], vec![0.0, 1.0])]);
    assert_eq!(parts[1], [(vec![2, 2], vec![2.0, 3.0, 4.0, 5.0])]);
    let error = apart(&[output(&[6], 6)], &[1, 2], &[spec], "m").unwrap_err().to_string();
    assert!(error.contains("[3, ...]") && error.contains("[6]"), "{error}");
}

#[test]
fn a_graph_that_fails_in_batches_only_is_run_one_by_one_from_then_on() {
    // It was exported for one picture; the pool would not batch it.
    let limits = BatchLimits { max: 8, deadline: Duration::from_secs(60) };
    let (batcher, health) = batcher("models/tiny-yolox", limits);
    let specs: Arc<[OutputSpec]> = batcher.facts.manifest.outputs().into();
    let mut clients: Vec<Client> = (0..2).map(|lane| batcher.client(lane)).collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            let specs = Arc::clone(&specs);
            scope.spawn(move || {
                let wanted = Wanted::new(specs, "m").unwrap();
                let values = vec![0.1_f32; 3 * 416 * 416];
                for _ in 0..8 {
                    client.run(View::F32(&values), [1, 3, 416, 416], &wanted, |_| Ok(())).unwrap();
                }
            });
        }
    });
    let (runs, requests) = health.batches();
    assert_eq!((runs, requests), (16, 16), "no batch ever succeeded");
}
