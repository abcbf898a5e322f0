//! What a person, a file, a camera or a network can bring: a clear error or a HOLD with its reason, never a panic.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{
    Assets, belt_recipe, copy_folder, fail_with, find, flip_byte, inspect, loupe, plate_recipe, root, samples, succeed,
    text,
};
use tempfile::TempDir;

fn good_image() -> PathBuf {
    samples().join("plate/test/good/000.jpg")
}

/// Inspect `bytes` as `name` beside a good image: HOLD for this reason, and the good one is inspected all the same.
fn check_held(name: &str, bytes: &[u8], reason: &str) {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let bad = folder.path().join(name);
    fs::write(&bad, bytes).unwrap();
    let recipe = plate_recipe(folder.path(), &assets.bank(), "");
    let lines = inspect(&recipe, &folder.path().join("state"), &[bad, good_image()]);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["verdict"], "hold", "{}", lines[0]);
    assert!(lines[0]["reasons"].as_array().unwrap().contains(&reason.into()), "{}", lines[0]);
    assert_eq!(lines[1]["verdict"], "pass", "{}", lines[1]);
}

#[test]
fn a_truncated_image_holds() {
    let bytes = fs::read(good_image()).unwrap();
    check_held("cut.jpg", &bytes[..bytes.len() * 2 / 3], "frame.unreadable");
}

#[test]
fn an_empty_file_holds() {
    check_held("empty.jpg", b"", "frame.unreadable");
}

#[test]
fn a_text_file_named_jpg_holds() {
    check_held("notes.jpg", b"these are the notes of the morning shift\n", "frame.unreadable");
}

#[test]
fn a_video_with_a_broken_tail_ends_in_a_hold() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let bytes = fs::read(samples().join("belt/belt.mp4")).unwrap();
    let clip = folder.path().join("cut.mp4");
    fs::write(&clip, &bytes[..bytes.len() / 2]).unwrap();
    let recipe =
        belt_recipe(folder.path(), &assets.index(), "[rules]\nwhen_empty = \"ignore\"\nat_edge = \"ignore\"\n");
    let lines = inspect(&recipe, &folder.path().join("state"), &[clip]);
    assert!(lines.len() > 20, "{} lines", lines.len());
    let last = lines.last().unwrap();
    assert_eq!(last["verdict"], "hold");
    assert!(last["reasons"].as_array().unwrap().contains(&"source.ended_early".into()), "{last}");
}

#[test]
fn a_config_with_five_errors_reports_all_five_with_key_paths() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("loupe.toml");
    fs::write(
        &config,
        "[site]\ncode = \"Not A Code\"\n[runtime]\nworkers = \"many\"\n[dashboard]\nport = 80\n[telemetry]\ngpu_interval_s = 0\n\
         [[stations]]\nname = \"a\"\nrecipe = \"missing.toml\"\nsource = { kind = \"folder\", path = \".\" }\n",
    )
    .unwrap();
    let said = fail_with(loupe().args(["check", "--config"]).arg(&config), 78);
    for key_path in ["site.code", "runtime.workers", "dashboard.port", "telemetry.gpu_interval_s", "stations[0].recipe"]
    {
        assert!(said.contains(key_path), "{key_path} is not reported:\n{said}");
    }
    assert!(said.contains("5 faults") && said.contains("line 4"), "{said}");
    fail_with(loupe().args(["run", "--config"]).arg(&config), 78);
}

fn copied_model(folder: &Path) -> PathBuf {
    let models = folder.join("models");
    copy_folder(&root().join("models/mobilenetv2"), &models.join("mobilenetv2"));
    models
}

fn check_bank_build_refuses(models: &Path, expected: &[&str]) {
    let said = fail_with(
        loupe()
            .args(["bank", "build", "--images"])
            .arg(samples().join("plate/good"))
            .arg("--out")
            .arg(models.join("bank"))
            .args(["--model", "mobilenetv2", "--models"])
            .arg(models),
        1,
    );
    for words in expected {
        assert!(said.contains(words), "`{words}` is not said:\n{said}");
    }
}

#[test]
fn a_model_whose_digest_differs_is_refused() {
    let folder = TempDir::new().unwrap();
    let models = copied_model(folder.path());
    flip_byte(&models.join("mobilenetv2/model.onnx"));
    check_bank_build_refuses(&models, &["model.onnx", "sha256"]);
}

#[test]
fn a_model_whose_shape_differs_is_refused() {
    let folder = TempDir::new().unwrap();
    let models = copied_model(folder.path());
    let manifest = models.join("mobilenetv2/manifest.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let changed = text.replace("channels = 96", "channels = 95");
    assert_ne!(text, changed, "the manifest no longer says 96 channels");
    fs::write(&manifest, changed).unwrap();
    check_bank_build_refuses(&models, &["95", "96"]);
}

#[test]
fn a_flipped_byte_in_l2_is_refused() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let index = folder.path().join("index");
    copy_folder(&assets.index(), &index);
    flip_byte(&find(&index, "l2.vectors")[0]);
    fail_with(loupe().args(["index", "verify", "--index"]).arg(&index), 1);
    let recipe = belt_recipe(folder.path(), &index, "");
    let said = fail_with(
        loupe()
            .arg("inspect")
            .arg("--recipe")
            .arg(&recipe)
            .arg("--state")
            .arg(folder.path().join("state"))
            .arg(good_image()),
        1,
    );
    assert!(said.contains("l2.vectors"), "{said}");
}

#[test]
fn an_index_of_another_dimension_is_refused() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let index = folder.path().join("index");
    copy_folder(&assets.index(), &index);
    let manifest = find(&index, "manifest.json").remove(0);
    let text = fs::read_to_string(&manifest).unwrap();
    let changed = text.replace("\"dim\": 1280", "\"dim\": 256");
    assert_ne!(text, changed, "{text}");
    fs::write(&manifest, changed).unwrap();
    let recipe = belt_recipe(folder.path(), &index, "");
    let said = fail_with(
        loupe()
            .arg("inspect")
            .arg("--recipe")
            .arg(&recipe)
            .arg("--state")
            .arg(folder.path().join("state"))
            .arg(good_image()),
        1,
    );
    assert!(said.contains("index"), "{said}");
}

#[test]
fn an_index_of_another_model_is_refused() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let models = copied_model(folder.path());
    let recipe = folder.path().join("other.toml");
    let manifest = models.join("mobilenetv2/manifest.toml");
    let model = models.join("mobilenetv2/model.onnx");
    let mut bytes = fs::read(&model).unwrap();
    // An unknown field at the end of a protobuf message is legal: another file, the same network.
    bytes.extend_from_slice(&[0xf2, 0x3f, 0x01, b'x']);
    fs::write(&model, &bytes).unwrap();
    let digest = loupe::types::Digest::of(&bytes).to_string();
    let old = loupe::types::Digest::of_file(&root().join("models/mobilenetv2/model.onnx")).unwrap().to_string();
    fs::write(&manifest, fs::read_to_string(&manifest).unwrap().replace(&old, &digest)).unwrap();
    fs::write(
        &recipe,
        format!("name = \"x\"\n[match]\nindex = \"{}\"\nmodel = \"models/mobilenetv2\"\n", assets.index().display()),
    )
    .unwrap();
    let said = fail_with(
        loupe()
            .arg("inspect")
            .arg("--recipe")
            .arg(&recipe)
            .arg("--state")
            .arg(folder.path().join("state"))
            .arg(good_image()),
        1,
    );
    assert!(said.contains(&old[..12]) && said.contains(&digest[..12]), "{said}");
}

#[test]
fn a_missing_runtime_library_says_how_to_get_it() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let recipe = plate_recipe(folder.path(), &assets.bank(), "");
    let said = fail_with(
        loupe()
            .env("ORT_DYLIB_PATH", folder.path().join("libonnxruntime.so"))
            .arg("inspect")
            .arg("--recipe")
            .arg(&recipe)
            .arg("--state")
            .arg(folder.path().join("state"))
            .arg(good_image()),
        1,
    );
    assert!(said.contains("libonnxruntime.so") && said.contains("onnxruntime"), "{said}");
}

#[test]
fn without_a_gpu_a_required_provider_is_refused_and_a_wished_one_holds() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let providers = |more: &str| {
        format!("[anomaly.providers]\norder = [{{ provider = \"cuda\" }}, {{ provider = \"cpu\" }}]\n{more}")
    };
    let recipe = plate_recipe(folder.path(), &assets.bank(), &providers("require = true\n"));
    let state = folder.path().join("state");
    let said =
        fail_with(loupe().arg("inspect").arg("--recipe").arg(&recipe).arg("--state").arg(&state).arg(good_image()), 1);
    assert!(said.contains("cuda"), "{said}");

    let recipe = plate_recipe(folder.path(), &assets.bank(), &providers(""));
    let line = inspect(&recipe, &state, &[good_image()]).remove(0);
    assert_eq!(line["verdict"], "hold");
    assert_eq!(line["reasons"], serde_json::json!(["model.provider_fallback"]));

    let recipe = plate_recipe(folder.path(), &assets.bank(), &providers("accept_fallback = true\n"));
    let line = inspect(&recipe, &state, &[good_image()]).remove(0);
    assert_eq!(line["verdict"], "pass", "{line}");
    assert_eq!(line["providers"], serde_json::json!([["anomaly", "cpu"]]));
}

#[test]
fn a_dsn_that_refuses_names_the_address_and_hides_the_password() {
    let said = fail_with(loupe().args(["db", "migrate", "--dsn", "postgres://loupe:sesame@127.0.0.1:9/loupe"]), 1);
    assert!(said.contains("127.0.0.1:9"), "{said}");
    assert!(!said.contains("sesame"), "{said}");
}

#[test]
fn a_full_disk_holds_and_loses_nothing_that_was_committed() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1500k", "tmpfs"]).arg(&state).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("skipped: mounting a small tmpfs needs root");
        return;
    }
    let recipe = plate_recipe(folder.path(), &assets.bank(), "");
    let images: Vec<PathBuf> = (0..6)
        .flat_map(|_| ["scratch", "stain", "crack"].map(|kind| samples().join(format!("plate/test/{kind}/00.jpg"))))
        .collect();
    let output = loupe()
        .arg("inspect")
        .arg("--json")
        .args(["--artifacts", "all", "--recipe"])
        .arg(&recipe)
        .arg("--state")
        .arg(&state)
        .args(&images)
        .output()
        .unwrap();
    let said = text(&output.stderr);
    let lines: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let verify = loupe().args(["outbox", "status", "--json", "--state"]).arg(&state).output().unwrap();
    assert!(Command::new("umount").arg(&state).status().unwrap().success());
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(lines.len(), images.len());
    let is_unstored =
        |line: &&serde_json::Value| line["reasons"].as_array().unwrap().contains(&"ledger.unavailable".into());
    let unstored = lines.iter().filter(is_unstored).count();
    assert!(unstored > 0 && unstored < lines.len(), "{unstored} of {} were not stored", lines.len());
    assert!(lines.iter().filter(is_unstored).all(|line| line["verdict"] == "hold"));
    let status: serde_json::Value =
        serde_json::from_slice(&verify.stdout).unwrap_or_else(|_| panic!("{}", text(&verify.stderr)));
    assert_eq!(status["committed"], lines.len() - unstored, "{status}");
}

#[test]
fn a_path_that_is_not_there_and_a_folder_without_images_are_named() {
    let assets = Assets::get();
    let folder = TempDir::new().unwrap();
    let recipe = plate_recipe(folder.path(), &assets.bank(), "");
    let state = folder.path().join("state");
    for path in [folder.path().join("gone.jpg"), folder.path().join("state")] {
        fs::create_dir_all(&state).unwrap();
        let said = fail_with(
            loupe().arg("inspect").arg("--recipe").arg(&recipe).arg("--state").arg(folder.path().join("s")).arg(&path),
            1,
        );
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
}

#[test]
fn a_second_process_on_the_same_state_is_refused() {
    let folder = TempDir::new().unwrap();
    let state = folder.path().to_path_buf();
    let ledger = loupe::ledger::Ledger::open(&state, loupe::clock::Clock::system()).unwrap();
    let assets = Assets::get();
    let recipe = plate_recipe(folder.path(), &assets.bank(), "");
    let said =
        fail_with(loupe().arg("inspect").arg("--recipe").arg(&recipe).arg("--state").arg(&state).arg(good_image()), 78);
    assert!(said.contains("in use") || said.contains("another"), "{said}");
    ledger.close().unwrap();
    succeed(loupe().arg("inspect").arg("--recipe").arg(&recipe).arg("--state").arg(&state).arg(good_image()));
}

#[test]
fn of_two_daemons_on_one_state_folder_the_second_ends_with_78_and_the_first_goes_on() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("plate.toml"), "name = \"plate\"\n[locate]\nkind = \"blob\"\n").unwrap();
    let config = folder.path().join("loupe.toml");
    let text = format!(
        "[site]\ncode = \"plant-07\"\n[storage]\nstate_dir = \"state\"\nartifacts = \"none\"\n[runtime]\nworkers = 1\n\
         [[stations]]\nname = \"plates\"\nrecipe = \"plate.toml\"\n\
         source = {{ kind = \"folder\", path = \"{}\", loop = true, rate_hz = 20.0 }}\n",
        samples().join("plate/good").display()
    );
    std::fs::write(&config, text).unwrap();
    let run = || {
        let mut command = loupe();
        command.args(["run", "--config"]).arg(&config).stdout(std::process::Stdio::null());
        command
    };
    let mut first = run().stderr(std::process::Stdio::null()).spawn().unwrap();
    let state = folder.path().join("state");
    let inspected = || {
        let reader = loupe::ledger::LedgerReader::open(&state);
        reader.and_then(|reader| reader.counters()).map_or(0, |counters| counters.captured)
    };
    let watch = loupe::clock::Stopwatch::start();
    let until_more_than = |count: u64| {
        while inspected() <= count {
            assert!(watch.elapsed().as_secs() < 120, "the first daemon inspects nothing");
            std::thread::yield_now();
        }
    };
    until_more_than(0);
    let said = fail_with(&mut run(), 78);
    assert!(said.contains("in use by another loupe process"), "{said}");
    until_more_than(inspected());
    first.kill().unwrap();
    first.wait().unwrap();
}
