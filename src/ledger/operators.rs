//! The register of people: who may sign reviews, feedback and actions here.
//!
//! Invariants: a change is a further version, nothing is edited; of the current versions no two bear the same name, in
//! whatever case, retired ones included, so that a name says who it is. While nobody is active every name is free.
//! Written by the writer's thread, inside its transaction, each version with its outbox entry.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::{Value, json};
use uuid::Uuid;

use super::LedgerError;
use super::orders::check_person_order;
use super::reader::LedgerReader;
use super::reviews::refused;
use super::rows::enqueue_single;
use super::store;
use crate::failpoint;
use crate::limits::PEOPLE_MAX;
use crate::types::{Person, PersonOrder, Role, Timestamp, username_key};

const PERSON: &str =
    "SELECT operator_id, version, username, full_name, role, is_active, changed_at, changed_by FROM current_operators";

/// Who signs something.
#[derive(Debug)]
pub(super) struct Signer {
    /// As registered, where people are.
    pub name: String,
    pub operator_id: Option<Uuid>,
}

/// Whoever signs as `name`: anybody while nobody is registered and active, otherwise only those who are.
pub(super) fn signer(connection: &Connection, name: &str) -> rusqlite::Result<Signer> {
    let is_in_use: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM current_operators WHERE is_active = 1)")?
        .query_row([], |row| row.get(0))?;
    if !is_in_use {
        return Ok(Signer { name: name.trim().to_owned(), operator_id: None });
    }
    match find(connection, name)? {
        Some(person) if person.is_active => Ok(Signer { name: person.username, operator_id: Some(person.operator_id) }),
        Some(person) => Err(refused(format!(
            "`{}` has retired and may sign nothing; `loupe people add {}` brings the person back",
            person.username, person.username
        ))),
        None => Err(refused(format!(
            "nobody registered here is called `{}`; see `loupe people list`, or register the person with \
             `loupe people add NAME --author YOU`",
            name.trim()
        ))),
    }
}

/// Do what `order` says; answers with the person. On an error the caller rolls back.
pub(super) fn apply(connection: &Connection, order: &PersonOrder, now: Timestamp) -> rusqlite::Result<Value> {
    check_person_order(order).map_err(refused)?;
    let person = match order {
        PersonOrder::Add { username, full_name, role, by } => {
            let by = signer(connection, by)?;
            let found = find(connection, username)?;
            added(connection, found, (username, full_name.as_deref()), *role, by.name)?
        }
        PersonOrder::Rename { username, new_username, full_name, by } => {
            let by = signer(connection, by)?;
            let person = known(connection, username)?;
            renamed(connection, person, (new_username.as_deref(), full_name.as_deref()), by.name)?
        }
        PersonOrder::Retire { username, by } => {
            let by = signer(connection, by)?;
            let person = known(connection, username)?;
            Person { is_active: false, version: person.version + 1, changed_by: by.name, ..person }
        }
    };
    let person = Person { changed_at: now, ..person };
    insert(connection, &person)?;
    Ok(json!(person))
}

/// Somebody new, or somebody who had retired.
fn added(
    connection: &Connection,
    found: Option<Person>,
    (username, full_name): (&str, Option<&str>),
    role: Role,
    changed_by: String,
) -> rusqlite::Result<Person> {
    let full_name = full_name.map(|name| name.trim().to_owned());
    let username = username.trim().to_owned();
    match found {
        Some(person) if person.is_active => Err(refused(format!(
            "`{}` is registered already, as {}; names are the same in either case",
            person.username,
            person.role.as_str()
        ))),
        Some(person) => Ok(Person {
            version: person.version + 1,
            username,
            full_name: full_name.or_else(|| person.full_name.clone()),
            role,
            is_active: true,
            changed_by,
            ..person
        }),
        None => {
            let count: i64 =
                connection.query_row("SELECT count(*) FROM operators WHERE version = 1", [], |row| row.get(0))?;
            if usize::try_from(count).is_ok_and(|count| count >= PEOPLE_MAX) {
                return Err(refused(format!("{PEOPLE_MAX} people are registered already; retired ones count too")));
            }
            let changed_at = Timestamp::from_micros(0);
            let operator_id = Uuid::now_v7();
            Ok(Person { operator_id, version: 1, username, full_name, role, is_active: true, changed_at, changed_by })
        }
    }
}

fn renamed(
    connection: &Connection,
    person: Person,
    (username, full_name): (Option<&str>, Option<&str>),
    changed_by: String,
) -> rusqlite::Result<Person> {
    let username = username.map_or_else(|| person.username.clone(), |name| name.trim().to_owned());
    let full_name = full_name.map(|name| name.trim().to_owned()).or_else(|| person.full_name.clone());
    if (&username, &full_name) == (&person.username, &person.full_name) {
        return Err(refused(format!("`{username}` is called so already")));
    }
    if let Some(other) = find(connection, &username)?.filter(|other| other.operator_id != person.operator_id) {
        let state = if other.is_active { "registered already" } else { "the name of somebody who has retired" };
        return Err(refused(format!("`{}` is {state}; choose another", other.username)));
    }
    Ok(Person { version: person.version + 1, username, full_name, changed_by, ..person })
}

/// The active person who signs as `username`.
fn known(connection: &Connection, username: &str) -> rusqlite::Result<Person> {
    match find(connection, username)? {
        Some(person) if person.is_active => Ok(person),
        Some(person) => Err(refused(format!(
            "`{}` has retired; `loupe people add {}` brings the person back",
            person.username, person.username
        ))),
        None => {
            Err(refused(format!("nobody registered here is called `{}`; see `loupe people list`", username.trim())))
        }
    }
}

fn find(connection: &Connection, username: &str) -> rusqlite::Result<Option<Person>> {
    connection
        .prepare_cached(&format!("{PERSON} WHERE username_key = ?1"))?
        .query_row([username_key(username)], read_person)
        .optional()
}

fn insert(connection: &Connection, person: &Person) -> rusqlite::Result<()> {
    // The first version names the person.
    let id = if person.version == 1 { person.operator_id } else { Uuid::now_v7() };
    connection
        .prepare_cached(
            "INSERT INTO operators (id, operator_id, version, epoch, changed_at, changed_by, username, username_key,
                full_name, role, is_active)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            id.as_bytes(),
            person.operator_id.as_bytes(),
            person.version,
            store::read_meta(connection)?.epoch,
            person.changed_at.as_micros(),
            person.changed_by,
            person.username,
            username_key(&person.username),
            person.full_name,
            person.role.as_str(),
            person.is_active,
        ])?;
    failpoint::hit("ledger.operator.half");
    enqueue_single(connection, "operators", id, person.changed_at)
}

fn read_person(row: &Row<'_>) -> rusqlite::Result<Person> {
    let role: String = row.get(4)?;
    let unreadable = || rusqlite::Error::InvalidColumnType(4, "operators.role".to_owned(), rusqlite::types::Type::Text);
    Ok(Person {
        operator_id: Uuid::from_bytes(row.get(0)?),
        version: row.get(1)?,
        username: row.get(2)?,
        full_name: row.get(3)?,
        role: Role::parse(&role).ok_or_else(unreadable)?,
        is_active: row.get(5)?,
        changed_at: Timestamp::from_micros(row.get(6)?),
        changed_by: row.get(7)?,
    })
}

impl LedgerReader {
    /// The people registered here by name; the retired ones as well where `all`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn people(&self, all: bool) -> Result<Vec<Person>, LedgerError> {
        self.list(&format!("{PERSON} WHERE ?1 OR is_active = 1 ORDER BY username_key"), params![all], read_person)
    }
}
