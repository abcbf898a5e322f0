//! Reviews and what follows from them: learned templates, confusions, parts that the catalogue lacks.
//!
//! Invariants: rows are only appended; of several reviews of one subject the last one wins, so a template is searched
//! exactly while its review is the last of its subject. Written by the writer's thread, inside its transaction.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::LedgerError;
use super::operators::signer;
use super::reader::LedgerReader;
use super::rows::enqueue_single;
use crate::failpoint;
use crate::limits::DELTA_TEMPLATES_MAX;
use crate::types::{
    BoundingBox, Confusion, Digest, Inspection, InspectionId, LearnedTemplate, Reason, Review, ReviewStatus, Timestamp,
    UnknownPart,
};

/// A review on its way into the ledger.
#[derive(Debug, Clone)]
pub struct NewReview {
    pub inspection_id: InspectionId,
    /// Position of the item; `None`: the whole inspection.
    pub ordinal: Option<u32>,
    pub status: ReviewStatus,
    pub shown_part_id: Option<String>,
    pub corrected_part_id: Option<String>,
    pub corrected_color_id: Option<String>,
    /// With [`ReviewStatus::Pending`]: the review to take back, which must be the last of its subject.
    pub undoes_id: Option<Uuid>,
    pub reviewer: String,
    pub reason: Option<String>,
    /// What is learned from it; its `id` and `review_id` are given here.
    pub template: Option<LearnedTemplate>,
}

/// Columns of a review, in the order [`read_review`] wants them.
const REVIEW: &str = "SELECT r.id, r.occurred_at, r.inspection_id, i.code, r.ordinal, r.review_status, r.shown_part_id,
        r.corrected_part_id, r.corrected_color_id, r.undoes_id, r.reviewer, r.reason,
        NOT EXISTS (SELECT 1 FROM reviews l WHERE l.subject_id = r.subject_id AND l.seq > r.seq), d.id, d.frame_sha256
    FROM reviews r JOIN inspections i ON i.id = r.inspection_id LEFT JOIN index_delta d ON d.review_id = r.id";

/// A review that no later one of the same subject replaces, as a condition on `reviews r`.
const STANDS: &str = "NOT EXISTS (SELECT 1 FROM reviews l WHERE l.subject_id = r.subject_id AND l.seq > r.seq)";

/// Write a review with its template and outbox entry. On an error the caller rolls back.
pub(super) fn insert_review(connection: &Connection, review: &NewReview, now: Timestamp) -> rusqlite::Result<Review> {
    let reviewer = signer(connection, &review.reviewer)?.name;
    let id = Uuid::now_v7();
    let inspection = review.inspection_id.0;
    let (kind, subject): (&str, [u8; 16]) = match review.ordinal {
        None => ("inspection", *inspection.as_bytes()),
        Some(ordinal) => {
            let sql = "SELECT id FROM items WHERE inspection_id = ?1 AND ordinal = ?2";
            let found =
                connection.query_row(sql, params![inspection.as_bytes(), ordinal], |row| row.get(0)).optional()?;
            let Some(found) = found else { return Err(no_item(connection, inspection, ordinal)?) };
            ("item", found)
        }
    };
    if let Some(undone) = review.undoes_id {
        let last: Option<[u8; 16]> = connection
            .query_row("SELECT id FROM reviews WHERE subject_id = ?1 ORDER BY seq DESC LIMIT 1", [subject], |row| {
                row.get(0)
            })
            .optional()?;
        if last != Some(*undone.as_bytes()) {
            return Err(refused("a later review of the same item stands; undo that one".to_owned()));
        }
    }
    let captured_at: Option<i64> = connection
        .query_row("SELECT captured_at FROM inspections WHERE id = ?1", [inspection.as_bytes()], |row| row.get(0))
        .optional()?;
    let captured_at = captured_at.ok_or_else(|| refused("there is no such inspection".to_owned()))?;
    connection
        .prepare_cached(
            "INSERT INTO reviews (id, occurred_at, subject_kind, subject_id, subject_at, inspection_id, ordinal,
                review_status, shown_part_id, corrected_part_id, corrected_color_id, undoes_id, reviewer, reason)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
        )?
        .execute(params![
            id.as_bytes(),
            now.as_micros(),
            kind,
            subject,
            captured_at,
            inspection.as_bytes(),
            review.ordinal,
            review.status.as_str(),
            review.shown_part_id,
            review.corrected_part_id,
            review.corrected_color_id,
            review.undoes_id.map(|id| *id.as_bytes()),
            reviewer,
            review.reason,
        ])?;
    failpoint::hit("ledger.review.half");
    if let Some(template) = &review.template {
        insert_template(connection, id, template)?;
    }
    enqueue_single(connection, "reviews", id, now)?;
    connection.query_row(&format!("{REVIEW} WHERE r.id = ?1"), [id.as_bytes()], read_review)
}

/// Why there is no row of an item: it expired, or there never was one. The record outlives the rows.
pub(super) fn no_item(connection: &Connection, inspection: Uuid, ordinal: u32) -> rusqlite::Result<rusqlite::Error> {
    let sql = "SELECT i.code FROM inspections i WHERE i.id = ?1 AND EXISTS (
            SELECT 1 FROM json_each(i.record, '$.items') t WHERE json_extract(t.value, '$.ordinal') = ?2)";
    let code: Option<String> =
        connection.query_row(sql, params![inspection.as_bytes(), ordinal], |row| row.get(0)).optional()?;
    Ok(refused(match code {
        Some(code) => format!(
            "the detail of {code} has expired (storage.detail_days after it was delivered), so its item {ordinal} can \
             not be reviewed by itself any more; confirm the inspection as a whole, as {code}"
        ),
        None => format!("the inspection has no item {ordinal}"),
    }))
}

fn insert_template(connection: &Connection, review_id: Uuid, template: &LearnedTemplate) -> rusqlite::Result<()> {
    let count: i64 = connection.query_row(
        &format!("SELECT count(*) FROM index_delta d JOIN reviews r ON r.id = d.review_id WHERE d.index_name = ?1 AND {STANDS}"),
        [&template.index],
        |row| row.get(0),
    )?;
    if usize::try_from(count).is_ok_and(|count| count >= DELTA_TEMPLATES_MAX) {
        let advice = "build the index with --with-delta, then undo reviews that it holds";
        return Err(refused(format!("{DELTA_TEMPLATES_MAX} learned templates are searched already; {advice}")));
    }
    let bytes: Vec<u8> = template.vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    let BoundingBox { x1, y1, x2, y2 } = template.crop;
    connection
        .prepare_cached(
            "INSERT INTO index_delta (review_id, index_name, part_id, color_id, embedding_model_sha256, input_px,
                crop_margin_ratio, embedding, inspection_id, ordinal, frame_sha256, artifact, crop)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute(params![
            review_id.as_bytes(),
            template.index,
            template.part_id,
            template.color_id,
            template.model_sha256.as_bytes(),
            template.input_px,
            template.crop_margin_ratio,
            bytes,
            template.inspection_id.0.as_bytes(),
            template.ordinal,
            template.frame_sha256.as_bytes(),
            template.artifact,
            serde_json::json!([x1, y1, x2, y2]).to_string(),
        ])?;
    Ok(())
}

/// Count the unknown items of an inspection that is being committed.
pub(super) fn count_unknowns(connection: &Connection, inspection: &Inspection) -> rusqlite::Result<()> {
    for item in inspection.items.iter().filter(|item| item.reasons.contains(&Reason::PartUnknown)) {
        let Some(matched) = &item.matched else { continue };
        connection
            .prepare_cached(
                "INSERT INTO unknown_part_logs VALUES (?1, 1, ?2, ?3, ?3, ?4, ?5)
                 ON CONFLICT (best_part_id) DO UPDATE SET detected_count = detected_count + 1,
                    nearest_similarity = max(nearest_similarity, excluded.nearest_similarity),
                    first_detected_at = min(first_detected_at, excluded.first_detected_at),
                    last_detected_at = max(last_detected_at, excluded.last_detected_at),
                    example_inspection_id = excluded.example_inspection_id, example_ordinal = excluded.example_ordinal",
            )?
            .execute(params![
                matched.part_id,
                matched.similarity,
                inspection.captured_at.as_micros(),
                inspection.id.0.as_bytes(),
                item.ordinal,
            ])?;
    }
    Ok(())
}

/// An error of the row, in words, which rolls its savepoint back.
pub(super) fn refused(words: String) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(words.into())
}

fn read_review(row: &Row<'_>) -> rusqlite::Result<Review> {
    let status: String = row.get(5)?;
    let frame_sha256: Option<[u8; 32]> = row.get(14)?;
    Ok(Review {
        id: Uuid::from_bytes(row.get(0)?),
        occurred_at: Timestamp::from_micros(row.get(1)?),
        inspection_id: InspectionId(Uuid::from_bytes(row.get(2)?)),
        code: row.get(3)?,
        ordinal: row.get(4)?,
        status: ReviewStatus::parse(&status).ok_or_else(|| unreadable(5))?,
        shown_part_id: row.get(6)?,
        corrected_part_id: row.get(7)?,
        corrected_color_id: row.get(8)?,
        undoes_id: row.get::<_, Option<[u8; 16]>>(9)?.map(Uuid::from_bytes),
        reviewer: row.get(10)?,
        reason: row.get(11)?,
        is_last: row.get(12)?,
        template: row.get::<_, Option<i64>>(13)?.and_then(|id| u64::try_from(id).ok()),
        frame_sha256: frame_sha256.map(Digest::from_bytes),
    })
}

fn unreadable(column: usize) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(column, "reviews".to_owned(), rusqlite::types::Type::Text)
}

fn read_template(row: &Row<'_>) -> rusqlite::Result<LearnedTemplate> {
    let bytes: Vec<u8> = row.get(8)?;
    let crop: String = row.get(13)?;
    let [x1, y1, x2, y2]: [f32; 4] = serde_json::from_str(&crop).map_err(|_| unreadable(13))?;
    Ok(LearnedTemplate {
        id: u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0),
        review_id: Uuid::from_bytes(row.get(1)?),
        index: row.get(2)?,
        part_id: row.get(3)?,
        color_id: row.get(4)?,
        model_sha256: Digest::from_bytes(row.get(5)?),
        input_px: row.get(6)?,
        crop_margin_ratio: row.get(7)?,
        vector: bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
        inspection_id: InspectionId(Uuid::from_bytes(row.get(9)?)),
        ordinal: row.get(10)?,
        frame_sha256: Digest::from_bytes(row.get(11)?),
        artifact: row.get(12)?,
        crop: BoundingBox::new(x1, y1, x2, y2),
    })
}

impl LedgerReader {
    /// The last `count` reviews, newest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn reviews(&self, count: usize) -> Result<Vec<Review>, LedgerError> {
        let limit = i64::try_from(count).unwrap_or(i64::MAX);
        self.list(&format!("{REVIEW} ORDER BY r.seq DESC LIMIT ?1"), params![limit], read_review)
    }

    /// The review called `id`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn review(&self, id: Uuid) -> Result<Option<Review>, LedgerError> {
        Ok(self.list(&format!("{REVIEW} WHERE r.id = ?1"), params![id.as_bytes()], read_review)?.pop())
    }

    /// The templates that are to be searched now, of all indexes, in the order they were learned.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn learned_templates(&self) -> Result<Vec<LearnedTemplate>, LedgerError> {
        let sql = format!(
            "SELECT d.id, d.review_id, d.index_name, d.part_id, d.color_id, d.embedding_model_sha256, d.input_px,
                d.crop_margin_ratio, d.embedding, d.inspection_id, d.ordinal, d.frame_sha256, d.artifact, d.crop
             FROM index_delta d JOIN reviews r ON r.id = d.review_id WHERE {STANDS} ORDER BY d.id"
        );
        self.list(&sql, params![], read_template)
    }

    /// The review that taught template `id`, also when it was undone.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn review_of_template(&self, id: u64) -> Result<Option<Uuid>, LedgerError> {
        let id = i64::try_from(id).unwrap_or(i64::MAX);
        let read = |row: &Row<'_>| Ok(Uuid::from_bytes(row.get(0)?));
        Ok(self.list("SELECT review_id FROM index_delta WHERE id = ?1", params![id], read)?.pop())
    }

    /// Pairs of parts that the standing reviews found confused, most often first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn confusions(&self) -> Result<Vec<Confusion>, LedgerError> {
        let sql = format!(
            "SELECT shown_part_id, corrected_part_id, count(*), max(occurred_at) FROM reviews r
             WHERE shown_part_id <> corrected_part_id AND {STANDS}
             GROUP BY 1, 2 ORDER BY 3 DESC, 4 DESC, 1, 2"
        );
        self.list(&sql, params![], |row| {
            Ok(Confusion {
                shown_part_id: row.get(0)?,
                true_part_id: row.get(1)?,
                count: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
                last_at: Timestamp::from_micros(row.get(3)?),
            })
        })
    }

    /// Items decided to be unknown, or said so by a person, by the part they look like, most often first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn unknown_parts(&self) -> Result<Vec<UnknownPart>, LedgerError> {
        // A group is merged here, for SQLite leaves open which row of a group with several extremes a plain column is from.
        let sql = "WITH said AS (
                SELECT r.shown_part_id, 1, i.similarity, r.subject_at, r.subject_at, r.inspection_id, r.ordinal
                FROM reviews r JOIN items i ON i.inspection_id = r.inspection_id AND i.id = r.subject_id
                WHERE r.review_status = 'rejected' AND r.corrected_part_id IS NULL AND r.shown_part_id IS NOT NULL
                    AND NOT EXISTS (SELECT 1 FROM reviews later WHERE later.subject_id = r.subject_id AND later.seq > r.seq)
                    AND NOT EXISTS (SELECT 1 FROM json_each(i.reasons) WHERE value = ?1)),
            seen (part_id, count, similarity, first_at, last_at, id, ordinal) AS (
                SELECT best_part_id, detected_count, nearest_similarity, first_detected_at, last_detected_at,
                    example_inspection_id, example_ordinal FROM unknown_part_logs
                UNION ALL SELECT * FROM said)
            SELECT seen.part_id, seen.count, seen.similarity, seen.first_at, seen.last_at, seen.id, i.code, seen.ordinal
            FROM seen JOIN inspections i ON i.id = seen.id ORDER BY seen.last_at";
        let rows = self.list(sql, params![Reason::PartUnknown.code()], |row| {
            Ok(UnknownPart {
                best_part_id: row.get(0)?,
                detected_count: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
                nearest_similarity: row.get::<_, Option<f32>>(2)?.unwrap_or(-1.0),
                first_detected_at: Timestamp::from_micros(row.get(3)?),
                last_detected_at: Timestamp::from_micros(row.get(4)?),
                example_inspection_id: InspectionId(Uuid::from_bytes(row.get(5)?)),
                example_code: row.get(6)?,
                example_ordinal: row.get(7)?,
            })
        })?;
        let mut of_part: BTreeMap<String, UnknownPart> = BTreeMap::new();
        for row in rows {
            let merged = match of_part.remove(&row.best_part_id) {
                None => row,
                Some(before) => UnknownPart {
                    detected_count: before.detected_count + row.detected_count,
                    nearest_similarity: before.nearest_similarity.max(row.nearest_similarity),
                    first_detected_at: before.first_detected_at.min(row.first_detected_at),
                    ..row
                },
            };
            of_part.insert(merged.best_part_id.clone(), merged);
        }
        let mut parts: Vec<UnknownPart> = of_part.into_values().collect();
        parts.sort_by_key(|part| (Reverse(part.detected_count), Reverse(part.last_detected_at)));
        Ok(parts)
    }

    /// The inspection called `code`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn id_of_code(&self, code: &str) -> Result<Option<InspectionId>, LedgerError> {
        let read = |row: &Row<'_>| Ok(InspectionId(Uuid::from_bytes(row.get(0)?)));
        Ok(self.list("SELECT id FROM inspections WHERE code = ?1", params![code], read)?.pop())
    }

    /// The inspection and position of the item called `id`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn item(&self, id: Uuid) -> Result<Option<(InspectionId, u32)>, LedgerError> {
        let read = |row: &Row<'_>| Ok((InspectionId(Uuid::from_bytes(row.get(0)?)), row.get(1)?));
        let sql = "SELECT inspection_id, ordinal FROM items WHERE id = ?1";
        Ok(self.list(sql, params![id.as_bytes()], read)?.pop())
    }

    /// Inspections after row `after_row` (0: from the first) in the order of their commits, each with its row; at most
    /// `count`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn inspections_from(&self, after_row: i64, count: usize) -> Result<Vec<(i64, Inspection)>, LedgerError> {
        let limit = i64::try_from(count).unwrap_or(i64::MAX);
        let sql = "SELECT rowid, record FROM inspections WHERE rowid > ?1 ORDER BY rowid LIMIT ?2";
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?));
        let rows = self.list(sql, params![after_row, limit], read)?;
        rows.into_iter().map(|(at, record)| Ok((at, super::reader::parse(&record)?))).collect()
    }

    pub(super) fn list<T>(
        &self,
        sql: &str,
        values: &[&dyn rusqlite::ToSql],
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LedgerError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_map(values, read)?.collect())
            .map_err(LedgerError::sqlite(&self.path))
    }
}
