//! What the end-to-end tests share: the real binary, the bundled samples and what is built of them.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod browser;
pub mod central;
pub mod pgbouncer;
pub mod postgres;
pub mod proxy;
pub mod samples;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::UNIX_EPOCH;

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn samples() -> PathBuf {
    root().join("samples")
}

/// Folder with the data sets beside the checkout, where there is one.
pub fn shared_data() -> Option<PathBuf> {
    let data = root().join("../shared/data");
    if data.is_dir() {
        return Some(data);
    }
    println!("skipped: ../shared/data is not beside this checkout");
    None
}

/// The real program, quiet, with the pinned ONNX Runtime.
pub fn loupe() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loupe"));
    command.env("NO_COLOR", "1").env_remove("LOUPE_LOG").env_remove("NOTIFY_SOCKET");
    command.env("ORT_DYLIB_PATH", root().join(".cache/onnxruntime/libonnxruntime.so"));
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Run to the end and insist on success.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?} failed: {}\n{}", output.status, text(&output.stderr));
    output
}

/// Run to the end and insist on this exit code; what was said on stderr.
pub fn fail_with(command: &mut Command, exit_code: i32) -> String {
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "{command:?}\n{}\n{said}", text(&output.stdout));
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Index of the sample parts and bank of the sample plates, built once for this binary by whichever test comes first.
pub struct Assets {
    pub folder: PathBuf,
}

impl Assets {
    pub fn get() -> Assets {
        let modified = fs::metadata(env!("CARGO_BIN_EXE_loupe")).unwrap().modified().unwrap();
        let stamp = modified.duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("assets-{stamp}"));
        fs::create_dir_all(&folder).unwrap();
        let lock = File::create(folder.join("lock")).unwrap();
        lock.lock().unwrap();
        let assets = Assets { folder };
        if !assets.folder.join("done").exists() {
            assets.build();
            File::create(assets.folder.join("done")).unwrap();
        }
        assets
    }

    fn build(&self) {
        let parts = samples().join("parts");
        succeed(
            loupe()
                .args(["index", "build", "--parts"])
                .arg(parts.join("parts.csv"))
                .arg("--templates")
                .arg(parts.join("templates.csv"))
                .arg("--root")
                .arg(&parts)
                .arg("--out")
                .arg(self.index())
                .arg("--model")
                .arg(root().join("models/mobilenetv2")),
        );
        succeed(
            loupe()
                .args(["bank", "build", "--images"])
                .arg(samples().join("plate/good"))
                .arg("--out")
                .arg(self.bank())
                .args(["--model", "mobilenetv2", "--models"])
                .arg(root().join("models")),
        );
    }

    pub fn index(&self) -> PathBuf {
        self.folder.join("index")
    }

    pub fn bank(&self) -> PathBuf {
        self.folder.join("bank")
    }
}

/// A recipe that scores plates; `extra` is appended.
pub fn plate_recipe(folder: &Path, bank: &Path, extra: &str) -> PathBuf {
    let path = folder.join("plate.toml");
    let models = root().join("models");
    fs::write(
        &path,
        format!(
            "name = \"plate\"\n[anomaly]\nbank = \"{}\"\nmodels = \"{}\"\n{extra}",
            bank.display(),
            models.display()
        ),
    )
    .unwrap();
    path
}

/// A recipe that names parts on a belt; `extra` is appended.
pub fn belt_recipe(folder: &Path, index: &Path, extra: &str) -> PathBuf {
    let path = folder.join("belt.toml");
    let model = root().join("models/mobilenetv2");
    fs::write(
        &path,
        format!(
            "name = \"belt\"\n[locate]\nkind = \"blob\"\n[match]\nindex = \"{}\"\nmodel = \"{}\"\n{extra}",
            index.display(),
            model.display()
        ),
    )
    .unwrap();
    path
}

/// `loupe inspect --json` on `paths`: the lines it printed.
pub fn inspect(recipe: &Path, state: &Path, paths: &[PathBuf]) -> Vec<serde_json::Value> {
    let output =
        succeed(loupe().arg("inspect").arg("--json").arg("--recipe").arg(recipe).arg("--state").arg(state).args(paths));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Copy a folder with everything in it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file below `folder` whose name is `name`.
pub fn find(folder: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(find(&path, name));
        } else if path.file_name().is_some_and(|file| file == name) {
            found.push(path);
        }
    }
    found
}

/// Change one byte in the middle of a file.
pub fn flip_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(path, bytes).unwrap();
}
