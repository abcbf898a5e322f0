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
        sync(&self.parent).map_err(io("sync", &self.parent))?;
        self.clear_leftovers();
        Ok(())
    }

    /// Remove what killed processes left of the same name. The bank is written by now, so a folder that cannot be removed
    /// is no fault; and one that is still written (in another container, say) could not get its name any more.
    fn clear_leftovers(&self) {
        let prefix = prefix_of(&self.target);
        for entry in fs::read_dir(&self.parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
            if pid.is_some_and(is_gone) {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
    }
}

/// Whether no process has this id.
fn is_gone(pid: i32) -> bool {
    let Some(pid) = Some(pid).filter(|pid| *pid > 0).and_then(rustix::process::Pid::from_raw) else { return false };
    rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
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

#[cfg(test)]
mod tests {
    use super::{Staging, fs};

    #[test]
    fn what_a_killed_process_left_goes_and_what_a_living_one_writes_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("bank");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        // 1 lives as long as the machine; a name that is no id is nobody's.
        let names =
            [format!(".bank.partial-{}", child.id()), ".bank.partial-1".to_owned(), ".bank.partial-x".to_owned()];
        for name in names.iter().map(String::as_str).chain([".bank2.partial-999999999"]) {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let staging = Staging::new(&target).unwrap();
        fs::write(staging.folder().join("file"), "x").unwrap();
        staging.finish(["file"].into_iter()).unwrap();
        let mut left: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, [".bank.partial-1", ".bank.partial-x", ".bank2.partial-999999999", "bank"]);
    }
}
