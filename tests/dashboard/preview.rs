//! The page with a scripted line behind it, to look at:
//! `cargo test --release --test dashboard -- --ignored --nocapture serve_preview` serves until it is interrupted.
//!
//! `PREVIEW_PORT` (8090), `PREVIEW_LAST` (pass, hold or fail) and `PREVIEW_STATIONS` (1) set the scene.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use loupe::dashboard::{Dashboard, DashboardState, StationInfo};
use loupe::shutdown::Shutdown;
use loupe::types::{AnomalyEvidence, ArtifactKind, ArtifactRef, Digest, Inspection, Reason, SurfaceReading, Verdict};

use super::bench::{Bench, inspection, state};

/// A 24-bit BMP from a function of the pixel (BGR), which needs no image library.
fn bmp(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let row_bytes = (width * 3).next_multiple_of(4);
    let mut bytes = b"BM".to_vec();
    for word in [54 + row_bytes * height, 0, 54, 40, width, height, 0x0018_0001, 0, row_bytes * height, 0, 0, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for y in (0..height).rev() {
        let row = (0..width).flat_map(|x| pixel(x, y)).chain(std::iter::repeat(0));
        bytes.extend(row.take(row_bytes as usize));
    }
    bytes
}

/// A grey tray with three studded bricks, BGR.
fn scene(x: u32, y: u32, seed: u32) -> [u8; 3] {
    let parts: [([u32; 4], [u8; 3]); 3] = [
        ([84, 134, 236, 286], [40, 40, 200]),
        ([344, 104, 456, 196], [190, 120, 30]),
        ([374, 294, 546, 406], [60, 190, 235]),
    ];
    let mixed = (x.wrapping_mul(374_761_393) ^ y.wrapping_mul(668_265_263) ^ seed).wrapping_mul(1_274_126_177);
    let noise = mixed.to_be_bytes()[0] >> 5;
    for ([x1, y1, x2, y2], colour) in parts {
        if (x1..x2).contains(&x) && (y1..y2).contains(&y) {
            let (u, v) = ((x - x1) % 38, (y - y1) % 38);
            let stud = if u.abs_diff(19).pow(2) + v.abs_diff(19).pow(2) < 121 { 25 } else { 0 };
            return colour.map(|c| c.saturating_add(stud + noise));
        }
    }
    [206 + noise, 202 + noise, 198 + noise]
}

/// Blue to red over a grey copy of the scene, BGR.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a mean of values from 0 to 255")]
fn heat(x: u32, y: u32, seed: u32) -> [u8; 3] {
    let distance = (f64::from(x) - 470.0).hypot(f64::from(y) - 350.0);
    let hot = (-distance * distance / 4_000.0).exp();
    let grey = scene(x, y, seed).iter().map(|&c| f64::from(c)).sum::<f64>() / 3.0;
    let tint = [255.0 * (1.0 - hot), 400.0 * hot * (1.0 - hot), 255.0 * hot];
    tint.map(|t| (0.45 * grey + 0.55 * t).round() as u8)
}

fn with_pictures(mut inspection: Inspection, artifacts: &Path, number: u32) -> Inspection {
    let mut keep = |kind: ArtifactKind, width: u32, height: u32, bytes: Vec<u8>| {
        let relative_path = format!("2026/11/21/{number}-{}.bmp", kind.as_str());
        std::fs::write(artifacts.join(&relative_path), &bytes).unwrap();
        inspection.artifacts.push(ArtifactRef {
            kind,
            relative_path,
            content_type: "image/bmp".to_owned(),
            size_bytes: bytes.len() as u64,
            sha256: Digest::of(&bytes),
            width_px: width,
            height_px: height,
        });
    };
    keep(ArtifactKind::Frame, 640, 480, bmp(640, 480, |x, y| scene(x, y, number)));
    keep(ArtifactKind::Heatmap, 640, 480, bmp(640, 480, |x, y| heat(x, y, number)));
    keep(ArtifactKind::Thumbnail, 160, 120, bmp(160, 120, |x, y| scene(x * 4, y * 4, number)));
    let score = if inspection.verdict == Verdict::Fail { 0.71 } else { 0.32 };
    inspection.anomaly = Some(AnomalyEvidence {
        score_raw: score * 40.0,
        score,
        threshold: 0.5,
        image_threshold_raw: 20.0,
        pixel_threshold_raw: 18.0,
        map_min: 2.0,
        map_max: 31.0,
        area_above_ratio: if score > 0.5 { 0.034 } else { 0.0 },
        bank_sha256: Digest::of(b"bank"),
        surface: SurfaceReading::default(),
    });
    inspection.timings_ms.anomaly = 31.5;
    inspection.timings_ms.total = 76.2;
    inspection
}

fn script(number: u32, last: &str) -> (Verdict, &'static [Reason]) {
    match (number, last) {
        (24, "pass") => (Verdict::Pass, &[]),
        (24, "hold") => (Verdict::Hold, &[Reason::MarginSmall, Reason::ProviderFallback]),
        (24, _) => (Verdict::Fail, &[Reason::AnomalyAboveThreshold]),
        _ if number % 8 == 3 => (Verdict::Fail, &[Reason::AnomalyAboveThreshold]),
        _ if number % 8 == 6 => (Verdict::Hold, &[Reason::MarginSmall, Reason::FrameBlurred]),
        _ => (Verdict::Pass, &[]),
    }
}

fn with_fallback(mut state: DashboardState) -> DashboardState {
    let before = state.snapshot.clone();
    state.snapshot = Arc::new(move || {
        let mut snapshot = before();
        snapshot.providers[0].required = Some("cuda".to_owned());
        snapshot.providers[0].is_fallback = true;
        snapshot
    });
    state
}

#[test]
#[ignore = "serves until it is killed, to look at the page"]
fn serve_preview() {
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let port: u16 = variable("PREVIEW_PORT", "8090").parse().unwrap();
    let stations: u32 = variable("PREVIEW_STATIONS", "1").parse().unwrap();
    let last = variable("PREVIEW_LAST", "fail");
    let bench = Bench::new();
    let artifacts = bench.folder.path().join("artifacts");
    let mut state = state(&artifacts, &bench.progress);
    for index in 2..=stations {
        let name = format!("line {index}");
        state.stations.push(StationInfo { name, recipe: "tray-kit".to_owned(), source: format!("camera {index}") });
    }
    if last == "hold" {
        state = with_fallback(state);
    }
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    let handle = Dashboard::spawn(listen, bench.feed.clone(), state, Shutdown::new()).unwrap();
    println!("http://{}/", handle.addr);
    for number in 1..=24 {
        let (verdict, reasons) = script(number, &last);
        let mut one = with_pictures(inspection(number, verdict, reasons), &artifacts, number);
        if number % stations != 0 {
            one.station = format!("line {}", number % stations + 1);
        }
        bench.feed.publish(Arc::new(one));
    }
    handle.join();
}
