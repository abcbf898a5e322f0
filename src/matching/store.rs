//! The index directory: generations, which one is live, and what was set aside.
//!
//! ```text
//! DIR/CURRENT             name of the live generation
//! DIR/PREVIOUS            name of the one before it, kept until the next switch
//! DIR/gen-3f9a…/          a generation
//! DIR/gen-….verified.json which of its files were read in full, see [`super::proof`]
//! DIR/.lock               held by the process that changes the directory
//! DIR/quarantine/gen-…/   damaged ones, each with a reason file beside it
//! ```
//! Invariants: a generation appears complete and synced, by rename; switching is the rename of `CURRENT`; a damaged
//! generation is moved away before the previous one takes over, so it is never tried again.
//! Thread: the caller's; one process at a time changes the directory, by a lock.
//! Overload: two generations are kept, older ones are removed when a new one is published.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::MatchError;
use super::generation::{self, Generation};
use super::proof::{self, Proof};
use crate::failpoint;

pub const CURRENT_FILE: &str = "CURRENT";
pub const PREVIOUS_FILE: &str = "PREVIOUS";
pub(super) const QUARANTINE_DIR: &str = "quarantine";
/// Locked while a process builds, switches or removes generations.
const LOCK_FILE: &str = ".lock";
/// A generation being written; the number of the writing process follows.
pub(super) const STAGED_PREFIX: &str = ".staged-";

/// A generation that was set aside at opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    pub name: String,
    /// What is wrong with it.
    pub fault: String,
    /// Where it went; `None` where it could not be moved (a read-only directory).
    pub moved_to: Option<PathBuf>,
}

impl std::fmt::Display for Quarantined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.moved_to {
            Some(path) => write!(f, "{} was moved to {}", self.name, path.display()),
            None => write!(f, "{} could not be moved to {QUARANTINE_DIR}/", self.name),
        }
    }
}

/// Name of the live generation.
///
/// # Errors
/// When there is no `CURRENT`, or it names no generation.
pub fn current_name(root: &Path) -> Result<String, MatchError> {
    let text = fs::read_to_string(root.join(CURRENT_FILE))
        .map_err(|source| MatchError::NoIndex { dir: root.to_owned(), source })?;
    let name = text.trim();
    if generation::is_name(name) {
        return Ok(name.to_owned());
    }
    Err(MatchError::BadName { dir: root.to_owned(), name: name.chars().take(40).collect() })
}

/// Name of the generation before the live one.
#[must_use]
pub fn previous_name(root: &Path) -> Option<String> {
    let name = fs::read_to_string(root.join(PREVIOUS_FILE)).ok()?.trim().to_owned();
    generation::is_name(&name).then_some(name)
}

/// Open the live generation; set a damaged one aside and fall back to the previous.
///
/// # Errors
/// When there is no index, or none of the two can be opened.
pub fn open_live(root: &Path) -> Result<(Generation, Option<Quarantined>), MatchError> {
    let name = current_name(root)?;
    let fault = match Generation::open(&root.join(&name)) {
        Ok(generation) => return Ok((generation, None)),
        Err(MatchError::Damaged { fault, .. }) => fault,
        Err(error) => return Err(error),
    };
    let quarantined = quarantine(root, &name, &fault);
    let nothing = |more: &str| MatchError::NothingToServe {
        fault: format!("index generation {name} is damaged: {fault}"),
        quarantined: format!("{quarantined}{more}"),
    };
    let Some(previous) = previous_name(root).filter(|previous| *previous != name) else { return Err(nothing("")) };
    match Generation::open(&root.join(&previous)) {
        Ok(generation) => {
            if quarantined.moved_to.is_some() {
                write_pointer(root, CURRENT_FILE, &previous)?;
            }
            Ok((generation, Some(quarantined)))
        }
        Err(MatchError::Damaged { fault, .. }) => {
            let also = quarantine(root, &previous, &fault);
            Err(nothing(&format!("; the previous one is damaged as well ({fault}), {also}")))
        }
        Err(error) => Err(error),
    }
}

/// Held by who changes the directory; released when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Become the one process that changes the index directory `root`.
///
/// # Errors
/// [`MatchError::Busy`] when another one does.
pub fn lock(root: &Path) -> Result<DirLock, MatchError> {
    let path = root.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(MatchError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(DirLock { _file: file }),
        Err(fs::TryLockError::WouldBlock) => Err(MatchError::Busy { dir: root.to_owned(), file: LOCK_FILE }),
        Err(fs::TryLockError::Error(source)) => Err(MatchError::io("lock", &path)(source)),
    }
}

/// Turn the complete directory `staged` (inside `root`) into the live generation `name`.
///
/// # Errors
/// When a rename or sync fails; the live generation is then the old one.
pub(super) fn publish(root: &Path, staged: &Path, name: &str, proof: &Proof) -> Result<PathBuf, MatchError> {
    let target = root.join(name);
    let exists = target.exists();
    if exists && Generation::open(&target).is_ok() {
        fs::remove_dir_all(staged).map_err(MatchError::io("remove", staged))?;
    } else {
        if exists {
            quarantine(root, name, "its content did not match its name when it was built again");
        }
        sync_dir(staged)?;
        failpoint::hit("index.staged");
        fs::rename(staged, &target).map_err(MatchError::io("rename", staged))?;
        failpoint::hit("index.renamed");
        sync_dir(root)?;
        // Renaming a directory changes nothing of the files in it, so what was proved of them still holds.
        proof.save(&target);
    }
    point_to(root, name)?;
    failpoint::hit("index.published");
    prune(root, name)?;
    Ok(target)
}

/// Make the whole generation `name` the live one and the live one the previous.
pub(super) fn point_to(root: &Path, name: &str) -> Result<(), MatchError> {
    match current_name(root) {
        Ok(current) if current == name => Ok(()),
        Ok(current) => {
            write_pointer(root, PREVIOUS_FILE, &current)?;
            write_pointer(root, CURRENT_FILE, name)
        }
        Err(_) => write_pointer(root, CURRENT_FILE, name),
    }
}

/// Write `bytes` to `path` and sync them.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), MatchError> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        failpoint::io("index.file.created")?;
        file.write_all(bytes)?;
        failpoint::hit("index.file.written");
        file.sync_all()
    };
    write().map_err(MatchError::io("write", path))
}

/// Sync what another library wrote.
pub(super) fn sync_file(path: &Path) -> Result<(), MatchError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(MatchError::io("sync", path))
}

/// Remove a generation and its record.
pub(super) fn remove(dir: &Path) -> Result<(), MatchError> {
    fs::remove_dir_all(dir).map_err(MatchError::io("remove", dir))?;
    match proof::path_of(dir).map(fs::remove_file) {
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(MatchError::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// `create_dir_all` whose new names survive a power cut.
pub(super) fn make_durably(dir: &Path) -> Result<(), MatchError> {
    if dir.is_dir() {
        return Ok(());
    }
    let Some(parent) = dir.parent() else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    make_durably(parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        made => made.map_err(MatchError::io("make", dir))?,
    }
    sync_dir(parent)
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), MatchError> {
    sync_file(dir)
}

fn write_pointer(root: &Path, file: &str, name: &str) -> Result<(), MatchError> {
    let temporary = root.join(format!(".{file}.tmp"));
    write_synced(&temporary, format!("{name}\n").as_bytes())?;
    failpoint::hit("index.pointer.written");
    fs::rename(&temporary, root.join(file)).map_err(MatchError::io("rename", &temporary))?;
    failpoint::hit("index.pointer.renamed");
    sync_dir(root)
}

/// Move a damaged generation away; failing that, say so.
fn quarantine(root: &Path, name: &str, fault: &str) -> Quarantined {
    let dir = root.join(QUARANTINE_DIR);
    let attempt = || -> std::io::Result<PathBuf> {
        fs::create_dir_all(&dir)?;
        // The same content may be damaged twice; a bounded search for a free name.
        let free = (1..1000).map(|n| if n == 1 { name.to_owned() } else { format!("{name}-{n}") });
        let free = free.map(|name| dir.join(name)).find(|path| !path.exists());
        let target = free.ok_or_else(|| std::io::Error::other("quarantine is full"))?;
        fs::rename(root.join(name), &target)?;
        if let Some(record) = proof::path_of(&root.join(name)) {
            // Without its generation the record says nothing; one that stays does no harm.
            drop(fs::remove_file(record));
        }
        fs::write(target.with_extension("reason.txt"), format!("{fault}\n"))?;
        File::open(&dir)?.sync_all()?;
        Ok(target)
    };
    Quarantined { name: name.to_owned(), fault: fault.to_owned(), moved_to: attempt().ok() }
}

/// Remove generations that are neither live nor previous, and what killed builds left.
fn prune(root: &Path, live: &str) -> Result<(), MatchError> {
    let previous = previous_name(root);
    for entry in fs::read_dir(root).map_err(MatchError::io("list", root))? {
        let entry = entry.map_err(MatchError::io("list", root))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_old = generation::is_name(&name) && name != live && Some(&name) != previous.as_ref();
        let builder = name.strip_prefix(STAGED_PREFIX);
        let is_abandoned = builder.is_some_and(|process| !Path::new("/proc").join(process).exists());
        if is_old || is_abandoned {
            failpoint::hit("index.prune");
            remove(&entry.path())?;
        }
    }
    Ok(())
}
