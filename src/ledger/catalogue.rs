//! The device's copy of the catalogue: one import is one transaction; a row changes only when what it says does.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde_json::{Value, json};
use uuid::Uuid;

use super::LedgerError;
use super::reader::LedgerReader;
use super::reviews::refused;
use crate::types::{
    AccessPolicy, Catalogue, Category, Color, Kit, KitLine, Part, PartCard, PartRelation, QualityLevel, Timestamp,
};

/// A part's move to another quality level.
#[derive(Debug, Clone, PartialEq)]
pub struct QualityChange {
    pub part_number: String,
    pub level: QualityLevel,
    pub by: String,
    pub reason: String,
    /// What was checked, for the record.
    pub details: Value,
}

/// Write everything of `batch`. On an error the caller rolls back, so nothing of it stays.
pub(super) fn import(connection: &Connection, batch: &Catalogue) -> rusqlite::Result<()> {
    for Category { code, name_en, name_ko, parent_code } in &batch.categories {
        connection
            .prepare_cached(
                "INSERT INTO categories VALUES (?1, ?2, ?3, ?4, 1) ON CONFLICT (code) DO UPDATE SET
                    name_en = excluded.name_en, name_ko = excluded.name_ko, parent_code = excluded.parent_code,
                    version = version + 1
                 WHERE (name_en, name_ko, parent_code) IS NOT (excluded.name_en, excluded.name_ko, excluded.parent_code)",
            )?
            .execute(params![code, name_en, name_ko, parent_code])?;
    }
    for Color { color_id, name, name_ko, rgb, is_transparent } in &batch.colors {
        connection
            .prepare_cached(
                "INSERT INTO colors VALUES (?1, ?2, ?3, ?4, ?5, 1) ON CONFLICT (color_id) DO UPDATE SET
                    name = excluded.name, name_ko = excluded.name_ko, rgb = excluded.rgb,
                    is_transparent = excluded.is_transparent, version = version + 1
                 WHERE (name, name_ko, rgb, is_transparent)
                    IS NOT (excluded.name, excluded.name_ko, excluded.rgb, excluded.is_transparent)",
            )?
            .execute(params![color_id, name, name_ko, rgb, is_transparent])?;
    }
    for part in &batch.parts {
        import_part(connection, part)?;
    }
    for PartRelation { part_number, related_part_number, similarity } in &batch.relations {
        connection
            .prepare_cached(
                "INSERT INTO part_relations VALUES (?1, ?2, 'similar', ?3)
                 ON CONFLICT (part_number, related_part_number) DO UPDATE SET similarity = excluded.similarity",
            )?
            .execute(params![part_number, related_part_number, similarity])?;
    }
    for AccessPolicy { subject_kind, subject, security_level, allowed_groups } in &batch.policies {
        connection
            .prepare_cached(
                "INSERT INTO access_policies VALUES (?1, ?2, ?3, ?4, 1) ON CONFLICT (subject_kind, subject) DO UPDATE SET
                    security_level = excluded.security_level, allowed_groups = excluded.allowed_groups,
                    version = version + 1
                 WHERE (security_level, allowed_groups) IS NOT (excluded.security_level, excluded.allowed_groups)",
            )?
            .execute(params![subject_kind, subject, security_level, json!(allowed_groups).to_string()])?;
    }
    batch.kits.iter().try_for_each(|kit| import_kit(connection, kit))
}

fn import_part(connection: &Connection, part: &Part) -> rusqlite::Result<()> {
    let old_group: Option<String> = connection
        .prepare_cached("SELECT group_code FROM confusion_group_members WHERE part_number = ?1")?
        .query_row([&part.part_number], |row| row.get(0))
        .optional()?;
    let moved = old_group != part.confusion_group;
    connection.prepare_cached("DELETE FROM withdrawn_parts WHERE part_number = ?1")?.execute([&part.part_number])?;
    connection
        .prepare_cached(
            "INSERT INTO parts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'bronze', 1)
             ON CONFLICT (part_number) DO UPDATE SET name_en = excluded.name_en, name_ko = excluded.name_ko,
                category_code = excluded.category_code, length_mm = excluded.length_mm, width_mm = excluded.width_mm,
                height_mm = excluded.height_mm, weight_g = excluded.weight_g, version = version + 1
             WHERE ?9 OR (name_en, name_ko, category_code, length_mm, width_mm, height_mm, weight_g)
                IS NOT (excluded.name_en, excluded.name_ko, excluded.category_code, excluded.length_mm,
                    excluded.width_mm, excluded.height_mm, excluded.weight_g)",
        )?
        .execute(params![
            part.part_number,
            part.name_en,
            part.name_ko,
            part.category_code,
            part.length_mm,
            part.width_mm,
            part.height_mm,
            part.weight_g,
            moved,
        ])?;
    if moved {
        connection.execute("DELETE FROM confusion_group_members WHERE part_number = ?1", [&part.part_number])?;
        if let Some(group) = &part.confusion_group {
            connection.execute("INSERT INTO confusion_groups VALUES (?1) ON CONFLICT DO NOTHING", [group])?;
            connection.execute("INSERT INTO confusion_group_members VALUES (?1, ?2)", [&part.part_number, group])?;
        }
    }
    Ok(())
}

fn import_kit(connection: &Connection, kit: &Kit) -> rusqlite::Result<()> {
    if read_kit(connection, &kit.kit_code)?.as_ref() == Some(kit) {
        return Ok(());
    }
    connection.execute(
        "INSERT INTO kits VALUES (?1, ?2, 1)
         ON CONFLICT (kit_code) DO UPDATE SET name = excluded.name, version = version + 1",
        params![kit.kit_code, kit.name],
    )?;
    connection.execute("DELETE FROM kit_parts WHERE kit_code = ?1", [&kit.kit_code])?;
    for (ordinal, line) in kit.lines.iter().enumerate() {
        connection.prepare_cached("INSERT INTO kit_parts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
            kit.kit_code,
            i64::try_from(ordinal).unwrap_or(i64::MAX),
            line.part_number,
            line.color_id,
            line.quantity,
            line.is_spare,
            line.alternate_group,
        ])?;
    }
    Ok(())
}

/// The kit called `code`, its lines in their order.
pub(super) fn read_kit(connection: &Connection, code: &str) -> rusqlite::Result<Option<Kit>> {
    let name: Option<String> =
        connection.query_row("SELECT name FROM kits WHERE kit_code = ?1", [code], |row| row.get(0)).optional()?;
    let Some(name) = name else { return Ok(None) };
    let lines = connection
        .prepare_cached(
            "SELECT part_number, color_id, quantity, is_spare, alternate_group FROM kit_parts
             WHERE kit_code = ?1 ORDER BY ordinal",
        )?
        .query_map([code], |row| {
            Ok(KitLine {
                part_number: row.get(0)?,
                color_id: row.get(1)?,
                quantity: row.get(2)?,
                is_spare: row.get(3)?,
                alternate_group: row.get(4)?,
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(Some(Kit { kit_code: code.to_owned(), name, lines }))
}

pub(super) fn change_quality(
    connection: &Connection,
    change: &QualityChange,
    now: Timestamp,
) -> rusqlite::Result<Value> {
    let before: Option<String> = connection
        .query_row("SELECT quality_level FROM parts WHERE part_number = ?1", [&change.part_number], |row| row.get(0))
        .optional()?;
    let before = before.ok_or_else(|| refused(format!("part `{}` is not in the catalogue", change.part_number)))?;
    let level = change.level.as_str();
    if before == level {
        return Err(refused(format!("part `{}` is {level} already", change.part_number)));
    }
    connection
        .execute("UPDATE parts SET quality_level = ?2 WHERE part_number = ?1", params![change.part_number, level])?;
    connection.execute(
        "INSERT INTO data_quality_events VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            Uuid::now_v7().as_bytes(),
            now.as_micros(),
            change.part_number,
            before,
            level,
            change.by,
            change.reason,
            change.details.to_string(),
        ],
    )?;
    Ok(json!({ "part_number": change.part_number, "previous_level": before, "new_level": level }))
}

/// Not withdrawn by the centre.
const KEPT: &str = "NOT EXISTS (SELECT 1 FROM withdrawn_parts w WHERE w.part_number = p.part_number)";
const CARD: &str = "SELECT p.part_number, p.name_en, p.name_ko, p.category_code, p.length_mm, p.width_mm, p.height_mm,
        p.weight_g, g.group_code, c.name_en, c.name_ko, p.quality_level, p.version, a.security_level, a.allowed_groups
    FROM parts p LEFT JOIN categories c ON c.code = p.category_code
        LEFT JOIN confusion_group_members g ON g.part_number = p.part_number
        LEFT JOIN access_policies a ON a.subject_kind = 'part' AND a.subject = p.part_number";

fn read_card(row: &Row<'_>) -> rusqlite::Result<PartCard> {
    let level: String = row.get(11)?;
    let groups: Option<String> = row.get(14)?;
    Ok(PartCard {
        part: Part {
            part_number: row.get(0)?,
            name_en: row.get(1)?,
            name_ko: row.get(2)?,
            category_code: row.get(3)?,
            length_mm: row.get(4)?,
            width_mm: row.get(5)?,
            height_mm: row.get(6)?,
            weight_g: row.get(7)?,
            confusion_group: row.get(8)?,
        },
        category_en: row.get(9)?,
        category_ko: row.get(10)?,
        quality_level: QualityLevel::parse(&level).unwrap_or(QualityLevel::ReviewNeeded),
        version: row.get(12)?,
        security_level: row.get(13)?,
        allowed_groups: groups.and_then(|list| serde_json::from_str(&list).ok()).unwrap_or_default(),
    })
}

impl LedgerReader {
    /// All parts by number.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn parts(&self) -> Result<Vec<PartCard>, LedgerError> {
        self.list(&format!("{CARD} WHERE {KEPT} ORDER BY p.part_number"), params![], read_card)
    }

    /// The part called `number`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn part(&self, number: &str) -> Result<Option<PartCard>, LedgerError> {
        Ok(self.list(&format!("{CARD} WHERE p.part_number = ?1 AND {KEPT}"), params![number], read_card)?.pop())
    }

    /// Quality level of each part.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn quality_levels(&self) -> Result<BTreeMap<String, QualityLevel>, LedgerError> {
        let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
        let rows =
            self.list(&format!("SELECT part_number, quality_level FROM parts p WHERE {KEPT}"), params![], read)?;
        Ok(rows.into_iter().filter_map(|(part, level)| Some((part, QualityLevel::parse(&level)?))).collect())
    }

    /// Parts that look like `number`, with their cosine, most alike first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn similar_parts(&self, number: &str) -> Result<Vec<(String, f64)>, LedgerError> {
        let sql = "SELECT iif(part_number = ?1, related_part_number, part_number), similarity FROM part_relations
             WHERE ?1 IN (part_number, related_part_number) ORDER BY 2 DESC";
        self.list(sql, params![number], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// How often people confirmed what was shown as `number`, and how often they said it is something else; the last
    /// review of each item.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn reviewed_counts(&self, number: &str) -> Result<(u64, u64), LedgerError> {
        let sql = "SELECT count(*) FILTER (WHERE r.review_status = 'confirmed'),
                count(*) FILTER (WHERE r.review_status = 'rejected')
             FROM reviews r WHERE r.shown_part_id = ?1 AND r.subject_kind = 'item'
                AND NOT EXISTS (SELECT 1 FROM reviews l WHERE l.subject_id = r.subject_id AND l.seq > r.seq)";
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        let (confirmed, rejected) = self.list(sql, params![number], read)?.pop().unwrap_or((0, 0));
        Ok((u64::try_from(confirmed).unwrap_or(0), u64::try_from(rejected).unwrap_or(0)))
    }

    /// The whole catalogue as imports would write it.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn catalogue(&self) -> Result<Catalogue, LedgerError> {
        let categories =
            self.list("SELECT code, name_en, name_ko, parent_code FROM categories ORDER BY code", params![], |row| {
                Ok(Category { code: row.get(0)?, name_en: row.get(1)?, name_ko: row.get(2)?, parent_code: row.get(3)? })
            })?;
        let colors = self.list(
            "SELECT color_id, name, name_ko, rgb, is_transparent FROM colors ORDER BY color_id",
            params![],
            |row| {
                Ok(Color {
                    color_id: row.get(0)?,
                    name: row.get(1)?,
                    name_ko: row.get(2)?,
                    rgb: row.get(3)?,
                    is_transparent: row.get(4)?,
                })
            },
        )?;
        let relations = self.list(
            "SELECT part_number, related_part_number, similarity FROM part_relations ORDER BY 1, 2",
            params![],
            |row| {
                Ok(PartRelation { part_number: row.get(0)?, related_part_number: row.get(1)?, similarity: row.get(2)? })
            },
        )?;
        Ok(Catalogue {
            categories,
            colors,
            parts: self.parts()?.into_iter().map(|card| card.part).collect(),
            relations,
            policies: self.policies()?,
            kits: self.kits()?,
        })
    }

    /// Who may see what.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn policies(&self) -> Result<Vec<AccessPolicy>, LedgerError> {
        let sql = "SELECT subject_kind, subject, security_level, allowed_groups FROM access_policies ORDER BY 1, 2";
        self.list(sql, params![], |row| {
            let groups: String = row.get(3)?;
            Ok(AccessPolicy {
                subject_kind: row.get(0)?,
                subject: row.get(1)?,
                security_level: row.get(2)?,
                allowed_groups: serde_json::from_str(&groups).unwrap_or_default(),
            })
        })
    }

    /// All kits by code.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn kits(&self) -> Result<Vec<Kit>, LedgerError> {
        let codes: Vec<String> =
            self.list("SELECT kit_code FROM kits ORDER BY kit_code", params![], |row| row.get(0))?;
        codes.iter().filter_map(|code| self.kit(code).transpose()).collect()
    }

    /// The kit called `code`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn kit(&self, code: &str) -> Result<Option<Kit>, LedgerError> {
        read_kit(&self.connection, code).map_err(LedgerError::sqlite(&self.path))
    }
}
