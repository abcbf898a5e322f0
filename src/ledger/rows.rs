//! One inspection as rows: the statements of a commit, run inside the writer's transaction.
//!
//! The family of an inspection (items, map, frame quality, artifacts) shares its `captured_at` and id and is written
//! with it or not at all; with it go the outbox entry and the counter.

use rusqlite::{CachedStatement, Connection, params};
use uuid::Uuid;

use super::{LedgerError, kits, retention, reviews};
use crate::failpoint;
use crate::types::{Digest, Inspection, Item, Timestamp, Verdict};

/// Give `inspection` its code and write its family; its artifacts are on disk. On an error the caller rolls back.
pub(super) fn insert_inspection(
    connection: &Connection,
    inspection: &mut Inspection,
    now: Timestamp,
) -> rusqlite::Result<()> {
    inspection.code = next_code(connection, inspection.captured_at)?;
    insert_root(connection, inspection)?;
    for item in &inspection.items {
        insert_item(connection, inspection, item)?;
    }
    failpoint::hit("ledger.inspection.half");
    insert_anomaly_map(connection, inspection)?;
    insert_frame_qa(connection, inspection)?;
    insert_artifacts(connection, inspection)?;
    reviews::count_unknowns(connection, inspection)?;
    kits::take_tray(connection, inspection, now)?;
    let row_count = 1
        + inspection.items.len()
        + usize::from(inspection.anomaly.is_some())
        + usize::from(inspection.quality.is_some())
        + inspection.artifacts.len();
    cached(
        connection,
        "INSERT INTO outbox (root_table, key_at, key_id, row_count, state, attempts, enqueued_at)
         VALUES ('inspections', ?1, ?2, ?3, 'pending', 0, ?4)",
    )?
    .execute(params![
        inspection.captured_at.as_micros(),
        inspection.id.0.as_bytes(),
        i64::try_from(row_count).unwrap_or(i64::MAX),
        now.as_micros()
    ])?;
    cached(connection, "UPDATE outbox_state SET committed_total = committed_total + 1")?.execute([])?;
    Ok(())
}

/// Put a root without children, written at `at`, into the outbox.
pub(super) fn enqueue_single(connection: &Connection, root: &str, id: Uuid, at: Timestamp) -> rusqlite::Result<()> {
    cached(
        connection,
        "INSERT INTO outbox (root_table, key_at, key_id, row_count, state, attempts, enqueued_at)
         VALUES (?1, ?2, ?3, 1, 'pending', 0, ?2)",
    )?
    .execute(params![root, at.as_micros(), id.as_bytes()])?;
    cached(connection, "UPDATE outbox_state SET committed_total = committed_total + 1")?.execute([])?;
    Ok(())
}

/// Why this one inspection was refused while its group went on.
pub(super) fn classify(source: rusqlite::Error, inspection: &Inspection) -> LedgerError {
    let what = format!("inspection {} of {}", inspection.id, inspection.source);
    match source.sqlite_error() {
        Some(cause) if cause.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY => {
            LedgerError::UnknownProvenance { what, sha256: inspection.provenance_sha256.to_string() }
        }
        _ => LedgerError::Refused { what, source },
    }
}

fn cached<'a>(connection: &'a Connection, sql: &str) -> rusqlite::Result<CachedStatement<'a>> {
    connection.prepare_cached(sql)
}

fn json(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// `INS-YYYYMMDD-NNNN`, the next of the day; the number is durable with the row that bears it.
fn next_code(connection: &Connection, captured_at: Timestamp) -> rusqlite::Result<String> {
    let day = captured_at.local_day();
    // After a restore, numbers that the lost days may have given are skipped.
    let number: i64 = cached(
        connection,
        "INSERT INTO inspection_codes (day, last_number, skipped)
         SELECT ?1, floor + 1, floor
             FROM (SELECT coalesce(max(code_floor), 0) AS floor FROM restores WHERE code_day >= ?1) WHERE true
         ON CONFLICT (day) DO UPDATE SET skipped = skipped + max(0, excluded.skipped - last_number),
             last_number = max(last_number, excluded.skipped) + 1
         RETURNING last_number",
    )?
    .query_row([&day], |row| row.get(0))?;
    Ok(format!("INS-{day}-{number:04}"))
}

fn least(values: impl Iterator<Item = Option<f32>>) -> Option<f32> {
    values.flatten().reduce(f32::min)
}

fn insert_root(connection: &Connection, inspection: &Inspection) -> rusqlite::Result<()> {
    let (score_raw, score) = inspection.anomaly.as_ref().map(|a| (a.score_raw, a.score)).unzip();
    let frame_seq = i64::try_from(inspection.frame_seq).unwrap_or(i64::MAX);
    let item_count = i64::try_from(inspection.items.len()).unwrap_or(i64::MAX);
    cached(
        connection,
        "INSERT INTO inspections (captured_at, id, code, station, camera, recipe, source, frame_seq, frame_width_px,
            frame_height_px, verdict, reasons, frame_sha256, provenance_sha256, anomaly_score_raw, anomaly_score,
            min_similarity, min_margin, item_count, decided_at, latency_ms, deadline_ms, is_provider_fallback, record)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22,
            ?23, ?24)",
    )?
    .execute(params![
        inspection.captured_at.as_micros(),
        inspection.id.0.as_bytes(),
        inspection.code,
        inspection.station,
        inspection.camera,
        inspection.recipe,
        inspection.source,
        frame_seq,
        inspection.width_px,
        inspection.height_px,
        inspection.verdict.as_str(),
        json(&inspection.reasons)?,
        inspection.frame_sha256.as_bytes(),
        inspection.provenance_sha256.as_bytes(),
        score_raw,
        score,
        least(inspection.items.iter().map(|item| item.similarity)),
        least(inspection.items.iter().map(|item| item.margin)),
        item_count,
        inspection.decided_at.as_micros(),
        inspection.elapsed_ms,
        inspection.deadline_ms,
        inspection.is_provider_fallback,
        json(inspection)?,
    ])?;
    Ok(())
}

fn insert_item(connection: &Connection, inspection: &Inspection, item: &Item) -> rusqlite::Result<()> {
    let found = item.matched.as_ref();
    let is_held = item.verdict == Verdict::Hold;
    // That of the best match where nothing measured the item's own.
    let color_id = match &item.colour {
        Some(colour) => colour.is_clear.then_some(colour.color_id.as_str()),
        None => found.and_then(|evidence| evidence.color_id.as_deref()),
    };
    let top_k = match found {
        Some(evidence) if is_held || evidence.entered_stage2 => Some(json(&evidence.top_k)?),
        _ => None,
    };
    cached(
        connection,
        "INSERT INTO items (captured_at, id, inspection_id, ordinal, x_px, y_px, width_px, height_px, label,
            detection_confidence, part_id, color_id, similarity, second_part_id, second_similarity, margin, tier,
            entered_stage2, is_held, stage1_ms, stage2_ms, top_k, verdict, reasons)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22,
            ?23, ?24)",
    )?
    .execute(params![
        inspection.captured_at.as_micros(),
        Uuid::now_v7().as_bytes(),
        inspection.id.0.as_bytes(),
        item.ordinal,
        item.bbox.x1,
        item.bbox.y1,
        item.bbox.width_px(),
        item.bbox.height_px(),
        item.label,
        item.detection_confidence,
        item.part_id,
        color_id,
        item.similarity,
        found.and_then(|evidence| evidence.second_part_id.as_deref()),
        found.and_then(|evidence| evidence.second_similarity),
        item.margin,
        item.tier.map(crate::types::Tier::as_str),
        found.is_some_and(|evidence| evidence.entered_stage2),
        is_held,
        found.map(|evidence| evidence.stage1_ms),
        found.map(|evidence| evidence.stage2_ms),
        top_k,
        item.verdict.as_str(),
        json(&item.reasons)?,
    ])?;
    Ok(())
}

fn insert_anomaly_map(connection: &Connection, inspection: &Inspection) -> rusqlite::Result<()> {
    let Some(anomaly) = &inspection.anomaly else { return Ok(()) };
    cached(
        connection,
        "INSERT INTO anomaly_maps (captured_at, id, inspection_id, bank_sha256, score_raw, score, threshold,
            image_threshold_raw, pixel_threshold_raw, map_min, map_max, area_above_ratio)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        inspection.captured_at.as_micros(),
        Uuid::now_v7().as_bytes(),
        inspection.id.0.as_bytes(),
        anomaly.bank_sha256.as_bytes(),
        anomaly.score_raw,
        anomaly.score,
        anomaly.threshold,
        anomaly.image_threshold_raw,
        anomaly.pixel_threshold_raw,
        anomaly.map_min,
        anomaly.map_max,
        anomaly.area_above_ratio,
    ])?;
    Ok(())
}

fn insert_frame_qa(connection: &Connection, inspection: &Inspection) -> rusqlite::Result<()> {
    let Some(quality) = &inspection.quality else { return Ok(()) };
    cached(
        connection,
        "INSERT INTO frame_qa_logs (captured_at, id, inspection_id, camera, frame_seq, frame_sha256, ssim_score,
            sharpness, noise_level, contrast_ratio, brightness_ratio, saturation_ratio, clipped_ratio, phash,
            is_duplicate, duplicate_distance, age_ms, issues, status, processing_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
    )?
    .execute(params![
        inspection.captured_at.as_micros(),
        Uuid::now_v7().as_bytes(),
        inspection.id.0.as_bytes(),
        inspection.camera,
        i64::try_from(inspection.frame_seq).unwrap_or(i64::MAX),
        inspection.frame_sha256.as_bytes(),
        quality.ssim_score,
        quality.sharpness,
        quality.noise_level,
        quality.contrast_ratio,
        quality.brightness_ratio,
        quality.saturation_ratio,
        quality.clipped_ratio,
        quality.phash.cast_signed(),
        quality.is_duplicate,
        quality.duplicate_distance,
        quality.age_ms,
        json(&quality.issues)?,
        quality.status.as_str(),
        inspection.timings_ms.quality,
    ])?;
    Ok(())
}

fn insert_artifacts(connection: &Connection, inspection: &Inspection) -> rusqlite::Result<()> {
    for artifact in &inspection.artifacts {
        cached(
            connection,
            "INSERT INTO artifacts (captured_at, id, inspection_id, kind, relative_path, content_type, size_bytes,
                sha256, width_px, height_px)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            inspection.captured_at.as_micros(),
            Uuid::now_v7().as_bytes(),
            inspection.id.0.as_bytes(),
            artifact.kind.as_str(),
            artifact.relative_path,
            artifact.content_type,
            i64::try_from(artifact.size_bytes).unwrap_or(i64::MAX),
            artifact.sha256.as_bytes(),
            artifact.width_px,
            artifact.height_px,
        ])?;
    }
    Ok(())
}

pub(super) fn insert_provenance(
    connection: &Connection,
    sha256: Digest,
    record: &str,
    now: Timestamp,
) -> rusqlite::Result<()> {
    cached(
        connection,
        "INSERT INTO provenances (sha256, created_at, record) VALUES (?1, ?2, ?3) ON CONFLICT (sha256) DO NOTHING",
    )?
    .execute(params![sha256.as_bytes(), now.as_micros(), record])?;
    Ok(())
}

/// Take delivered units out of the outbox, note when they were delivered and move the totals. Units already gone are
/// not counted twice.
pub(super) fn acknowledge(
    connection: &Connection,
    seqs: &[i64],
    batch: Digest,
    now: Timestamp,
) -> rusqlite::Result<usize> {
    let mut delivered = 0;
    for seq in seqs {
        retention::note_delivery(connection, *seq, now)?;
        delivered += cached(connection, "DELETE FROM outbox WHERE seq = ?1")?.execute([seq])?;
        failpoint::hit("ledger.acknowledge.half");
    }
    let last = seqs.iter().copied().max().unwrap_or(0);
    cached(
        connection,
        "UPDATE outbox_state SET delivered_total = delivered_total + ?1, last_acked_seq = ?2, last_batch_sha256 = ?3",
    )?
    .execute(params![i64::try_from(delivered).unwrap_or(i64::MAX), last, batch.as_bytes()])?;
    Ok(delivered)
}

pub(super) fn park(connection: &Connection, seq: i64, error: &str) -> rusqlite::Result<usize> {
    cached(connection, "UPDATE outbox SET state = 'parked', attempts = attempts + 1, last_error = ?2 WHERE seq = ?1")?
        .execute(params![seq, error])
}

pub(super) fn unpark(connection: &Connection) -> rusqlite::Result<usize> {
    cached(connection, "UPDATE outbox SET state = 'pending' WHERE state = 'parked'")?.execute([])
}

/// Bind the ledger to a site, once; returns the site it is bound to.
pub(super) fn bind_site(connection: &Connection, site_id: Uuid) -> rusqlite::Result<Uuid> {
    cached(connection, "UPDATE ledger_meta SET site_id = ?1 WHERE site_id IS NULL")?.execute([site_id.as_bytes()])?;
    Ok(super::store::read_meta(connection)?.site_id.unwrap_or(site_id))
}
