//! Learning from review, with the real daemon: a correction is searched with the next frame, an undo ends that, and the
//! rows reach PostgreSQL once.

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use loupe::clock::Stopwatch;
use loupe::config::Recipe;
use loupe::decide::{Decision, Evidence, decide};
use loupe::ledger::LedgerReader;
use loupe::matching::Outline;
use loupe::types::Inspection;
use serde_json::{Value, json};
use support::postgres::Postgres;
use support::{Assets, copy_folder, fail_with, inspect, loupe, root, samples, succeed, text};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(90);

/// Any sample query picture, and a catalogue part that it does not show.
const WRONG_PART: &str = "3001";

fn query_picture() -> PathBuf {
    let mut pictures: Vec<PathBuf> =
        fs::read_dir(samples().join("parts/queries/3009")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pictures.sort();
    pictures.swap_remove(0)
}

/// A recipe that accepts nothing but a picture it has seen, so that every other frame is held and kept.
fn recipe(folder: &Path, index: &Path) -> PathBuf {
    let path = folder.join("parts.toml");
    let text = format!(
        "name = \"parts\"\n[quality.limits]\nhold_identical = false\n[match]\nindex = \"{}\"\nmodel = \"{}\"\n\
         accept_similarity = 0.995\nunknown_similarity = 0.99\n",
        index.display(),
        root().join("models/mobilenetv2").display()
    );
    fs::write(&path, text).unwrap();
    path
}

struct Daemon {
    child: Child,
    folder: TempDir,
    dropped: usize,
}

impl Daemon {
    fn start(index: &Path, uplink: &str) -> Self {
        let folder = TempDir::new().unwrap();
        recipe(folder.path(), index);
        fs::create_dir(folder.path().join("in")).unwrap();
        let config = format!(
            "[site]\ncode = \"plant-07\"\n{uplink}[storage]\nstate_dir = \"state\"\n[dashboard]\nlisten = \"127.0.0.1:0\"\n\
             [[stations]]\nname = \"counter\"\nrecipe = \"parts.toml\"\nsource = {{ kind = \"folder\", path = \"in\", watch = true }}\n"
        );
        fs::write(folder.path().join("loupe.toml"), config).unwrap();
        let child = loupe()
            .args(["run", "--config"])
            .arg(folder.path().join("loupe.toml"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, folder, dropped: 0 }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn address(&self) -> String {
        let path = self.state().join("dashboard.addr");
        wait_for(|| fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'))).trim().to_owned()
    }

    fn ask(&self, request: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn get(&self, path: &str) -> Value {
        let host = self.address();
        let (status, body) = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    fn post(&self, path: &str, headers: &str, body: &Value) -> (u16, Value) {
        let (host, body) = (self.address(), body.to_string());
        self.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n{body}",
            body.len()
        ))
    }

    /// Show the picture to the daemon; the inspection that comes of it.
    fn show(&mut self, picture: &Path) -> Inspection {
        self.dropped += 1;
        let name = format!("{:04}.{}", self.dropped, picture.extension().unwrap().to_string_lossy());
        let staged = self.folder.path().join("staged");
        fs::copy(picture, &staged).unwrap();
        fs::rename(staged, self.folder.path().join("in").join(&name)).unwrap();
        let state = self.state();
        wait_for(|| {
            let recent = LedgerReader::open(&state).and_then(|reader| reader.recent(1)).ok()?;
            recent.into_iter().find(|inspection| inspection.source.ends_with(&name))
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let watch = Stopwatch::start();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(watch.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain");
        std::thread::yield_now();
    }
}

fn correction(subject: &str, part: &str) -> Value {
    json!({
        "subject": subject, "action": { "kind": "part", "part_id": part, "color_id": "71" },
        "reviewer": "Kim", "reason": "seen by eye"
    })
}

const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn a_correction_is_recognised_until_it_is_undone_and_reaches_the_centre_once() {
    let Some(postgres) = Postgres::start() else { return };
    let admin = postgres.dsn();
    succeed(loupe().args(["db", "migrate", "--dsn", &admin]));
    let args = ["db", "provision-site", "--json", "--code", "plant-07", "--name", "Plant 7", "--dsn", &admin];
    let site: Value = serde_json::from_slice(&succeed(loupe().args(args)).stdout).unwrap();
    let uplink = format!(
        "id = \"{}\"\n[uplink]\ndsn = \"{}\"\n",
        site["site_id"].as_str().unwrap(),
        site["dsn"].as_str().unwrap()
    );
    let mut daemon = Daemon::start(&Assets::get().index(), &uplink);
    let picture = query_picture();

    let before = daemon.show(&picture);
    let shown = before.items[0].matched.clone().unwrap();
    assert_eq!((before.verdict.as_str(), before.items[0].reasons[0].code()), ("hold", "match.unknown"));
    assert_ne!(shown.part_id, WRONG_PART);
    assert_eq!(shown.delta_sha256, None);

    // Refused: another site, a form, nonsense, an unknown part, an unknown item.
    let order = correction(&format!("{}/0", before.code), WRONG_PART);
    let foreign = format!("{JSON}Origin: http://evil.example\r\n");
    assert_eq!(daemon.post("/api/v1/reviews", &foreign, &order).0, 403);
    assert_eq!(daemon.post("/api/v1/reviews", "Content-Type: text/plain\r\n", &order).0, 415);
    assert_eq!(daemon.post("/api/v1/reviews", JSON, &json!({ "subject": "x" })).0, 400);
    let (status, said) = daemon.post("/api/v1/reviews", JSON, &correction(&before.code, "no-such-part"));
    assert_eq!(status, 422, "{said}");
    assert!(said["error"]["message"].as_str().unwrap().contains("does not know part"), "{said}");
    assert_eq!(daemon.post("/api/v1/reviews", JSON, &correction("INS-20000101-0001", WRONG_PART)).0, 422);

    let own = format!("{JSON}Origin: http://{}\r\n", daemon.address());
    let (status, review) = daemon.post("/api/v1/reviews", &own, &order);
    assert_eq!((status, &review["template"]), (201, &json!(1)), "{review}");

    let after = daemon.show(&picture);
    let found = after.items[0].matched.clone().unwrap();
    assert_eq!((after.items[0].part_id.as_deref(), found.tier.as_str()), (Some(WRONG_PART), "delta"), "{found:?}");
    assert!(found.similarity > 0.999 && found.delta_sha256.is_some(), "{found:?}");
    assert_eq!(found.color_id.as_deref(), Some("71"));
    recomputes(&daemon, &after);

    // While the daemon has the ledger, the command line hands its review over.
    let id = review["id"].as_str().unwrap();
    let state = daemon.state();
    let undo = succeed(loupe().args(["review", "undo", id, "--author", "Lee", "--json", "--state"]).arg(&state));
    let undo: Value = serde_json::from_slice(&undo.stdout).unwrap();
    assert_eq!((undo["undoes_id"].as_str(), undo["status"].as_str()), (Some(id), Some("pending")));
    let again = daemon.post(&format!("/api/v1/reviews/{id}/undo"), JSON, &json!({ "reviewer": "Lee" }));
    assert_eq!(again.0, 422, "{}", again.1);

    let last = daemon.show(&picture);
    let matched = last.items[0].matched.clone().unwrap();
    assert_eq!((matched.part_id, matched.delta_sha256, last.verdict), (shown.part_id, None, before.verdict));
    recomputes(&daemon, &last);
    assert_eq!(daemon.get("/api/v1/unknowns")["unknowns"][0]["detected_count"], 2);
    assert_eq!(daemon.get("/api/v1/reviews")["reviews"].as_array().unwrap().len(), 2);

    wait_for(|| {
        let counters = LedgerReader::open(&state).unwrap().counters().unwrap();
        (counters.pending == 0 && counters.committed - counters.config_changes == 5).then_some(())
    });
    let rows = postgres.lines(
        "SELECT r.review_status, r.corrected_part_id, r.reviewer, r.ordinal, i.code
         FROM loupe.reviews r JOIN loupe.items t ON t.id = r.subject_id JOIN loupe.inspections i ON i.id = t.inspection_id
         ORDER BY r.occurred_at",
    );
    let code = &before.code;
    assert_eq!(rows, [format!("rejected|{WRONG_PART}|Kim|0|{code}"), format!("pending||Lee|0|{code}")]);
    succeed(loupe().args(["outbox", "verify", "--state"]).arg(&state));
}

/// Invariant 6 with a delta: the stored evidence decides as it did.
fn recomputes(daemon: &Daemon, inspection: &Inspection) {
    let path = daemon.folder.path().join("parts.toml");
    let recipe = Recipe::load(&path).unwrap();
    let Decision::Decided { verdict, reasons, items } =
        decide(&Evidence::of(inspection), loupe::pipeline::criteria(&recipe))
    else {
        panic!("ignored");
    };
    assert_eq!((verdict, &reasons, &items), (inspection.verdict, &inspection.reasons, &inspection.items));
}

#[test]
fn the_command_line_teaches_a_stopped_device_and_a_build_takes_it_in() {
    let folder = TempDir::new().unwrap();
    let index = folder.path().join("index");
    copy_folder(&Assets::get().index(), &index);
    let recipe = recipe(folder.path(), &index);
    let state = folder.path().join("state");
    let picture = query_picture();
    let look = || inspect(&recipe, &state, std::slice::from_ref(&picture)).remove(0);
    let first = look();
    let code = first["code"].as_str().unwrap();
    let shown = first["items"][0]["matched"]["part_id"].as_str().unwrap();
    let review = |subject: &str, more: &[&str]| {
        let mut command = loupe();
        command.args(["review", subject, "--author", "Kim", "--state"]).arg(&state).args(more);
        command
    };
    let recipe_file = recipe.to_str().unwrap();
    let teach = ["--part", WRONG_PART, "--color", "71", "--recipe", recipe_file];
    assert!(fail_with(&mut review(code, &["--part", WRONG_PART]), 1).contains("--recipe"));
    assert!(fail_with(&mut review("INS-20000101-0001", &teach), 1).contains("INS-20000101-0001"));
    assert!(fail_with(&mut review(&format!("{code}/7"), &teach), 1).contains("has no item 7"));
    fail_with(&mut review(code, &[]), 64);
    fail_with(&mut review(code, &["--confirm", "--unknown"]), 64);

    succeed(&mut review(code, &teach));
    let taught = look();
    assert_eq!(taught["items"][0]["matched"]["tier"], "delta", "{taught}");
    assert_eq!(taught["items"][0]["part_id"], WRONG_PART);
    // Passed, so its frame was not kept.
    let passed = taught["code"].as_str().unwrap();
    assert!(fail_with(&mut review(passed, &teach), 1).contains("was not kept"));
    succeed(&mut review(passed, &["--part", shown, "--no-teach"]));
    let list = |what: &str| -> Value {
        let output = succeed(loupe().args(["review", what, "--json", "--state"]).arg(&state));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let pairs = list("confusions");
    assert_eq!(pairs["confusions"].as_array().unwrap().len(), 2, "{pairs}");
    assert!(pairs["confusions"].as_array().unwrap().iter().all(|pair| pair["count"] == 1), "{pairs}");
    assert_eq!(list("list")["reviews"].as_array().unwrap().len(), 2);
    assert_eq!(list("unknowns")["unknowns"][0]["best_part_id"], shown);

    // A build takes the template in: it answers from the generation, and the delta does not search it twice.
    let parts = samples().join("parts");
    let mut build = loupe();
    build.args(["index", "build", "--json", "--parts"]).arg(parts.join("parts.csv")).arg("--templates");
    build.arg(parts.join("templates.csv")).arg("--root").arg(&parts).arg("--out").arg(&index);
    build.arg("--model").arg(root().join("models/mobilenetv2"));
    build.arg("--with-delta").arg(&state).arg("--evidence").arg(&state);
    let built: Value = serde_json::from_slice(&succeed(&mut build).stdout).unwrap();
    assert_eq!((&built["moves"]["folded"], &built["moves"]["searches"]), (&json!(1), &json!(2)), "{built}");
    let outline = Outline::of_live(&index).unwrap();
    let learned: Vec<bool> =
        outline.templates().filter(|(template, _)| template.view.starts_with("review-")).map(|(_, hot)| hot).collect();
    assert_eq!(learned.len(), 1);
    let folded = look();
    let tier = folded["items"][0]["matched"]["tier"].as_str().unwrap();
    assert!(["l1", "l2"].contains(&tier), "{folded}");
    assert_eq!(folded["items"][0]["part_id"], WRONG_PART);
    println!("{}", text(&succeed(loupe().args(["outbox", "verify", "--state"]).arg(&state)).stdout));
}
