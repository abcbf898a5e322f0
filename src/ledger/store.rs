//! Opening `ledger.db`: the lock, the pragmas, the migrations, and what a start after a cut-off run checks.
//!
//! Invariants: one process owns a state folder (`flock` on `ledger.lock`, held by the writer); the writer's connection
//! is the only one that writes; `synchronous=FULL`, so a COMMIT that returned is on disk.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};
use tracing::{info, warn};
use uuid::Uuid;

use super::LedgerError;
use super::artifacts;
use super::log_check;
use crate::clock::{Clock, Stopwatch};
use crate::failpoint;

mod embedded {
    refinery::embed_migrations!("migrations/ledger");
}

/// Of a new ledger, bytes; an older one keeps the 8 KiB it was made with.
pub(super) const PAGE_BYTES: u32 = 4_096;
/// "LOUP": what `PRAGMA application_id` says of a ledger.
const APPLICATION_ID: i32 = 0x4c4f_5550;
/// How long a reader waits for the writer's checkpoint.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Holds what a restore has unpacked; while it is there, the folder is no ledger.
pub const RESTORE_MARKER: &str = "restore.partial";

/// Prepared statements that a connection keeps: a commit uses about 15, retention and reviews as many again.
const STATEMENTS_CACHED: usize = 128;

/// Path of the ledger's file in a state folder.
#[must_use]
pub fn database_path(state_dir: &Path) -> PathBuf {
    state_dir.join("ledger.db")
}

/// A ledger opened for writing: hold `lock` as long as `connection`.
#[derive(Debug)]
pub(super) struct Store {
    pub connection: Connection,
    pub lock: File,
    pub meta: Meta,
}

/// The one row of `ledger_meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// The site this ledger reports to; `None` until it first reports.
    pub site_id: Option<Uuid>,
    pub device_id: Uuid,
    pub epoch: u32,
}

/// Open the ledger below `state_dir`, making and migrating it where needed, and mark it as in use.
pub(super) fn open(state_dir: &Path, clock: &Clock) -> Result<Store, LedgerError> {
    artifacts::create_durably(state_dir)?;
    let lock = lock(state_dir)?;
    refuse_half_restored(state_dir)?;
    let path = database_path(state_dir);
    let on_sqlite = LedgerError::sqlite(&path);
    // Before SQLite opens it: that would drop what it cannot read.
    let log = path.with_extension("db-wal");
    if let Some(finding) = log_check::find_damage(&log).map_err(LedgerError::io("read", &log))? {
        return Err(LedgerError::Corrupt { path: path.clone(), finding });
    }
    let mut connection = Connection::open(&path).map_err(&on_sqlite)?;
    failpoint::hit("ledger.open.created");
    if is_empty(&connection, &path)? {
        // Takes effect only before the first page is written.
        connection
            .execute_batch(&format!("PRAGMA page_size = {PAGE_BYTES}; PRAGMA application_id = 0x4c4f5550;"))
            .map_err(&on_sqlite)?;
    }
    failpoint::hit("ledger.open.identified");
    check_application_id(&connection, &path)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(&on_sqlite)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
             PRAGMA journal_size_limit = 67108864;",
        )
        .map_err(&on_sqlite)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    let found = found_version(&connection).map_err(&on_sqlite)?;
    let known = i64::from(schema_version());
    if found > known {
        return Err(LedgerError::Newer { path: path.clone(), found, known });
    }
    migrate(&mut connection, &path)?;
    let (meta, was_clean) = begin_run(&connection, clock).map_err(&on_sqlite)?;
    failpoint::hit("ledger.run.begun");
    artifacts::prepare(state_dir)?;
    if !was_clean {
        recover(&connection, state_dir, &path)?;
    }
    // What a savepoint may have to take back is a copy of each page it touches; beyond 64 KiB SQLite puts them into a
    // file, made and removed in each commit. Not before the migrations: those may sort whole tables.
    connection.execute_batch("PRAGMA temp_store = MEMORY;").map_err(&on_sqlite)?;
    Ok(Store { connection, lock, meta })
}

/// Open the ledger below `state_dir` for reading only.
pub(super) fn open_for_reading(state_dir: &Path) -> Result<Connection, LedgerError> {
    refuse_half_restored(state_dir)?;
    let path = database_path(state_dir);
    if !path.exists() {
        return Err(LedgerError::Missing { path });
    }
    let on_sqlite = LedgerError::sqlite(&path);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path, flags).map_err(&on_sqlite)?;
    check_application_id(&connection, &path)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(&on_sqlite)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    let (found, known) = (found_version(&connection).map_err(&on_sqlite)?, i64::from(schema_version()));
    match found.cmp(&known) {
        Ordering::Greater => Err(LedgerError::Newer { path: path.clone(), found, known }),
        Ordering::Less => Err(LedgerError::Older { path: path.clone(), found, known }),
        Ordering::Equal => Ok(connection),
    }
}

/// The schema that the file has; 0 before the first migration.
fn found_version(connection: &Connection) -> rusqlite::Result<i64> {
    let sql = "SELECT count(*) FROM sqlite_master WHERE name = 'schema_migrations'";
    let is_there: bool = connection.query_row(sql, [], |row| row.get(0))?;
    if !is_there {
        return Ok(0);
    }
    connection.query_row("SELECT coalesce(max(version), 0) FROM schema_migrations", [], |row| row.get(0))
}

fn refuse_half_restored(state_dir: &Path) -> Result<(), LedgerError> {
    let marker = state_dir.join(RESTORE_MARKER);
    if marker.exists() {
        return Err(LedgerError::HalfRestored { state_dir: state_dir.to_owned(), marker });
    }
    Ok(())
}

/// Version of the schema that this program writes.
#[must_use]
pub fn schema_version() -> i32 {
    embedded::migrations::runner().get_migrations().iter().map(|migration| migration.version()).max().unwrap_or(0)
}

/// Own the state folder as a running daemon does, without opening a ledger, until the file is dropped.
///
/// # Errors
/// When another process has it.
pub fn hold_folder(state_dir: &Path) -> Result<File, LedgerError> {
    lock(state_dir)
}

fn lock(state_dir: &Path) -> Result<File, LedgerError> {
    let path = state_dir.join("ledger.lock");
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(LedgerError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let said = file.read_to_string(&mut holder).is_ok() && !holder.is_empty();
            let holder = if said { holder.trim().to_owned() } else { "process unknown".to_owned() };
            return Err(LedgerError::Locked { path: state_dir.to_owned(), holder });
        }
        Err(std::fs::TryLockError::Error(source)) => return Err(LedgerError::io("lock", &path)(source)),
    }
    // A courtesy for the message above; the lock holds without it, also on a full disk.
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "pid {}", std::process::id()));
    if let Err(error) = written {
        warn!(path = %path.display(), %error, "the lock file does not name this process");
    }
    Ok(file)
}

/// Whether nothing was ever written to the file: it is new, or a first start was cut off before its first page.
fn is_empty(connection: &Connection, path: &Path) -> Result<bool, LedgerError> {
    let pages: i64 =
        connection.query_row("PRAGMA page_count", [], |row| row.get(0)).map_err(LedgerError::sqlite(path))?;
    Ok(pages == 0)
}

fn check_application_id(connection: &Connection, path: &Path) -> Result<(), LedgerError> {
    let found: i32 =
        connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(LedgerError::sqlite(path))?;
    if found == APPLICATION_ID { Ok(()) } else { Err(LedgerError::Foreign { path: path.to_owned(), found }) }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), LedgerError> {
    // One transaction for all: by itself each migration and the note that it was applied are two, and a power cut in
    // between leaves a ledger that no start can bring further.
    let mut runner = embedded::migrations::runner().set_grouped(true);
    runner.set_migration_table_name("schema_migrations");
    failpoint::hit("ledger.migrate.before");
    let report = runner.run(connection).map_err(|source| match sqlite_cause(&source) {
        Some(finding) => LedgerError::Corrupt { path: path.to_owned(), finding },
        None => LedgerError::Migrate { path: path.to_owned(), source: Box::new(source) },
    })?;
    for migration in report.applied_migrations() {
        info!(path = %path.display(), migration = %migration, "ledger migrated");
    }
    failpoint::hit("ledger.migrate.after");
    Ok(())
}

/// What SQLite says where the file itself is damaged.
fn sqlite_cause(error: &refinery::Error) -> Option<String> {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(source) = inner.downcast_ref::<rusqlite::Error>() {
            return LedgerError::is_damage(source).then(|| source.to_string());
        }
        cause = inner.source();
    }
    None
}

/// Mark the ledger as in use; says whether the last run ended well.
fn begin_run(connection: &Connection, clock: &Clock) -> rusqlite::Result<(Meta, bool)> {
    let device_id = Uuid::now_v7();
    connection.execute(
        "INSERT INTO ledger_meta (only_row, device_id, epoch, created_at, software_version, clean_shutdown)
         VALUES (1, ?1, 1, ?2, ?3, 1) ON CONFLICT DO NOTHING",
        params![device_id.as_bytes(), clock.now().as_micros(), env!("CARGO_PKG_VERSION")],
    )?;
    let meta = read_meta(connection)?;
    let was_clean: bool = connection.query_row("SELECT clean_shutdown FROM ledger_meta", [], |row| row.get(0))?;
    connection.execute(
        "UPDATE ledger_meta SET clean_shutdown = 0, software_version = ?1",
        params![env!("CARGO_PKG_VERSION")],
    )?;
    Ok((meta, was_clean))
}

pub(super) fn read_meta(connection: &Connection) -> rusqlite::Result<Meta> {
    connection.query_row("SELECT site_id, device_id, epoch FROM ledger_meta", [], |row| {
        let site_id: Option<[u8; 16]> = row.get(0)?;
        Ok(Meta {
            site_id: site_id.map(Uuid::from_bytes),
            device_id: Uuid::from_bytes(row.get(1)?),
            epoch: row.get(2)?,
        })
    })
}

/// The last run was cut off: prove the file whole, and remove what it left half-done.
fn recover(connection: &Connection, state_dir: &Path, path: &Path) -> Result<(), LedgerError> {
    let stopwatch = Stopwatch::start();
    let finding: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(LedgerError::sqlite(path))?;
    if finding != "ok" {
        return Err(LedgerError::Corrupt { path: path.to_owned(), finding });
    }
    failpoint::hit("ledger.recover.checked");
    let removed = artifacts::remove_leftovers(connection, state_dir)?;
    failpoint::hit("ledger.recover.swept");
    warn!(
        path = %path.display(),
        files_removed = removed,
        check_ms = stopwatch.ms(),
        "the last run was cut off; the ledger is whole"
    );
    Ok(())
}

/// The run ends well: everything committed, moved from the log into the file, and marked so.
pub(super) fn end_run(connection: &Connection) -> rusqlite::Result<()> {
    failpoint::hit("ledger.close.before");
    connection.execute("UPDATE ledger_meta SET clean_shutdown = 1", [])?;
    failpoint::hit("ledger.close.marked");
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}
