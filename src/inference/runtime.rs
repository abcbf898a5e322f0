//! ONNX Runtime's library, loaded once per process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::InferenceError;

/// Where the packages put the library.
pub const INSTALLED_LIBRARY: &str = "/usr/lib/loupe/libonnxruntime.so";
/// Where `make setup` puts it, below the checkout.
const UNPACKED_LIBRARY: &str = ".cache/onnxruntime/libonnxruntime.so";
/// Names the library where no path is configured.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// The runtime allows one environment per process, so it lives as long as the process.
static LOADED: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);

/// The loaded library and its environment.
#[derive(Debug)]
pub struct Runtime {
    environment: ort::environment::Environment,
    path: PathBuf,
}

impl Runtime {
    /// Load the library at `dylib`, else the one that `ORT_DYLIB_PATH` names, else `/usr/lib/loupe/libonnxruntime.so`,
    /// else what `make setup` unpacked into the checkout this program was built in.
    /// A second call answers with the library that is already loaded.
    ///
    /// # Errors
    /// When the library is missing, is no ONNX Runtime or too old, or when another one is loaded already.
    pub fn load(dylib: Option<&Path>) -> Result<Arc<Runtime>, InferenceError> {
        let path = library_path(dylib, std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from));
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = loaded.as_ref() {
            if dylib.is_some() && runtime.path != path {
                return Err(InferenceError::LibraryConflict { loaded: runtime.path.clone(), asked: path });
            }
            return Ok(Arc::clone(runtime));
        }
        let fault = |message: String| InferenceError::Library { path: path.clone(), message };
        if !path.is_file() {
            return Err(fault("no such file".to_owned()));
        }
        let environment = ort::init_from(&path)
            .map_err(|error| fault(error.to_string()))?
            .with_name("loupe")
            .with_telemetry(false)
            .build()
            .map_err(|error| fault(error.to_string()))?;
        let runtime = Arc::new(Runtime { environment, path });
        *loaded = Some(Arc::clone(&runtime));
        Ok(runtime)
    }

    /// The library's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version, commit and compiler flags, as the library states them.
    #[must_use]
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }

    pub(super) fn environment(&self) -> &ort::environment::Environment {
        &self.environment
    }
}

/// Made absolute, because the loader searches its own folders for relative names.
fn library_path(dylib: Option<&Path>, variable: Option<PathBuf>) -> PathBuf {
    let path = match (dylib, variable) {
        (Some(path), _) => path.to_owned(),
        (None, Some(path)) if !path.as_os_str().is_empty() => path,
        (None, _) => {
            let installed = PathBuf::from(INSTALLED_LIBRARY);
            let unpacked = || std::env::current_exe().ok().and_then(|program| unpacked_library(&program));
            if installed.is_file() { installed } else { unpacked().unwrap_or(installed) }
        }
    };
    std::path::absolute(&path).unwrap_or(path)
}

/// The library beside a program that was built and not installed: `target/release/loupe` of a checkout.
fn unpacked_library(program: &Path) -> Option<PathBuf> {
    let library = program.ancestors().nth(3)?.join(UNPACKED_LIBRARY);
    library.is_file().then_some(library)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{InferenceError, Runtime, UNPACKED_LIBRARY, library_path, unpacked_library};

    #[test]
    fn an_explicit_path_outranks_the_variable_and_both_the_default() {
        let variable = || Some(PathBuf::from("/v/lib.so"));
        assert_eq!(library_path(Some(Path::new("/e/lib.so")), variable()), Path::new("/e/lib.so"));
        assert_eq!(library_path(None, variable()), Path::new("/v/lib.so"));
        assert_eq!(library_path(None, Some(PathBuf::new())), library_path(None, None));
    }

    #[test]
    fn a_program_in_a_checkout_finds_what_setup_unpacked() {
        let checkout = tempfile::TempDir::new().unwrap();
        let program = checkout.path().join("target/release/loupe");
        assert_eq!(unpacked_library(&program), None);
        let library = checkout.path().join(UNPACKED_LIBRARY);
        std::fs::create_dir_all(library.parent().unwrap()).unwrap();
        std::fs::write(&library, b"").unwrap();
        assert_eq!(unpacked_library(&program), Some(library));
    }

    #[test]
    fn a_missing_library_says_how_to_get_it() {
        let error = Runtime::load(Some(Path::new("/nowhere/libonnxruntime.so"))).unwrap_err();
        // another test of this process may have loaded the library first
        let text = error.to_string();
        match error {
            InferenceError::Library { .. } => {
                assert!(text.contains("/nowhere/libonnxruntime.so") && text.contains("make setup"), "{text}");
            }
            InferenceError::LibraryConflict { .. } => assert!(text.contains("already loaded"), "{text}"),
            other => panic!("{other}"),
        }
    }
}
