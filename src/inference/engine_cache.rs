//! Which compiled engines (TensorRT, OpenVINO) may be taken from the cache: those of the same model, weights, GPU, driver,
//! runtime and options. Each such set has a folder of its own below the configured one, so an engine of another machine,
//! driver or precision is never read; folders that nothing uses any more may be deleted.
//!
//! GPU and driver are read where NVIDIA's kernel module states them (`/proc/driver/nvidia`), or the board's name of a Jetson.
//! Thread: whoever opens the session. Overload: none of its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::ProviderChoice;
use crate::types::Digest;

/// What a compiled engine depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EngineKey {
    /// The model's file and those of its weights.
    pub digests: Vec<Digest>,
    /// Names of the machine's GPUs.
    pub gpu: String,
    pub driver: String,
    /// Build of ONNX Runtime.
    pub library: String,
    /// Providers and their options, precision among them.
    pub options: String,
}

impl EngineKey {
    /// The key on this machine.
    pub(super) fn here(digests: &[Digest], library: &str, choices: &[&ProviderChoice]) -> Self {
        let root = Path::new("/");
        let mut options = String::new();
        for choice in choices {
            // Writing to a string cannot fail.
            write!(options, "{} {:?};", choice.provider, choice.options).unwrap_or_default();
        }
        Self { digests: digests.to_vec(), gpu: gpu(root), driver: driver(root), library: library.to_owned(), options }
    }

    /// The folder of this key: `<model>-<GPU>-<digest of all>`, so that people can tell them apart.
    pub(super) fn folder(&self, cache_dir: &Path) -> PathBuf {
        let model =
            self.digests.first().map_or_else(String::new, |digest| digest.to_string().chars().take(12).collect());
        let gpu: String = self
            .gpu
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(24)
            .collect();
        // Debug text keeps the fields apart: no two keys give the same.
        let all: String = Digest::of(format!("{self:?}").as_bytes()).to_string().chars().take(16).collect();
        cache_dir.join(format!("{model}-{gpu}-{all}"))
    }
}

/// Names of the GPUs below `root`, sorted; `none` where there is none.
fn gpu(root: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(root.join("proc/driver/nvidia/gpus"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("information")).ok())
        .filter_map(|text| text.lines().find_map(|line| Some(line.strip_prefix("Model:")?.trim().to_owned())))
        .collect();
    if names.is_empty() {
        let board = std::fs::read_to_string(root.join("proc/device-tree/model")).ok();
        names.extend(board.map(|name| name.trim_end_matches('\0').trim().to_owned()));
    }
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join("+") }
}

/// The version of NVIDIA's driver below `root`, or of a Jetson's system; `none` where there is none.
fn driver(root: &Path) -> String {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let line = read("proc/driver/nvidia/version").or_else(|| read("etc/nv_tegra_release"));
    line.and_then(|text| Some(text.lines().next()?.trim().to_owned())).unwrap_or_else(|| "none".to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::types::Provider;

    fn key() -> EngineKey {
        EngineKey {
            digests: vec![Digest::of(b"model"), Digest::of(b"weights")],
            gpu: "NVIDIA RTX A2000".to_owned(),
            driver: "535.104.05".to_owned(),
            library: "1.31.1".to_owned(),
            options: "tensorrt {}".to_owned(),
        }
    }

    #[test]
    fn whatever_an_engine_depends_on_changes_its_folder() {
        let dir = Path::new("/cache");
        let keys = [
            key(),
            EngineKey { digests: vec![Digest::of(b"other"), Digest::of(b"weights")], ..key() },
            EngineKey { digests: vec![Digest::of(b"model"), Digest::of(b"other")], ..key() },
            EngineKey { gpu: "NVIDIA RTX A4000".to_owned(), ..key() },
            EngineKey { driver: "550.54.14".to_owned(), ..key() },
            EngineKey { library: "1.32.0".to_owned(), ..key() },
            EngineKey { options: "tensorrt {\"trt_fp16_enable\": \"1\"}".to_owned(), ..key() },
            // Fields that run into one another are kept apart.
            EngineKey { driver: "535.104.051".to_owned(), library: ".31.1".to_owned(), ..key() },
        ];
        let folders: BTreeSet<PathBuf> = keys.iter().map(|key| key.folder(dir)).collect();
        assert_eq!(folders.len(), keys.len(), "{folders:?}");
        assert_eq!(key().folder(dir), key().folder(dir));
        let name = key().folder(dir).file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.contains("-nvidia-rtx-a2000-") && name.len() < 64, "{name}");
    }

    #[test]
    fn gpu_and_driver_are_read_where_the_kernel_module_states_them() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!((gpu(root.path()), driver(root.path())), ("none".to_owned(), "none".to_owned()));
        let nvidia = root.path().join("proc/driver/nvidia");
        std::fs::create_dir_all(nvidia.join("gpus/0000:01:00.0")).unwrap();
        std::fs::write(nvidia.join("gpus/0000:01:00.0/information"), "Model: \t\t NVIDIA H200\nIRQ:   \t\t 97\n")
            .unwrap();
        std::fs::write(nvidia.join("version"), "NVRM version: NVIDIA UNIX  535.104.05\nGCC version: 12\n").unwrap();
        assert_eq!(gpu(root.path()), "NVIDIA H200");
        assert_eq!(driver(root.path()), "NVRM version: NVIDIA UNIX  535.104.05");
    }

    #[test]
    fn options_are_part_of_the_key_of_this_machine() {
        let choice = |pairs: &[(&str, &str)]| ProviderChoice {
            provider: Provider::Tensorrt,
            options: pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>(),
        };
        let of = |choice: &ProviderChoice| EngineKey::here(&[Digest::of(b"m")], "1", &[choice]);
        assert_ne!(of(&choice(&[])), of(&choice(&[("trt_fp16_enable", "1")])));
        assert_eq!(of(&choice(&[])), of(&choice(&[])));
    }
}
