//! What the centre wants of this device: a page of its rows → the catalogue, in the transaction that moves the cursor.
//!
//! Invariants: a page is taken in whole with its cursor or not at all, so a kill changes nothing and a page sent twice
//! has its effect once; a row of no use here is set aside with its error, tried again when the row that it waits for comes
//! or the daemon starts, and never stops another; where a number has a row for this site and one for every site, the site's own counts.
//! Runs on the ledger's writer thread.

use std::collections::{BTreeSet, VecDeque};

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use super::reviews::refused;
use super::{catalogue, fits};
use crate::types::{AccessPolicy, Catalogue, Category, Color, Digest, Kit, Part, PartRelation, Timestamp};

/// Newest layout of a row that this program understands.
pub const CENTRAL_FORMAT: i32 = 1;

/// Rows tried again at a start.
const RETRIED_MAX: i64 = 1_000;

/// A table that flows down; in the order in which rows may name one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CentralTable {
    Categories,
    Colors,
    Parts,
    Relations,
    Policies,
    Kits,
    Recipes,
    Assignments,
    Fits,
}

impl CentralTable {
    pub const ALL: [CentralTable; 9] = [
        CentralTable::Categories,
        CentralTable::Colors,
        CentralTable::Parts,
        CentralTable::Relations,
        CentralTable::Policies,
        CentralTable::Kits,
        CentralTable::Recipes,
        CentralTable::Assignments,
        CentralTable::Fits,
    ];

    /// Its name at the centre.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            CentralTable::Categories => "categories",
            CentralTable::Colors => "colors",
            CentralTable::Parts => "parts",
            CentralTable::Relations => "part_relations",
            CentralTable::Policies => "access_policies",
            CentralTable::Kits => "kits",
            CentralTable::Recipes => "recipes",
            CentralTable::Assignments => "recipe_assignments",
            CentralTable::Fits => "fits",
        }
    }

    pub(super) fn called(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

/// A row as the centre sends it.
#[derive(Debug, Clone, PartialEq)]
pub struct CentralRow {
    pub id: Uuid,
    pub change_seq: i64,
    /// `false`: withdrawn.
    pub is_active: bool,
    /// For this site; else for every site.
    pub is_site: bool,
    pub format: i32,
    /// JSON; `None` where it is larger than a page may be.
    pub body: Option<String>,
}

/// Rows of one table in the order of their changes.
#[derive(Debug, Clone, PartialEq)]
pub struct CentralPage {
    pub table: CentralTable,
    /// The cursor that they were asked with.
    pub after: i64,
    pub rows: Vec<CentralRow>,
}

/// What became of a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Intake {
    /// Rows read.
    pub rows: usize,
    /// Numbers, codes and names whose row now counts.
    pub applied: usize,
    /// Those withdrawn.
    pub withdrawn: usize,
    /// Rows set aside.
    pub set_aside: usize,
}

/// Take in `page`. On an error the caller rolls back.
pub(super) fn take_in(connection: &Connection, page: &CentralPage, now: Timestamp) -> rusqlite::Result<Value> {
    let table = page.table.name();
    let cursor = cursor(connection, page.table)?;
    if cursor != page.after {
        return Err(refused(format!("{table} was asked from {}, and its cursor stands at {cursor}", page.after)));
    }
    let mut intake = Intake { rows: page.rows.len(), ..Intake::default() };
    let mut keys = BTreeSet::new();
    for row in &page.rows {
        keys.extend(store(connection, page.table, row, now)?);
    }
    settle_all(connection, keys.into_iter().map(|key| (page.table, key)).collect(), now, &mut intake)?;
    let sql = "SELECT count(*) FROM central_rows WHERE table_name = ?1 AND state = 'set_aside' AND change_seq > ?2";
    intake.set_aside =
        connection.query_row(sql, params![table, cursor], |row| row.get::<_, i64>(0))?.try_into().unwrap_or(0);
    let upto = page.rows.iter().map(|row| row.change_seq).max().unwrap_or(cursor).max(cursor);
    connection.execute(
        "INSERT INTO cache_state VALUES (?1, ?2, ?3)
         ON CONFLICT (table_name) DO UPDATE SET version = excluded.version, fetched_at = excluded.fetched_at",
        params![table, upto, now.as_micros()],
    )?;
    Ok(json!(intake))
}

/// The centre was restored to an earlier time: its numbers start lower, so everything of the table is read anew.
pub(super) fn start_over(connection: &Connection, table: CentralTable) -> rusqlite::Result<Value> {
    connection.execute("DELETE FROM central_rows WHERE table_name = ?1", [table.name()])?;
    connection.execute("DELETE FROM cache_state WHERE table_name = ?1", [table.name()])?;
    Ok(Value::Null)
}

pub(super) fn cursor(connection: &Connection, table: CentralTable) -> rusqlite::Result<i64> {
    let sql = "SELECT version FROM cache_state WHERE table_name = ?1";
    Ok(connection.query_row(sql, [table.name()], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// Keep the row as it came; the keys whose meaning may have changed.
fn store(
    connection: &Connection,
    table: CentralTable,
    row: &CentralRow,
    now: Timestamp,
) -> rusqlite::Result<Vec<String>> {
    let before: Option<String> = connection
        .prepare_cached("SELECT key FROM central_rows WHERE table_name = ?1 AND id = ?2")?
        .query_row(params![table.name(), row.id.as_bytes()], |found| found.get(0))
        .optional()?;
    let mut keys: Vec<String> = before.into_iter().collect();
    if !row.is_active {
        connection.execute(
            "DELETE FROM central_rows WHERE table_name = ?1 AND id = ?2",
            params![table.name(), row.id.as_bytes()],
        )?;
        return Ok(keys);
    }
    let body = row.body.as_deref().filter(|body| serde_json::from_str::<Value>(body).is_ok());
    let read = match body {
        None => Err("it is too large or no JSON".to_owned()),
        Some(_) if row.format > CENTRAL_FORMAT => {
            Err(format!("it has format {}, this program knows {CENTRAL_FORMAT}; update Loupe here", row.format))
        }
        Some(body) => key_of(table, body),
    };
    let key = read.as_deref().unwrap_or_default();
    connection
        .prepare_cached(
            "INSERT INTO central_rows VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'set_aside', ?8, NULL, ?9)
             ON CONFLICT (table_name, id) DO UPDATE SET key = excluded.key, is_site = excluded.is_site,
                change_seq = excluded.change_seq, format = excluded.format, body = excluded.body,
                state = excluded.state, error = excluded.error, waits_for = NULL, fetched_at = excluded.fetched_at",
        )?
        .execute(params![
            table.name(),
            row.id.as_bytes(),
            key,
            row.is_site,
            row.change_seq,
            row.format.max(1),
            body.unwrap_or("null"),
            read.as_ref().err().map_or("not tried yet", String::as_str),
            now.as_micros(),
        ])?;
    keys.extend(read.ok());
    Ok(keys)
}

fn parsed<T: DeserializeOwned>(body: &str) -> Result<T, String> {
    serde_json::from_str(body).map_err(|error| format!("it cannot be read: {error}"))
}

/// What the row is about.
fn key_of(table: CentralTable, body: &str) -> Result<String, String> {
    Ok(match table {
        CentralTable::Categories => parsed::<Category>(body)?.code,
        CentralTable::Colors => parsed::<Color>(body)?.color_id.to_string(),
        CentralTable::Parts => parsed::<Part>(body)?.part_number,
        CentralTable::Relations => relation_key(&parsed(body)?),
        CentralTable::Policies => policy_key(&parsed(body)?),
        CentralTable::Kits => parsed::<Kit>(body)?.kit_code,
        CentralTable::Recipes => {
            let recipe = parsed::<CentralRecipe>(body)?;
            if Digest::of(recipe.body.as_bytes()) != recipe.sha256 {
                return Err("its text is not the one its digest names".to_owned());
            }
            recipe.sha256.to_string()
        }
        CentralTable::Assignments => parsed::<CentralAssignment>(body)?.station.unwrap_or_else(|| "*".to_owned()),
        CentralTable::Fits => fits::key_of(body)?,
    })
}

fn relation_key(relation: &PartRelation) -> String {
    format!("{} ~ {}", relation.part_number, relation.related_part_number)
}

fn policy_key(policy: &AccessPolicy) -> String {
    format!("{} {}", policy.subject_kind, policy.subject)
}

/// A recipe as the centre sends it.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
pub struct CentralRecipe {
    pub sha256: Digest,
    pub name: String,
    pub version_label: String,
    /// TOML.
    pub body: String,
}

/// Which recipe stations are to run.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
pub(super) struct CentralAssignment {
    /// `None`: every station.
    pub station: Option<String>,
    /// `None`: a recipe that this site may not read.
    pub recipe_sha256: Option<Digest>,
    pub assigned_by: String,
    pub assigned_at: String,
}

/// Settle these keys, and then those of the rows that waited for them.
fn settle_all(
    connection: &Connection,
    mut keys: VecDeque<(CentralTable, String)>,
    now: Timestamp,
    intake: &mut Intake,
) -> rusqlite::Result<()> {
    while let Some((table, key)) = keys.pop_front() {
        if !settle(connection, table, &key, now, intake)? {
            continue;
        }
        let waiting: Vec<(String, String)> = connection
            .prepare_cached(
                "SELECT DISTINCT table_name, key FROM central_rows WHERE state = 'set_aside' AND waits_for = ?1",
            )?
            .query_map([format!("{} {key}", table.name())], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        keys.extend(waiting.into_iter().filter_map(|(table, key)| Some((CentralTable::called(&table)?, key))));
    }
    Ok(())
}

/// Make the row that counts for `key` the one in use, and say whether it is; without one, take back what it made.
fn settle(
    connection: &Connection,
    table: CentralTable,
    key: &str,
    now: Timestamp,
    intake: &mut Intake,
) -> rusqlite::Result<bool> {
    let name = table.name();
    let winner: Option<([u8; 16], String)> = connection
        .prepare_cached(
            "SELECT id, body FROM central_rows WHERE table_name = ?1 AND key = ?2 AND format <= ?3
             ORDER BY is_site DESC, change_seq DESC LIMIT 1",
        )?
        .query_row(params![name, key, CENTRAL_FORMAT], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((id, body)) = winner else {
        withdraw(connection, table, key, now)?;
        intake.withdrawn += 1;
        return Ok(false);
    };
    connection
        .prepare_cached(
            "UPDATE central_rows SET state = 'shadowed', error = NULL, waits_for = NULL
             WHERE table_name = ?1 AND key = ?2 AND id <> ?3 AND format <= ?4",
        )?
        .execute(params![name, key, id, CENTRAL_FORMAT])?;
    let (state, error, waits_for) = match in_savepoint(connection, || apply(connection, table, &body)) {
        Ok(()) => ("applied", None, None),
        Err(Unusable::Fault(error)) if super::writer::is_disk_error(&error) => return Err(error),
        Err(Unusable::Fault(error)) => ("set_aside", Some(error.to_string()), None),
        Err(Unusable::Waits { table, key }) => {
            let words = format!("it names {} `{key}`, which is not here yet", table.name());
            ("set_aside", Some(words), Some(format!("{} {key}", table.name())))
        }
    };
    connection
        .prepare_cached(
            "UPDATE central_rows SET state = ?3, error = ?4, waits_for = ?5 WHERE table_name = ?1 AND id = ?2",
        )?
        .execute(params![name, id, state, error, waits_for])?;
    let is_applied = error.is_none();
    intake.applied += usize::from(is_applied);
    Ok(is_applied)
}

/// Try again what was set aside: a newer program may read it, or an import have brought what it names.
pub(super) fn retry(connection: &Connection, now: Timestamp) -> rusqlite::Result<Value> {
    let rows: Vec<(String, [u8; 16], String, String)> = connection
        .prepare(
            "SELECT table_name, id, key, body FROM central_rows WHERE state = 'set_aside' AND format <= ?1 LIMIT ?2",
        )?
        .query_map(params![CENTRAL_FORMAT, RETRIED_MAX], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut keys = BTreeSet::new();
    for (name, id, mut key, body) in rows {
        let Some(table) = CentralTable::called(&name) else { continue };
        if key.is_empty() {
            let Ok(read) = key_of(table, &body) else { continue };
            let sql = "UPDATE central_rows SET key = ?3 WHERE table_name = ?1 AND id = ?2";
            connection.execute(sql, params![name, id, read])?;
            key = read;
        }
        keys.insert((table, key));
    }
    let mut intake = Intake::default();
    settle_all(connection, keys.into_iter().collect(), now, &mut intake)?;
    Ok(json!(intake))
}

/// Why a row cannot be used.
enum Unusable {
    /// It names a row that is not here.
    Waits {
        table: CentralTable,
        key: String,
    },
    Fault(rusqlite::Error),
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        Self::Fault(error)
    }
}

fn in_savepoint(connection: &Connection, work: impl FnOnce() -> Result<(), Unusable>) -> Result<(), Unusable> {
    connection.execute_batch("SAVEPOINT central_row")?;
    let outcome = work();
    if outcome.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK TO central_row")?;
    }
    if !connection.is_autocommit() {
        connection.execute_batch("RELEASE central_row")?;
    }
    outcome
}

fn apply(connection: &Connection, table: CentralTable, body: &str) -> Result<(), Unusable> {
    let mut batch = Catalogue::default();
    match table {
        CentralTable::Categories => batch.categories.push(parsed(body).map_err(refused)?),
        CentralTable::Colors => batch.colors.push(parsed(body).map_err(refused)?),
        CentralTable::Parts => batch.parts.push(parsed(body).map_err(refused)?),
        CentralTable::Relations => batch.relations.push(parsed(body).map_err(refused)?),
        CentralTable::Policies => batch.policies.push(parsed(body).map_err(refused)?),
        CentralTable::Kits => batch.kits.push(parsed(body).map_err(refused)?),
        // Used from where they lie: see `cache`.
        CentralTable::Recipes | CentralTable::Fits => return Ok(()),
        CentralTable::Assignments => {
            let assignment: CentralAssignment = parsed(body).map_err(refused)?;
            let sha256 = assignment
                .recipe_sha256
                .ok_or_else(|| refused("it names a recipe that is not this site's".to_owned()))?;
            return require(connection, CentralTable::Recipes, &sha256.to_string());
        }
    }
    check_names(connection, &batch)?;
    Ok(catalogue::import(connection, &batch)?)
}

/// A foreign key that is checked at COMMIT would fail the whole group of commits: look before.
fn check_names(connection: &Connection, batch: &Catalogue) -> Result<(), Unusable> {
    let category = |code: &String| require(connection, CentralTable::Categories, code);
    let part = |number: &String| require(connection, CentralTable::Parts, number);
    batch.categories.iter().filter_map(|category| category.parent_code.as_ref()).try_for_each(category)?;
    batch.parts.iter().filter_map(|part| part.category_code.as_ref()).try_for_each(category)?;
    batch.relations.iter().flat_map(|r| [&r.part_number, &r.related_part_number]).try_for_each(part)?;
    for line in batch.kits.iter().flat_map(|kit| &kit.lines) {
        part(&line.part_number)?;
        if let Some(color) = line.color_id {
            require(connection, CentralTable::Colors, &color.to_string())?;
        }
    }
    Ok(())
}

fn require(connection: &Connection, table: CentralTable, key: &str) -> Result<(), Unusable> {
    let sql = match table {
        CentralTable::Categories => "SELECT 1 FROM categories WHERE code = ?1",
        CentralTable::Colors => "SELECT 1 FROM colors WHERE color_id = CAST(?1 AS INTEGER)",
        CentralTable::Parts => "SELECT 1 FROM parts WHERE part_number = ?1",
        _ => "SELECT 1 FROM central_rows WHERE table_name = 'recipes' AND key = ?1 LIMIT 1",
    };
    let found = connection.prepare_cached(sql)?.query_row([key], |_| Ok(())).optional()?;
    found.ok_or_else(|| Unusable::Waits { table, key: key.to_owned() })
}

/// Take back what a row made; what other rows still name stays.
fn withdraw(connection: &Connection, table: CentralTable, key: &str, now: Timestamp) -> rusqlite::Result<()> {
    match table {
        CentralTable::Categories => connection.execute(
            "DELETE FROM categories WHERE code = ?1 AND NOT EXISTS (SELECT 1 FROM parts WHERE category_code = ?1)
                AND NOT EXISTS (SELECT 1 FROM categories c WHERE c.parent_code = ?1)",
            [key],
        ),
        CentralTable::Colors => connection.execute(
            "DELETE FROM colors WHERE color_id = CAST(?1 AS INTEGER)
                AND NOT EXISTS (SELECT 1 FROM kit_parts k WHERE k.color_id = colors.color_id)",
            [key],
        ),
        CentralTable::Parts => connection.execute(
            "INSERT INTO withdrawn_parts SELECT part_number, ?2 FROM parts WHERE part_number = ?1
             ON CONFLICT (part_number) DO NOTHING",
            params![key, now.as_micros()],
        ),
        CentralTable::Relations => connection
            .execute("DELETE FROM part_relations WHERE part_number || ' ~ ' || related_part_number = ?1", [key]),
        CentralTable::Policies => {
            connection.execute("DELETE FROM access_policies WHERE subject_kind || ' ' || subject = ?1", [key])
        }
        CentralTable::Kits => {
            connection.execute("DELETE FROM kit_parts WHERE kit_code = ?1", [key])?;
            connection.execute("DELETE FROM kits WHERE kit_code = ?1", [key])
        }
        CentralTable::Recipes | CentralTable::Assignments | CentralTable::Fits => Ok(0),
    }
    .map(drop)
}

/// Entries of a local import that would change what comes from the centre, in words.
pub(super) fn conflicts(connection: &Connection, batch: &Catalogue) -> rusqlite::Result<Vec<String>> {
    fn differing<T: DeserializeOwned + PartialEq>(
        connection: &Connection,
        (table, what): (CentralTable, &str),
        entries: &[T],
        key: impl Fn(&T) -> String,
        found: &mut Vec<String>,
    ) -> rusqlite::Result<()> {
        for entry in entries {
            let key = key(entry);
            let body: Option<String> = connection
                .prepare_cached(
                    "SELECT body FROM central_rows WHERE table_name = ?1 AND key = ?2 AND state <> 'shadowed'",
                )?
                .query_row([table.name(), &key], |row| row.get(0))
                .optional()?;
            if body.is_some_and(|body| serde_json::from_str::<T>(&body).ok().as_ref() != Some(entry)) {
                found.push(format!("{what} `{key}`"));
            }
        }
        Ok(())
    }
    use CentralTable as T;
    let mut found = Vec::new();
    differing(connection, (T::Categories, "category"), &batch.categories, |c| c.code.clone(), &mut found)?;
    differing(connection, (T::Colors, "colour"), &batch.colors, |c| c.color_id.to_string(), &mut found)?;
    differing(connection, (T::Parts, "part"), &batch.parts, |p| p.part_number.clone(), &mut found)?;
    differing(connection, (T::Relations, "pair"), &batch.relations, relation_key, &mut found)?;
    differing(connection, (T::Policies, "policy of"), &batch.policies, policy_key, &mut found)?;
    differing(connection, (T::Kits, "kit"), &batch.kits, |k| k.kit_code.clone(), &mut found)?;
    Ok(found)
}

/// Refuse a local import that would change what comes from the centre.
pub(super) fn refuse_conflicts(connection: &Connection, batch: &Catalogue) -> rusqlite::Result<()> {
    let found = conflicts(connection, batch)?;
    if found.is_empty() {
        return Ok(());
    }
    let (shown, more) = (found.iter().take(5).cloned().collect::<Vec<_>>().join(", "), found.len().saturating_sub(5));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(refused(format!("{shown}{more} came from the centre and would change; change it there with `loupe publish`")))
}
