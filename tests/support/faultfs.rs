//! The failing disk of `faultfs.c`, compiled once for a test run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library for LD_PRELOAD; `None` where there is no C compiler, said on stdout.
pub fn library() -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/faultfs.c");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    // The source's length in the name: an edited source is another library. Readable for the server's user as well.
    let length = fs::metadata(&source).unwrap().len();
    let name = format!("faultfs-{length}.so");
    let lock = File::create(folder.join("faultfs.lock")).unwrap();
    lock.lock().unwrap();
    let library = std::env::temp_dir().join(format!("loupe-{}-{name}", std::process::id()));
    let built = folder.join(&name);
    if !built.exists()
        || fs::metadata(&built).unwrap().modified().unwrap() < fs::metadata(&source).unwrap().modified().unwrap()
    {
        let staged = folder.join(format!("{name}.{}", std::process::id()));
        let compiled = Command::new("gcc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&staged)
            .arg(&source)
            .arg("-lpthread")
            .output();
        match compiled {
            Err(error) => {
                println!("skipped: no gcc to compile tests/support/faultfs.c: {error}");
                return None;
            }
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        }
        fs::rename(staged, &built).unwrap();
    }
    // The target folder may be closed to the user that the server runs as.
    fs::copy(&built, &library).unwrap();
    Some(library)
}
