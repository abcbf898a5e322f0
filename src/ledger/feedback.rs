//! Feedback and actions: what people think of inspections and of the site, and what they did.
//!
//! Invariants: rows are only appended, each with its outbox entry; of the actions of one inspection the last says how it
//! stands. Written by the writer's thread, inside its transaction, so nothing here reads more than a row by its key.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::{Value, json};
use uuid::Uuid;

use super::LedgerError;
use super::operators::signer;
use super::orders::check_feedback_order;
use super::reader::LedgerReader;
use super::reviews::{no_item, refused};
use super::rows::enqueue_single;
use crate::failpoint;
use crate::limits::REVIEW_WORD_CHARS_MAX;
use crate::types::{ActionResult, ActionTaken, Feedback, FeedbackOrder, FeedbackType, InspectionId, Timestamp};

/// Columns of a feedback, in the order [`read_feedback`] wants them. A complaint is open until the last action of its
/// inspection that followed it says `resolved`.
const FEEDBACK: &str = "SELECT f.id, f.occurred_at, f.inspection_id, i.code, f.ordinal, f.feedback_type, f.rating,
        f.expected_severity, f.notes, f.author, f.operator_id,
        f.feedback_type IN ('false_positive', 'missed_defect', 'severity_wrong') AND coalesce((SELECT a.action_result
            FROM action_logs a WHERE a.inspection_id = f.inspection_id AND a.occurred_at >= f.occurred_at
            ORDER BY a.seq DESC LIMIT 1), '') <> 'resolved'
    FROM feedback f LEFT JOIN inspections i ON i.id = f.inspection_id";

/// Columns of an action, in the order [`read_action`] wants them.
const ACTION: &str = "SELECT a.id, a.occurred_at, a.inspection_id, i.code, a.action_taken, a.action_result, a.notes,
        a.action_by, a.operator_id
    FROM action_logs a JOIN inspections i ON i.id = a.inspection_id";

/// Do what `order` says; answers with the feedback or action. On an error the caller rolls back.
pub(super) fn apply(connection: &Connection, order: &FeedbackOrder, now: Timestamp) -> rusqlite::Result<Value> {
    check_feedback_order(order).map_err(refused)?;
    match order {
        FeedbackOrder::Say { .. } => say(connection, order, now),
        FeedbackOrder::Act { .. } => act(connection, order, now),
    }
}

/// What feedback is about.
#[derive(Debug)]
struct Subject {
    inspection_id: [u8; 16],
    captured_at: i64,
    /// Position and id.
    item: Option<(u32, [u8; 16])>,
}

fn say(connection: &Connection, order: &FeedbackOrder, now: Timestamp) -> rusqlite::Result<Value> {
    let FeedbackOrder::Say { subject: name, feedback_type, rating, expected_severity, notes, by } = order else {
        return Ok(Value::Null);
    };
    let signer = signer(connection, by)?;
    let subject = name.as_deref().map(|name| subject(connection, name)).transpose()?;
    let (kind, subject_id) = match &subject {
        None => ("site", None),
        Some(Subject { item: None, inspection_id, .. }) => ("inspection", Some(*inspection_id)),
        Some(Subject { item: Some((_, id)), .. }) => ("item", Some(*id)),
    };
    let id = Uuid::now_v7();
    connection
        .prepare_cached(
            "INSERT INTO feedback (id, occurred_at, subject_kind, subject_id, subject_at, inspection_id, ordinal,
                feedback_type, rating, expected_severity, notes, author, operator_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute(params![
            id.as_bytes(),
            now.as_micros(),
            kind,
            subject_id,
            subject.as_ref().map(|subject| subject.captured_at),
            subject.as_ref().map(|subject| subject.inspection_id),
            subject.as_ref().and_then(|subject| subject.item).map(|(ordinal, _)| ordinal),
            feedback_type.as_str(),
            rating,
            expected_severity,
            notes.as_deref().map(str::trim),
            signer.name,
            signer.operator_id.map(|id| *id.as_bytes()),
        ])?;
    failpoint::hit("ledger.remark.half");
    enqueue_single(connection, "feedback", id, now)?;
    let stored = connection.query_row(&format!("{FEEDBACK} WHERE f.id = ?1"), [id.as_bytes()], read_feedback)?;
    Ok(json!(stored))
}

fn act(connection: &Connection, order: &FeedbackOrder, now: Timestamp) -> rusqlite::Result<Value> {
    let FeedbackOrder::Act { inspection, action_taken, action_result, notes, by } = order else {
        return Ok(Value::Null);
    };
    let signer = signer(connection, by)?;
    let subject = subject(connection, inspection)?;
    if subject.item.is_some() {
        return Err(refused(
            "an action is taken about an inspection as a whole; leave out the item's position".to_owned(),
        ));
    }
    let id = Uuid::now_v7();
    connection
        .prepare_cached(
            "INSERT INTO action_logs (id, occurred_at, inspection_id, inspection_at, action_taken, action_result, notes,
                action_by, operator_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            id.as_bytes(),
            now.as_micros(),
            subject.inspection_id,
            subject.captured_at,
            action_taken.trim(),
            action_result.as_str(),
            notes.as_deref().map(str::trim),
            signer.name,
            signer.operator_id.map(|id| *id.as_bytes()),
        ])?;
    failpoint::hit("ledger.remark.half");
    enqueue_single(connection, "action_logs", id, now)?;
    let stored = connection.query_row(&format!("{ACTION} WHERE a.id = ?1"), [id.as_bytes()], read_action)?;
    Ok(json!(stored))
}

/// An inspection's code or id, or either with `/` and an item's position.
fn subject(connection: &Connection, text: &str) -> rusqlite::Result<Subject> {
    let unknown = || {
        let text: String = text.chars().filter(|c| !c.is_control()).take(REVIEW_WORD_CHARS_MAX).collect();
        refused(format!(
            "no inspection is called `{text}`; give a code such as INS-20261121-0001, with /0 for its first item"
        ))
    };
    let (name, ordinal) = match text.trim().split_once('/') {
        None => (text.trim(), None),
        Some((name, ordinal)) => (name, Some(ordinal.parse::<u32>().map_err(|_| unknown())?)),
    };
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let found: Option<([u8; 16], i64)> = match name.parse::<Uuid>() {
        Ok(id) => connection
            .prepare_cached("SELECT id, captured_at FROM inspections WHERE id = ?1")?
            .query_row([id.as_bytes()], read)
            .optional()?,
        Err(_) => connection
            .prepare_cached("SELECT id, captured_at FROM inspections WHERE code = ?1")?
            .query_row([name], read)
            .optional()?,
    };
    let (inspection_id, captured_at) = found.ok_or_else(unknown)?;
    let item = match ordinal {
        None => None,
        Some(ordinal) => {
            let id: Option<[u8; 16]> = connection
                .prepare_cached("SELECT id FROM items WHERE inspection_id = ?1 AND ordinal = ?2")?
                .query_row(params![inspection_id, ordinal], |row| row.get(0))
                .optional()?;
            match id {
                Some(id) => Some((ordinal, id)),
                None => return Err(no_item(connection, Uuid::from_bytes(inspection_id), ordinal)?),
            }
        }
    };
    Ok(Subject { inspection_id, captured_at, item })
}

fn unreadable(column: usize) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(column, "feedback".to_owned(), rusqlite::types::Type::Text)
}

fn read_feedback(row: &Row<'_>) -> rusqlite::Result<Feedback> {
    let feedback_type: String = row.get(5)?;
    Ok(Feedback {
        id: Uuid::from_bytes(row.get(0)?),
        occurred_at: Timestamp::from_micros(row.get(1)?),
        inspection_id: row.get::<_, Option<[u8; 16]>>(2)?.map(|id| InspectionId(Uuid::from_bytes(id))),
        code: row.get(3)?,
        ordinal: row.get(4)?,
        feedback_type: FeedbackType::parse(&feedback_type).ok_or_else(|| unreadable(5))?,
        rating: row.get(6)?,
        expected_severity: row.get(7)?,
        notes: row.get(8)?,
        author: row.get(9)?,
        operator_id: row.get::<_, Option<[u8; 16]>>(10)?.map(Uuid::from_bytes),
        is_open: row.get(11)?,
    })
}

fn read_action(row: &Row<'_>) -> rusqlite::Result<ActionTaken> {
    let action_result: String = row.get(5)?;
    Ok(ActionTaken {
        id: Uuid::from_bytes(row.get(0)?),
        occurred_at: Timestamp::from_micros(row.get(1)?),
        inspection_id: InspectionId(Uuid::from_bytes(row.get(2)?)),
        code: row.get(3)?,
        action_taken: row.get(4)?,
        action_result: ActionResult::parse(&action_result).ok_or_else(|| unreadable(5))?,
        notes: row.get(6)?,
        action_by: row.get(7)?,
        operator_id: row.get::<_, Option<[u8; 16]>>(8)?.map(Uuid::from_bytes),
    })
}

impl LedgerReader {
    /// The last `count` feedbacks, newest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn feedback(&self, count: usize) -> Result<Vec<Feedback>, LedgerError> {
        let limit = i64::try_from(count).unwrap_or(i64::MAX);
        self.list(&format!("{FEEDBACK} ORDER BY f.seq DESC LIMIT ?1"), params![limit], read_feedback)
    }

    /// The last `count` actions, newest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn actions_taken(&self, count: usize) -> Result<Vec<ActionTaken>, LedgerError> {
        let limit = i64::try_from(count).unwrap_or(i64::MAX);
        self.list(&format!("{ACTION} ORDER BY a.seq DESC LIMIT ?1"), params![limit], read_action)
    }
}
