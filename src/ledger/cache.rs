//! What the device has of the centre: cursors, rows set aside, and the recipe of each station.
//!
//! Invariants: a recipe's file is named by its digest, written whole (temporary name, fsync, rename, fsync of the folder)
//! and never edited; a station's recipe changes only when the new one was proved on this machine; the one before it stays.
//! The statements run on the writer's thread, the reads on the caller's.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::Serialize;
use serde_json::Value;

use super::desired::{self, CentralAssignment, CentralRecipe, CentralTable};
use super::fits::{self, FitState};
use super::reports::{self, Outcome, Report};
use super::{LedgerError, LedgerReader};
use crate::failpoint;
use crate::types::{Catalogue, Digest, Timestamp};

/// Rows set aside that a status lists.
const SET_ASIDE_SHOWN_MAX: usize = 20;
/// How often a pull that brought nothing is noted.
const NOTED_EVERY_US: i64 = 60_000_000;

/// Where a serving recipe came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecipeOrigin {
    /// The centre.
    Central,
    /// A file that the configuration names.
    File,
}

/// What is to be noted of provisioning.
#[derive(Debug, Clone, PartialEq)]
pub enum ProvisionNote {
    /// The recipe was proved here: it is the one to run.
    Taken { station: String, sha256: Digest },
    /// The recipe cannot be used here.
    Refused { station: String, sha256: Digest, error: String },
    /// The station runs by this recipe from now on.
    Serving { station: String, sha256: Digest, name: String, origin: RecipeOrigin },
    /// The centre answered, or did not.
    Pulled { error: Option<String> },
    /// The fit was proved here and lies beside its index.
    FitTaken { generation_sha256: Digest, sha256: Digest },
    /// The fit cannot be used here.
    FitRefused { generation_sha256: Digest, sha256: Digest, error: String },
    /// The centre's fit is gone from beside its index.
    FitGone { generation_sha256: Digest },
    /// The centre has the reports up to this number.
    Reported { number: i64 },
}

/// The recipe of one station.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StationRecipe {
    pub station: String,
    /// Of the centre, proved here: a running daemon takes it up within seconds, one that stands still at its start.
    pub taken_sha256: Option<Digest>,
    pub taken_at: Option<Timestamp>,
    pub previous_sha256: Option<Digest>,
    /// The last one that cannot be used here, and why.
    pub refused_sha256: Option<Digest>,
    pub refused_error: Option<String>,
    /// What the daemon runs the station with, or ran it with last.
    pub serving_sha256: Option<Digest>,
    pub serving_name: Option<String>,
    pub serving_origin: Option<String>,
    pub serving_since: Option<Timestamp>,
    /// Whether `taken_sha256` is not in service yet.
    pub is_waiting: bool,
}

/// How far one table has come down.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CacheState {
    pub table: &'static str,
    /// Number of the last change taken in.
    pub cursor: i64,
    /// When rows last came.
    pub fetched_at: Option<Timestamp>,
    pub rows: u64,
    pub set_aside: u64,
}

/// A row of the centre that is of no use here.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetAside {
    pub table: String,
    /// Empty where the row does not say what it is about.
    pub key: String,
    pub change_seq: i64,
    pub error: String,
}

/// Everything `loupe provisioning status` says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Provisioning {
    /// When the centre was last asked and answered, to the minute.
    pub pulled_at: Option<Timestamp>,
    /// What has gone wrong since.
    pub error: Option<String>,
    pub tables: Vec<CacheState>,
    /// The first ones.
    pub set_aside: Vec<SetAside>,
    pub stations: Vec<StationRecipe>,
    pub fits: Vec<FitState>,
}

/// The recipe that a station is to run.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredRecipe {
    pub recipe: CentralRecipe,
    pub assigned_by: String,
    pub assigned_at: String,
}

pub(super) fn note(connection: &Connection, note: &ProvisionNote, now: Timestamp) -> rusqlite::Result<Value> {
    match note {
        ProvisionNote::Taken { station, sha256 } => take(connection, station, *sha256, now),
        ProvisionNote::Refused { station, sha256, error } => refuse(connection, station, *sha256, error, now),
        ProvisionNote::Serving { station, sha256, name, origin } => {
            serve(connection, station, *sha256, (name, *origin), now)
        }
        ProvisionNote::Pulled { error } => pulled(connection, error.as_deref(), now),
        ProvisionNote::FitTaken { generation_sha256, sha256 } => {
            fits::take(connection, *generation_sha256, *sha256, now)
        }
        ProvisionNote::FitRefused { generation_sha256, sha256, error } => {
            fits::refuse(connection, *generation_sha256, *sha256, error, now)
        }
        ProvisionNote::FitGone { generation_sha256 } => fits::give_up(connection, *generation_sha256, now),
        ProvisionNote::Reported { number } => reports::forget(connection, *number),
    }
    .map(|()| Value::Null)
}

fn take(connection: &Connection, station: &str, sha256: Digest, now: Timestamp) -> rusqlite::Result<()> {
    let before = state_of(connection, station)?;
    connection.execute(
        "INSERT INTO station_recipes (station, taken_sha256, taken_at) VALUES (?1, ?2, ?3)
         ON CONFLICT (station) DO UPDATE SET taken_sha256 = excluded.taken_sha256, taken_at = excluded.taken_at,
            previous_sha256 = iif(taken_sha256 IS excluded.taken_sha256, previous_sha256, taken_sha256),
            refused_sha256 = NULL, refused_error = NULL, refused_at = NULL
         WHERE taken_sha256 IS NOT excluded.taken_sha256 OR refused_sha256 IS NOT NULL",
        params![station, sha256.as_bytes(), now.as_micros()],
    )?;
    // What serves is wanted again after another was refused: the refusal is no longer the last word.
    if before.refused.is_some() && before.serving_sha256 == Some(sha256) {
        report(connection, station, (sha256, Some(sha256)), Outcome::Serving, None, now)?;
    }
    Ok(())
}

fn refuse(connection: &Connection, station: &str, sha256: Digest, error: &str, now: Timestamp) -> rusqlite::Result<()> {
    let before = state_of(connection, station)?;
    connection.execute(
        "INSERT INTO station_recipes (station, refused_sha256, refused_error, refused_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (station) DO UPDATE SET refused_sha256 = excluded.refused_sha256,
            refused_error = excluded.refused_error, refused_at = excluded.refused_at",
        params![station, sha256.as_bytes(), error, now.as_micros()],
    )?;
    if before.refused == Some((sha256, error.to_owned())) {
        return Ok(());
    }
    report(connection, station, (sha256, before.serving_sha256), Outcome::Refused, Some(error), now)
}

fn serve(
    connection: &Connection,
    station: &str,
    sha256: Digest,
    (name, origin): (&str, RecipeOrigin),
    now: Timestamp,
) -> rusqlite::Result<()> {
    let before = state_of(connection, station)?;
    let origin_text = if origin == RecipeOrigin::Central { "central" } else { "file" };
    connection.execute(
        "INSERT INTO station_recipes (station, serving_sha256, serving_name, serving_origin, serving_since)
            VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (station) DO UPDATE SET serving_sha256 = excluded.serving_sha256,
            serving_name = excluded.serving_name, serving_origin = excluded.serving_origin,
            serving_since = excluded.serving_since",
        params![station, sha256.as_bytes(), name, origin_text, now.as_micros()],
    )?;
    if before.serving_sha256 == Some(sha256) {
        return Ok(());
    }
    let detail = (origin == RecipeOrigin::File).then_some("from a file of the device");
    report(connection, station, (sha256, before.serving_sha256), Outcome::Serving, detail, now)
}

fn pulled(connection: &Connection, error: Option<&str>, now: Timestamp) -> rusqlite::Result<()> {
    let now = now.as_micros();
    match error {
        None => connection.execute(
            "INSERT INTO pull_state VALUES (1, ?1, NULL, NULL)
             ON CONFLICT (only_row) DO UPDATE SET pulled_at = excluded.pulled_at, error = NULL, error_at = NULL
             WHERE error IS NOT NULL OR pulled_at IS NULL OR pulled_at NOT BETWEEN ?1 - ?2 AND ?1",
            params![now, NOTED_EVERY_US],
        ),
        Some(error) => connection.execute(
            "INSERT INTO pull_state VALUES (1, NULL, ?1, ?2)
             ON CONFLICT (only_row) DO UPDATE SET error = excluded.error, error_at = excluded.error_at
             WHERE error IS NOT excluded.error",
            params![error, now],
        ),
    }
    .map(drop)
}

/// What is noted of a station's recipe.
#[derive(Default)]
struct Noted {
    serving_sha256: Option<Digest>,
    refused: Option<(Digest, String)>,
}

fn state_of(connection: &Connection, station: &str) -> rusqlite::Result<Noted> {
    let sql = "SELECT serving_sha256, refused_sha256, refused_error FROM station_recipes WHERE station = ?1";
    let noted = connection.query_row(sql, params![station], |row| {
        let refused = digest(row, 1)?.zip(row.get::<_, Option<String>>(2)?);
        Ok(Noted { serving_sha256: digest(row, 0)?, refused })
    });
    Ok(noted.optional()?.unwrap_or_default())
}

fn report(
    connection: &Connection,
    station: &str,
    (sha256, previous_sha256): (Digest, Option<Digest>),
    outcome: Outcome,
    detail: Option<&str>,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let report = Report { subject_kind: "recipe", subject: station, sha256, previous_sha256, outcome, detail };
    reports::add(connection, &report, now)
}

/// Where the recipe of this digest lies below a state folder.
#[must_use]
pub fn recipe_path(state_dir: &Path, sha256: Digest) -> PathBuf {
    recipes_dir(state_dir).join(format!("{sha256}.toml"))
}

fn recipes_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("recipes")
}

/// Put a recipe's text where its digest says, whole or not at all; one that lies there already is looked over.
///
/// # Errors
/// When the folder cannot be written.
pub fn place_recipe(state_dir: &Path, body: &str) -> Result<PathBuf, LedgerError> {
    let sha256 = Digest::of(body.as_bytes());
    let (dir, path) = (recipes_dir(state_dir), recipe_path(state_dir, sha256));
    if Digest::of_file(&path).is_ok_and(|found| found == sha256) {
        return Ok(path);
    }
    fs::create_dir_all(&dir).map_err(LedgerError::io("create", &dir))?;
    let temporary = path.with_extension("part");
    let mut file = File::create(&temporary).map_err(LedgerError::io("create", &temporary))?;
    file.write_all(body.as_bytes()).and_then(|()| file.sync_all()).map_err(LedgerError::io("write", &temporary))?;
    failpoint::hit("downlink.recipe.written");
    fs::rename(&temporary, &path).map_err(LedgerError::io("rename", &temporary))?;
    failpoint::hit("downlink.recipe.renamed");
    File::open(&dir).and_then(|dir| dir.sync_all()).map_err(LedgerError::io("sync", &dir))?;
    Ok(path)
}

/// The text of the recipe of this digest; `None` where it is not here or was changed.
#[must_use]
pub fn placed_recipe(state_dir: &Path, sha256: Digest) -> Option<String> {
    let body = fs::read_to_string(recipe_path(state_dir, sha256)).ok()?;
    (Digest::of(body.as_bytes()) == sha256).then_some(body)
}

/// The texts of all recipes that came from the centre and are whole.
#[must_use]
pub fn placed_recipes(state_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(recipes_dir(state_dir)) else { return Vec::new() };
    let digest = |entry: fs::DirEntry| entry.path().file_stem()?.to_str()?.parse::<Digest>().ok();
    entries.flatten().filter_map(digest).filter_map(|sha256| placed_recipe(state_dir, sha256)).collect()
}

/// Remove recipe files that no station and no row of the centre names any more; how many.
///
/// # Errors
/// When the ledger or the folder cannot be read.
pub fn prune_recipes(state_dir: &Path, reader: &LedgerReader) -> Result<usize, LedgerError> {
    let dir = recipes_dir(state_dir);
    let mut kept: BTreeSet<String> = BTreeSet::new();
    for station in reader.station_recipes()? {
        let named = [station.taken_sha256, station.previous_sha256, station.serving_sha256];
        kept.extend(named.into_iter().flatten().map(|sha256| format!("{sha256}.toml")));
    }
    let sql = "SELECT key FROM central_rows WHERE table_name = 'recipes'";
    kept.extend(reader.list(sql, params![], |row| Ok(format!("{}.toml", row.get::<_, String>(0)?)))?);
    let Ok(entries) = fs::read_dir(&dir) else { return Ok(0) };
    let mut removed = 0;
    for entry in entries.flatten() {
        let is_kept = entry.file_name().to_str().is_some_and(|name| kept.contains(name));
        if !is_kept && fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

fn digest(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Digest>> {
    Ok(row.get::<_, Option<[u8; 32]>>(index)?.map(Digest::from_bytes))
}

fn time(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(index)?.map(Timestamp::from_micros))
}

fn read_station(row: &Row<'_>) -> rusqlite::Result<StationRecipe> {
    let serving_origin: Option<String> = row.get(8)?;
    let (taken_sha256, serving_sha256) = (digest(row, 1)?, digest(row, 6)?);
    Ok(StationRecipe {
        station: row.get(0)?,
        taken_sha256,
        taken_at: time(row, 2)?,
        previous_sha256: digest(row, 3)?,
        refused_sha256: digest(row, 4)?,
        refused_error: row.get(5)?,
        serving_sha256,
        serving_name: row.get(7)?,
        is_waiting: serving_origin.as_deref() == Some("central")
            && taken_sha256.is_some()
            && taken_sha256 != serving_sha256,
        serving_origin,
        serving_since: time(row, 9)?,
    })
}

impl LedgerReader {
    /// The number of the last change of `table` taken in; 0: none.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn central_cursor(&self, table: CentralTable) -> Result<i64, LedgerError> {
        desired::cursor(&self.connection, table).map_err(LedgerError::sqlite(&self.path))
    }

    /// The recipes of the stations that ever had one, by station.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn station_recipes(&self) -> Result<Vec<StationRecipe>, LedgerError> {
        let sql =
            "SELECT station, taken_sha256, taken_at, previous_sha256, refused_sha256, refused_error, serving_sha256,
                serving_name, serving_origin, serving_since FROM station_recipes ORDER BY station";
        self.list(sql, params![], read_station)
    }

    /// The recipe that the centre wants `station` to run: the one for this site before the one for all, the one for the
    /// station before the one for every station.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn desired_recipe(&self, station: &str) -> Result<Option<DesiredRecipe>, LedgerError> {
        let found: Option<(String, String)> = self
            .connection
            .query_row(
                "SELECT a.body, r.body FROM central_rows a
                 JOIN central_rows r ON r.table_name = 'recipes' AND r.key = a.body ->> 'recipe_sha256'
                 WHERE a.table_name = 'recipe_assignments' AND a.key IN (?1, '*') AND a.format <= ?2 AND r.format <= ?2
                    AND coalesce(a.body ->> 'station', ?1) = ?1
                 ORDER BY a.is_site DESC, a.body ->> 'station' IS NULL, a.change_seq DESC LIMIT 1",
                params![station, desired::CENTRAL_FORMAT],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()
            .map_err(LedgerError::sqlite(&self.path))?;
        let Some((assignment, recipe)) = found else { return Ok(None) };
        let unreadable =
            |error: serde_json::Error| LedgerError::Unreadable { table: "central_rows", detail: error.to_string() };
        let assignment: CentralAssignment = serde_json::from_str(&assignment).map_err(unreadable)?;
        let recipe: CentralRecipe = serde_json::from_str(&recipe).map_err(unreadable)?;
        let CentralAssignment { assigned_by, assigned_at, .. } = assignment;
        Ok(Some(DesiredRecipe { recipe, assigned_by, assigned_at }))
    }

    /// The recipe of this digest, as long as the centre offers it to this site.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn central_recipe(&self, sha256: Digest) -> Result<Option<CentralRecipe>, LedgerError> {
        let sql = "SELECT body FROM central_rows WHERE table_name = 'recipes' AND key = ?1 AND format <= ?2";
        let key = sha256.to_string();
        let read = |row: &Row<'_>| row.get::<_, String>(0);
        let body = self.list(sql, params![key, desired::CENTRAL_FORMAT], read)?.pop();
        Ok(body.and_then(|body| serde_json::from_str(&body).ok()))
    }

    /// Entries of `batch` that a local import may not change, since they came from the centre.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn central_conflicts(&self, batch: &Catalogue) -> Result<Vec<String>, LedgerError> {
        desired::conflicts(&self.connection, batch).map_err(LedgerError::sqlite(&self.path))
    }

    /// How far everything has come down.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn provisioning(&self) -> Result<Provisioning, LedgerError> {
        let on_sqlite = LedgerError::sqlite(&self.path);
        let pull = self
            .connection
            .query_row("SELECT pulled_at, error FROM pull_state", [], |row| Ok((time(row, 0)?, row.get(1)?)))
            .optional()
            .map_err(&on_sqlite)?;
        let (pulled_at, error) = pull.unwrap_or((None, None));
        let mut tables = Vec::with_capacity(CentralTable::ALL.len());
        for table in CentralTable::ALL {
            let sql = "SELECT (SELECT version FROM cache_state WHERE table_name = ?1),
                    (SELECT fetched_at FROM cache_state WHERE table_name = ?1),
                    count(*), count(*) FILTER (WHERE state = 'set_aside') FROM central_rows WHERE table_name = ?1";
            let state = self
                .connection
                .query_row(sql, [table.name()], |row| {
                    Ok(CacheState {
                        table: table.name(),
                        cursor: row.get::<_, Option<i64>>(0)?.unwrap_or(0),
                        fetched_at: time(row, 1)?,
                        rows: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
                        set_aside: u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
                    })
                })
                .map_err(&on_sqlite)?;
            tables.push(state);
        }
        let sql = "SELECT table_name, key, change_seq, error FROM central_rows WHERE state = 'set_aside'
             ORDER BY change_seq LIMIT ?1";
        let set_aside = self.list(sql, params![SET_ASIDE_SHOWN_MAX as i64], |row| {
            Ok(SetAside { table: row.get(0)?, key: row.get(1)?, change_seq: row.get(2)?, error: row.get(3)? })
        })?;
        Ok(Provisioning {
            pulled_at,
            error,
            tables,
            set_aside,
            stations: self.station_recipes()?,
            fits: self.fit_states()?,
        })
    }
}
