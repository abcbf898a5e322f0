//! The folder that a bank is written to before it gets its name, so that it is there as a whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use super::AnomalyError;

/// `.NAME.partial-PID` beside the folder that it will become: the rename stays within one file system.
#[derive(Debug)]
pub(super) struct Staging {
    target: PathBuf,
    parent: PathBuf,
    folder: PathBuf,
}

impl Staging {
    /// An empty folder for what will be `target`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn new(target: &Path) -> Result<Self, AnomalyError> {
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.map_or_else(|| PathBuf::from("."), Path::to_owned);
        let folder = parent.join(format!("{}{}", prefix_of(target), std::process::id()));
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(io("clear", &folder))?;
        }
        fs::create_dir_all(&folder).map_err(io("make", &folder))?;
        Ok(Self { target: target.to_owned(), parent, folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sync these files of it, give it its name, and sync that.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(super) fn finish<'f>(self, files: impl Iterator<Item = &'f str>) -> Result<(), AnomalyError> {
        for file in files {
            let path = self.folder.join(file);
            sync(&path).map_err(io("sync", &path))?;
        }
        sync(&self.folder).map_err(io("sync", &self.folder))?;
        fs::rename(&self.folder, &self.target).map_err(io("move the finished bank to", &self.target))?;
        sync(&self.parent).map_err(io("sync", &self.parent))
    }
}

fn prefix_of(target: &Path) -> String {
    let name = target.file_name().map_or_else(|| "bank".into(), |name| name.to_string_lossy().into_owned());
    format!(".{name}.partial-")
}

fn sync(path: &Path) -> std::io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> AnomalyError + use<> {
    let path = path.to_owned();
    move |source| AnomalyError::Io { action, path, source }
}
