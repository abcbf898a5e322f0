//! Putting a device back: unpacked and proved aside first, published last.
//!
//! Order: look at what is there → unpack everything into `restore.partial/` in the state folder → compare every digest →
//! begin a new epoch in the unpacked ledger → move aside what was there (only when told) → the files of the
//! configuration → pictures → the ledger → `restore.partial/` goes, by one rename. As long as that folder is there no
//! program opens the state folder as a ledger, and the same restore may simply be run again. Nothing that was there is
//! overwritten or deleted.
//!
//! The file `publishing` in that folder is the point of no return: before it stands nothing was touched, and a restore
//! that fails takes its folder away; from then on the folder stays until a restore is through. It names where what was
//! there goes, so that a restore which was cut off between a ledger and its log puts both into the same place.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use serde::Serialize;
use uuid::Uuid;

use super::archive::{self, LEDGER_NAME, SECRETS_NAME, beside, sync_parent};
use super::inventory::{ASIDE_PREFIX, absolute};
use super::manifest::{Header, Manifest, MemberKind};
use super::{BackupError, sealed};
use crate::clock::Clock;
use crate::failpoint;
use crate::ledger::{self, RESTORE_MARKER, Restored, artifacts_dir, database_path};
use crate::types::{Digest, Timestamp};
use crate::uplink::Secret;

/// Room beyond the backup's own size: the ledger's log, folders.
const SPARE_BYTES: u64 = 16 << 20;
/// As in the check of a backup.
const SEALED_BYTES_MAX: u64 = 64 << 20;
/// In the staging folder: what is there is being moved, under this stamp.
const PUBLISHING_NAME: &str = "publishing";
/// What the staging folder is called once it means nothing any more.
const DONE_NAME: &str = "restore-done.partial";

/// Where to, and how.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// Folder that stands for `/`; `None`: the places that everything came from.
    pub root: Option<PathBuf>,
    /// Another state folder than the backup's.
    pub state_dir: Option<PathBuf>,
    /// Leave configuration, recipes, banks, indexes and models alone.
    pub state_only: bool,
    /// Move aside what is there.
    pub force: bool,
    /// Opens the secrets.
    pub passphrase: Option<Secret>,
}

/// What was restored.
#[derive(Debug, Clone, Serialize)]
pub struct RestoreReport {
    pub state_dir: PathBuf,
    /// The restored configuration, where there is one.
    pub config: Option<PathBuf>,
    pub device_id: Uuid,
    pub backup_created_at: Timestamp,
    pub epoch_before: u32,
    pub epoch: u32,
    pub picture_count: u64,
    /// Files of the configuration and the state folder that were written.
    pub files_written: u64,
    /// Those that were there already, the same.
    pub files_kept: u64,
    /// Where what was there went.
    pub moved_aside: Vec<PathBuf>,
    /// Files with secrets to put back by hand.
    pub secrets_to_put_back: Vec<PathBuf>,
    /// Pictures that the device had lost before the backup.
    pub pictures_missing: Vec<String>,
}

/// Restore the backup `file`; `progress` hears bytes done and in all.
///
/// # Errors
/// When the backup is not whole or newer, the state folder is in use or not empty, files there differ, the passphrase is
/// wrong, or the disk refuses. Up to the moment everything is proved, what was there is left as it was.
pub fn restore(
    file: &Path,
    options: &RestoreOptions,
    clock: &Clock,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<RestoreReport, BackupError> {
    let header = archive::read_header(file)?;
    let places = Places::of(&header, options)?;
    fs::create_dir_all(&places.state).map_err(BackupError::io("create", &places.state))?;
    let _lock = ledger::hold_folder(&places.state)?;
    let occupied = places.occupants()?;
    let cut_off_at = places.cut_off_at();
    if let Some(example) = occupied.first().filter(|_| !options.force && cut_off_at.is_none()) {
        let example = example.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        return Err(BackupError::NotEmpty { dir: places.state.clone(), example });
    }
    let length = fs::metadata(file).map_err(BackupError::io("open", file))?.len();
    need_space(&places.state, length + SPARE_BYTES)?;
    let epoch_above = epoch_there(&places.state, header.device_id);

    places.begin_staging()?;
    let prepared = prepare(file, options, &places, length, progress)
        .and_then(|(manifest, sha256, secrets)| {
            let plan = places.plan(&manifest, &secrets, options)?;
            let restored = Restored { backup_created_at: header.created_at, backup_sha256: sha256, epoch_above };
            let meta = ledger::begin_epoch(&places.staging, clock, restored)?;
            failpoint::hit("restore.epoch.begun");
            Ok((manifest, plan, meta))
        })
        .inspect_err(|_| places.give_up());
    let (manifest, plan, meta) = prepared?;

    let now = clock.now().as_micros();
    let stamp = cut_off_at.unwrap_or(now);
    places.begin_publishing(stamp)?;
    let mut moved_aside = places.move_aside(&occupied, stamp, now)?;
    moved_aside.extend(plan.publish(now)?);
    failpoint::hit("restore.files.published");
    places.publish_state()?;
    Ok(RestoreReport {
        config: header.config.as_deref().filter(|_| !options.state_only).map(|path| places.rooted(path)),
        state_dir: places.state,
        device_id: meta.device_id,
        backup_created_at: header.created_at,
        epoch_before: header.epoch,
        epoch: meta.epoch,
        picture_count: manifest.count(MemberKind::Picture).0,
        files_written: plan.write.len() as u64,
        files_kept: plan.kept,
        moved_aside,
        secrets_to_put_back: plan.secrets_to_put_back,
        pictures_missing: manifest.pictures_missing,
    })
}

type Unpacked = (Manifest, Digest, Vec<sealed::SecretFile>);

/// Unpack everything into the staging folder, compare every digest, open the secrets, and put it all on the disk.
fn prepare(
    file: &Path,
    options: &RestoreOptions,
    places: &Places,
    length: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Unpacked, BackupError> {
    let mut done = 0;
    let mut sealed = Vec::new();
    let (manifest, sha256) = archive::read(
        file,
        &mut |name, _, content| {
            if name == SECRETS_NAME {
                let read = content.take(SEALED_BYTES_MAX).read_to_end(&mut sealed);
                return read.map(drop).map_err(BackupError::io("read", file));
            }
            if options.state_only && name.starts_with("files/") {
                return Ok(());
            }
            archive::unpack(file, content, &places.staged(file, name)?, 0o600)?;
            failpoint::hit("restore.member.unpacked");
            Ok(())
        },
        &mut |bytes| {
            done += bytes;
            progress(done, length);
        },
    )?;
    let secrets = match &options.passphrase {
        None => Vec::new(),
        Some(_) if sealed.is_empty() => return Err(BackupError::NoSecrets { path: file.to_owned() }),
        Some(phrase) => {
            sealed::open(&sealed, phrase.expose()).ok_or_else(|| BackupError::Passphrase { path: file.to_owned() })?
        }
    };
    // One call for all files: a sync of each would take as long as the copy.
    let staging = File::open(&places.staging).map_err(BackupError::io("open", &places.staging))?;
    rustix::fs::syncfs(&staging).map_err(|error| BackupError::io("sync", &places.staging)(error.into()))?;
    failpoint::hit("restore.synced");
    Ok((manifest, sha256, secrets))
}

/// The folders of one restore.
#[derive(Debug)]
struct Places {
    state: PathBuf,
    /// In the state folder: the marker of a restore under way, and what it has unpacked.
    staging: PathBuf,
    root: Option<PathBuf>,
}

impl Places {
    fn of(header: &Header, options: &RestoreOptions) -> Result<Self, BackupError> {
        let root = options.root.as_deref().map(absolute).transpose()?;
        let mut places = Self { state: PathBuf::new(), staging: PathBuf::new(), root };
        places.state = match &options.state_dir {
            Some(dir) => absolute(dir)?,
            None => places.rooted(&header.state_dir),
        };
        places.staging = places.state.join(RESTORE_MARKER);
        Ok(places)
    }

    /// Where the absolute `path` of the backup lies here.
    fn rooted(&self, path: &Path) -> PathBuf {
        match &self.root {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    /// What lies in the state folder, beside what a restore leaves.
    fn occupants(&self) -> Result<Vec<PathBuf>, BackupError> {
        let on_io = BackupError::io("list", &self.state);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.state).map_err(&on_io)? {
            let entry = entry.map_err(&on_io)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours = [RESTORE_MARKER, DONE_NAME, "ledger.lock", "lost+found"].contains(&name.as_str());
            if !is_ours && !name.starts_with(ASIDE_PREFIX) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// The stamp of a restore that was cut off while it moved things; `None`: there is none.
    fn cut_off_at(&self) -> Option<i64> {
        let text = fs::read_to_string(self.staging.join(PUBLISHING_NAME)).ok()?;
        // It was named by a rename, after a sync; whatever else it holds, something may have been moved.
        Some(text.trim().parse().unwrap_or(0))
    }

    /// From here on the state folder is refused, until the restore is through.
    fn begin_staging(&self) -> Result<(), BackupError> {
        use std::os::unix::fs::DirBuilderExt as _;
        // Secrets lie in it for a while.
        match DirBuilder::new().mode(0o700).create(&self.staging) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(BackupError::io("create", &self.staging)(error));
            }
            _ => self.empty_staging()?,
        }
        let done = self.state.join(DONE_NAME);
        match fs::remove_dir_all(&done) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(BackupError::io("remove", &done)(error)),
            _ => {}
        }
        sync_parent(&self.staging)?;
        failpoint::hit("restore.staging.begun");
        Ok(())
    }

    /// Take away what was unpacked; what says that things are being moved stays.
    fn empty_staging(&self) -> Result<(), BackupError> {
        let on_io = BackupError::io("empty", &self.staging);
        for entry in fs::read_dir(&self.staging).map_err(&on_io)? {
            let entry = entry.map_err(&on_io)?;
            let is_folder = entry.file_type().map_err(&on_io)?.is_dir();
            if is_folder {
                fs::remove_dir_all(entry.path()).map_err(&on_io)?;
            } else if entry.file_name() != PUBLISHING_NAME {
                fs::remove_file(entry.path()).map_err(&on_io)?;
            }
        }
        Ok(())
    }

    /// Nothing of this attempt was published: leave the folder as it was. One that an earlier attempt left half-published
    /// stays refused.
    fn give_up(&self) {
        let outcome = match self.cut_off_at() {
            Some(_) => self.empty_staging(),
            None => fs::remove_dir_all(&self.staging).map_err(BackupError::io("remove", &self.staging)),
        };
        if let Err(error) = outcome {
            tracing::warn!(path = %self.staging.display(), %error, "what was unpacked stays behind");
        }
    }

    /// The point of no return.
    fn begin_publishing(&self, stamp: i64) -> Result<(), BackupError> {
        let path = self.staging.join(PUBLISHING_NAME);
        let partial = beside(&path, ".partial");
        let on_io = BackupError::io("write", &partial);
        fs::write(&partial, format!("{stamp}\n")).map_err(&on_io)?;
        File::open(&partial).and_then(|file| file.sync_all()).map_err(&on_io)?;
        fs::rename(&partial, &path).map_err(BackupError::io("rename into", &path))?;
        sync_parent(&path)?;
        failpoint::hit("restore.publishing");
        Ok(())
    }

    /// Where a member is unpacked: below the staging folder, whatever its name says.
    fn staged(&self, file: &Path, name: &str) -> Result<PathBuf, BackupError> {
        let path = Path::new(name);
        let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        let first = path.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let is_known =
            name == LEDGER_NAME || first.is_some_and(|first| ["artifacts", "state", "files"].contains(&first.as_str()));
        if is_plain && is_known {
            return Ok(self.staging.join(path));
        }
        let what = format!("member {name} has no place here");
        Err(BackupError::Damaged { path: file.to_owned(), offset: 0, what })
    }

    /// Which unpacked files go where; refuses where others are in the way.
    fn plan(
        &self,
        manifest: &Manifest,
        secrets: &[sealed::SecretFile],
        options: &RestoreOptions,
    ) -> Result<Publication, BackupError> {
        let mut plan = Publication::default();
        let by_path: BTreeMap<&Path, &sealed::SecretFile> =
            secrets.iter().map(|secret| (secret.path.as_path(), secret)).collect();
        for member in &manifest.members {
            let staged = self.staging.join(&member.name);
            match (member.kind, member.name.split_once('/')) {
                (MemberKind::State, Some((_, below))) => {
                    plan.add(self, staged, self.state.join(below), member.mode, member.sha256);
                }
                (MemberKind::File, Some((_, below))) if !options.state_only => {
                    let path = Path::new("/").join(below);
                    // The secret's own text outranks the copy without it.
                    if !by_path.contains_key(path.as_path()) {
                        plan.add(self, staged, self.rooted(&path), member.mode, member.sha256);
                    }
                }
                _ => {}
            }
        }
        for (index, secret) in secrets.iter().enumerate().filter(|_| !options.state_only) {
            let bytes = secret.bytes().unwrap_or_default();
            let staged = self.staging.join(format!("secret-{index}"));
            fs::write(&staged, &bytes).map_err(BackupError::io("write", &staged))?;
            plan.add(self, staged, self.rooted(&secret.path), secret.mode, Digest::of(&bytes));
        }
        let is_missing = |path: &&PathBuf| !by_path.contains_key(path.as_path());
        let left_out = manifest.secrets_left_out.iter().chain(&manifest.secrets_sealed);
        plan.secrets_to_put_back = left_out.filter(is_missing).map(|path| self.rooted(path)).collect();
        // What lies in the state folder is moved aside as a whole.
        let in_the_way: Vec<&PathBuf> = plan
            .write
            .iter()
            .map(|file| &file.target)
            .filter(|target| target.exists() && !target.starts_with(&self.state))
            .collect();
        if let Some(first) = in_the_way.first().filter(|_| !options.force) {
            return Err(BackupError::Differs { first: (*first).clone(), count: in_the_way.len() });
        }
        Ok(plan)
    }

    /// Put what was in the state folder into a folder of its own there, named by `stamp`: the one that a restore which was
    /// cut off began. What has its name there already was published by that restore, and goes into one named by `now`.
    fn move_aside(&self, occupied: &[PathBuf], stamp: i64, now: i64) -> Result<Vec<PathBuf>, BackupError> {
        let first = self.state.join(format!("{ASIDE_PREFIX}{stamp}"));
        let second = self.state.join(format!("{ASIDE_PREFIX}{now}"));
        let mut used = Vec::new();
        for path in occupied {
            let name = path.file_name().unwrap_or_default();
            let aside = if first.join(name).exists() { &second } else { &first };
            if !used.contains(aside) {
                fs::create_dir_all(aside).map_err(BackupError::io("create", aside))?;
                sync_parent(aside)?;
                failpoint::hit("restore.aside.made");
                used.push(aside.clone());
            }
            fs::rename(path, aside.join(name)).map_err(BackupError::io("move aside", path))?;
            failpoint::hit("restore.aside.moved");
        }
        for aside in &used {
            sync_parent(&aside.join("x"))?;
        }
        sync_parent(&first)?;
        failpoint::hit("restore.aside.synced");
        Ok(used)
    }

    /// Pictures first, then the ledger that names them, then the folder is open.
    fn publish_state(&self) -> Result<(), BackupError> {
        let publish = |from: PathBuf, to: PathBuf| {
            fs::rename(&from, &to).map_err(BackupError::io("move", &from))?;
            sync_parent(&to)
        };
        publish(artifacts_dir(&self.staging), artifacts_dir(&self.state))?;
        failpoint::hit("restore.pictures.published");
        publish(database_path(&self.staging), database_path(&self.state))?;
        failpoint::hit("restore.ledger.published");
        // Secrets that lie there go before the folder loses its meaning; it loses it in one step.
        self.empty_staging()?;
        failpoint::hit("restore.staging.emptied");
        let done = self.state.join(DONE_NAME);
        publish(self.staging.clone(), done.clone())?;
        failpoint::hit("restore.opened");
        fs::remove_dir_all(&done).map_err(BackupError::io("remove", &done))
    }
}

/// One file on its way.
#[derive(Debug)]
struct Unplaced {
    staged: PathBuf,
    target: PathBuf,
    mode: u32,
}

/// The files beside ledger and pictures.
#[derive(Debug, Default)]
struct Publication {
    write: Vec<Unplaced>,
    /// There already, the same.
    kept: u64,
    secrets_to_put_back: Vec<PathBuf>,
}

impl Publication {
    fn add(&mut self, places: &Places, staged: PathBuf, target: PathBuf, mode: u32, sha256: Digest) {
        // What lies in the state folder will have been moved aside.
        let stays = !target.starts_with(&places.state);
        if stays && Digest::of_file(&target).is_ok_and(|found| found == sha256) {
            self.kept += 1;
        } else {
            self.write.push(Unplaced { staged, target, mode });
        }
    }

    /// Write each file under another name beside its place and rename it; one that is there keeps a name of its own.
    fn publish(&self, stamp: i64) -> Result<Vec<PathBuf>, BackupError> {
        use std::os::unix::fs::PermissionsExt as _;
        let mut moved = Vec::new();
        for Unplaced { staged, target, mode } in &self.write {
            let parent = target.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(parent).map_err(BackupError::io("create", parent))?;
            let partial = beside(target, ".partial");
            let on_io = BackupError::io("write", &partial);
            // Across file systems a rename would not do.
            fs::copy(staged, &partial).map_err(&on_io)?;
            fs::set_permissions(&partial, fs::Permissions::from_mode(*mode)).map_err(&on_io)?;
            File::open(&partial).and_then(|file| file.sync_all()).map_err(&on_io)?;
            failpoint::hit("restore.file.written");
            if target.exists() {
                let kept = beside(target, &format!(".{ASIDE_PREFIX}{stamp}"));
                fs::rename(target, &kept).map_err(BackupError::io("move aside", target))?;
                moved.push(kept);
                failpoint::hit("restore.file.aside");
            }
            fs::rename(&partial, target).map_err(BackupError::io("rename into", target))?;
            sync_parent(target)?;
            failpoint::hit("restore.file.published");
        }
        Ok(moved)
    }
}

/// The highest epoch of the same device's ledgers that are there or were moved aside, where they can still be read: one
/// that a cut-off restore has moved already counts too.
fn epoch_there(state_dir: &Path, device_id: Uuid) -> u32 {
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let asides = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(ASIDE_PREFIX));
    let epoch = |folder: PathBuf| match ledger::identity_at(&folder) {
        Some((there, epoch)) if there == device_id => epoch,
        _ => 0,
    };
    std::iter::once(state_dir.to_owned()).chain(asides.map(|entry| entry.path())).map(epoch).max().unwrap_or(0)
}

fn need_space(folder: &Path, needed: u64) -> Result<(), BackupError> {
    let free = ledger::free_bytes(folder).map_err(BackupError::io("look at", folder))?;
    if free < needed {
        return Err(BackupError::NoSpace { folder: folder.to_owned(), needed, free });
    }
    Ok(())
}
