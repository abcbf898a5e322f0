//! A dashboard on a free port, a plain HTTP client and synthetic inspections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use loupe::clock::Clock;
use loupe::dashboard::{
    Dashboard, DashboardHandle, DashboardState, Feed, ModelRun, Snapshot, StationInfo, UplinkState, UplinkView,
};
use loupe::notify::Progress;
use loupe::observe::{LedgerTotals, Metrics};
use loupe::shutdown::Shutdown;
use loupe::types::{Digest, Inspection, InspectionId, Item, Provider, Reason, Tier, Timestamp, Timings, Verdict};
use serde_json::Value;

/// Any free port of this machine.
pub const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running dashboard with one artifact on disk.
pub struct Bench {
    handle: Option<DashboardHandle>,
    pub feed: Feed,
    pub shutdown: Shutdown,
    pub progress: Progress,
    pub folder: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (feed, shutdown, progress) = (Feed::new(), Shutdown::new(), Progress::new("tray"));
        progress.advance();
        let artifacts = folder.path().join("artifacts");
        std::fs::create_dir_all(artifacts.join("2026/11/21")).unwrap();
        std::fs::write(artifacts.join("2026/11/21/a.jpg"), b"jpeg bytes").unwrap();
        std::fs::write(artifacts.join("2026/11/21/a.svg"), b"<svg/>").unwrap();
        std::fs::write(folder.path().join("ledger.sqlite"), b"secret").unwrap();
        let state = state(&artifacts, &progress);
        Self::start(state, feed, shutdown, progress, folder)
    }

    /// The same with another state.
    pub fn with(state: DashboardState) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start(state, Feed::new(), Shutdown::new(), Progress::new("tray"), folder)
    }

    fn start(
        state: DashboardState,
        feed: Feed,
        shutdown: Shutdown,
        progress: Progress,
        folder: tempfile::TempDir,
    ) -> Self {
        let handle = Dashboard::spawn(LOOPBACK, feed.clone(), state, shutdown.clone()).unwrap();
        Self { handle: Some(handle), feed, shutdown, progress, folder }
    }

    pub fn addr(&self) -> SocketAddr {
        self.handle.as_ref().unwrap().addr
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.addr()))
    }

    pub fn send(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub fn events(&self) -> Events {
        let mut stream = self.connect();
        write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", self.addr()).unwrap();
        Events { lines: BufReader::new(stream) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.request();
        if let Some(handle) = self.handle.take() {
            handle.join();
        }
    }
}

/// One answer, its head in lower case.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in: {}", self.body))
    }

    #[track_caller]
    pub fn expect_error(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.json()["error"]["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert!(!self.body.contains('/'), "an error must not tell a path: {}", self.body);
    }
}

/// An open event stream.
pub struct Events {
    lines: BufReader<TcpStream>,
}

impl Events {
    /// The data of the next event called `name`; `None` when the stream ended.
    pub fn next(&mut self, name: &str) -> Option<Value> {
        let (mut line, mut is_wanted) = (String::new(), false);
        loop {
            line.clear();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(event) = line.strip_prefix("event: ") {
                is_wanted = event.trim() == name;
            } else if let Some(data) = line.strip_prefix("data: ").filter(|_| is_wanted) {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }
}

pub fn state(artifacts: &Path, progress: &Progress) -> DashboardState {
    let metrics = Metrics::new();
    metrics.set_ledger(LedgerTotals { inspections: 9, committed: 9, delivered: 4, pending: 5, quarantined: 0 });
    let run = |model: &str| ModelRun {
        model: model.to_owned(),
        provider: "cpu".to_owned(),
        required: None,
        is_fallback: false,
        fault: None,
    };
    let snapshot = Snapshot {
        stations: std::collections::BTreeMap::new(),
        captured: 12,
        decided: 9,
        refused: [("capture.queue_full".to_owned(), 2)].into(),
        dropped: 2,
        committed: 9,
        delivered: 4,
        pending: 5,
        quarantined: 0,
        uplink: UplinkView { state: UplinkState::Retrying, text: "no route; again in 8 s".to_owned(), lag_s: 95.0 },
        providers: vec![run("efficientnet-lite0"), run("yolox-tray")],
        frames_per_second: 11.4,
        uptime: Duration::from_secs(7_300),
    };
    DashboardState {
        artifacts_dir: artifacts.to_owned(),
        site: "Plant 3".to_owned(),
        stations: vec![StationInfo {
            name: "tray".to_owned(),
            recipe: "tray-kit".to_owned(),
            source: "camera 1".to_owned(),
        }],
        snapshot: Arc::new(move || snapshot.clone()),
        gone: Some(std::sync::Arc::new(|path| {
            (path == "2026/11/21/gone.jpg").then(|| "Gone since 2026-11-20: kept for <3> days by policy.".to_owned())
        })),
        lookup: None,
        reviews: None,
        kits: None,
        holds: None,
        people: None,
        metrics,
        progress: vec![progress.clone()],
        clock: Clock::system(),
        allow_remote: false,
        allowed_hosts: Vec::new(),
    }
}

fn item(ordinal: u32, corners: [f32; 4], part: Option<&str>, reasons: &[Reason], verdict: Verdict) -> Item {
    Item {
        size_mm: None,
        colour: None,
        ordinal,
        bbox: corners.into(),
        views: Vec::new(),
        label: "part".to_owned(),
        detection_confidence: 0.9,
        part_id: part.map(str::to_owned),
        similarity: Some(0.912 - 0.04 * ordinal as f32),
        margin: Some(if part.is_some() { 0.21 } else { 0.013 }),
        tier: Some(if ordinal.is_multiple_of(2) { Tier::L1 } else { Tier::L2 }),
        matched: None,
        verdict,
        reasons: reasons.to_vec(),
    }
}

/// Three parts on a tray; the verdict hangs on the third.
pub fn inspection(number: u32, verdict: Verdict, reasons: &[Reason]) -> Inspection {
    let now = Clock::system().now();
    let items = vec![
        item(0, [70.0, 120.0, 250.0, 300.0], Some("3001"), &[], Verdict::Pass),
        item(1, [330.0, 90.0, 470.0, 210.0], Some("3020"), &[], Verdict::Pass),
        item(2, [360.0, 280.0, 560.0, 420.0], (verdict != Verdict::Hold).then_some("2456"), reasons, verdict),
    ];
    Inspection {
        id: InspectionId(uuid::Uuid::now_v7()),
        code: format!("INS-20261121-{number:04}"),
        source: format!("camera 1#{number}"),
        station: "tray".to_owned(),
        camera: "camera 1".to_owned(),
        recipe: "tray-kit".to_owned(),
        is_stream: true,
        faults: Vec::new(),
        elapsed_ms: 30.0,
        frame_seq: u64::from(number),
        captured_at: now,
        decided_at: Timestamp::from_micros(now.as_micros() + 41_000),
        views: Vec::new(),
        width_px: 640,
        height_px: 480,
        frame_sha256: Digest::of(&number.to_le_bytes()),
        provenance_sha256: Digest::of(b"provenance"),
        verdict,
        reasons: reasons.to_vec(),
        anomaly: None,
        items,
        quality: None,
        providers: vec![("embed".to_owned(), Provider::Cpu)],
        is_provider_fallback: false,
        deadline_ms: Some(200.0),
        timings_ms: Timings {
            decode: 4.1,
            quality: 5.7,
            locate: 2.2,
            embed: 25.8,
            matching: 1.4,
            anomaly: 0.0,
            decide: 0.1,
            commit: 0.6,
            total: 43.0,
        },
        artifacts: vec![],
    }
}
