//! Samples for the central side: one bounded ring a kind, the oldest dropped and counted.
//!
//! Unlike everything else that is sent they may be lost: where the ring is full, where the disk is, where the centre
//! refuses them. So they are no units of the outbox, and have positions of their own.

use rusqlite::{CachedStatement, Connection, params};
use uuid::Uuid;

use super::LedgerError;
use super::pack::copy_rows;
use super::reader::LedgerReader;
use super::sent::{GPU_STATS_AT, RowSink, SENT_TABLES, SYSTEM_STATS_AT};
use crate::limits;
use crate::types::{GpuStat, SystemStat, Timestamp};

/// What is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleKind {
    Gpu,
    System,
}

impl SampleKind {
    pub const ALL: [SampleKind; 2] = [SampleKind::Gpu, SampleKind::System];

    /// Position in [`SENT_TABLES`].
    fn sent_at(self) -> usize {
        match self {
            SampleKind::Gpu => GPU_STATS_AT,
            SampleKind::System => SYSTEM_STATS_AT,
        }
    }

    /// Its ring.
    pub(super) fn table(self) -> &'static str {
        SENT_TABLES[self.sent_at()].local_name
    }

    fn spool_max(self) -> usize {
        match self {
            SampleKind::Gpu => limits::GPU_STATS_SPOOL_MAX,
            SampleKind::System => limits::SYSTEM_STATS_SPOOL_MAX,
        }
    }
}

/// Samples of one moment.
#[derive(Debug)]
pub(super) enum Samples {
    Gpu(Vec<GpuStat>),
    System(SystemStat),
}

impl Samples {
    fn kind(&self) -> SampleKind {
        match self {
            Samples::Gpu(_) => SampleKind::Gpu,
            Samples::System(_) => SampleKind::System,
        }
    }
}

impl LedgerReader {
    /// Read samples that wait, oldest first, into `sink`; returns their positions in the ring.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn pack_samples(
        &self,
        kind: SampleKind,
        rows_max: usize,
        sink: &mut impl RowSink,
    ) -> Result<Vec<i64>, LedgerError> {
        let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
        let seqs: Vec<i64> = self
            .connection
            .prepare_cached(&format!("SELECT seq FROM {} ORDER BY seq LIMIT ?1", kind.table()))
            .and_then(|mut statement| statement.query_map([limit], |row| row.get(0))?.collect())
            .map_err(LedgerError::sqlite(&self.path))?;
        if let (Some(first), Some(last)) = (seqs.first(), seqs.last()) {
            sink.begin_unit();
            let sql = SENT_TABLES[kind.sent_at()].select("seq BETWEEN ?1 AND ?2 ORDER BY seq");
            let copied = self
                .connection
                .prepare_cached(&sql)
                .and_then(|mut statement| copy_rows(&mut statement, kind.sent_at(), &[first, last], sink, |_| Ok(())));
            copied.map_err(|source| self.unreadable_or_sqlite(kind.sent_at(), source))?;
        }
        Ok(seqs)
    }

    /// Samples that wait, of all kinds.
    pub(super) fn sample_count(&self) -> Result<u64, LedgerError> {
        SampleKind::ALL.iter().map(|kind| self.number(&format!("SELECT count(*) FROM {}", kind.table()))).sum()
    }
}

/// Write samples, and drop the oldest of the kind beyond its bound, counted.
pub(super) fn insert(connection: &Connection, recorded_at: Timestamp, samples: &Samples) -> rusqlite::Result<()> {
    match samples {
        Samples::Gpu(samples) => samples.iter().try_for_each(|sample| insert_gpu(connection, recorded_at, sample))?,
        Samples::System(sample) => insert_system(connection, recorded_at, sample)?,
    }
    let table = samples.kind().table();
    let kept = i64::try_from(samples.kind().spool_max()).unwrap_or(i64::MAX);
    let sql = format!("DELETE FROM {table} WHERE seq <= (SELECT seq FROM {table} ORDER BY seq DESC LIMIT 1 OFFSET ?1)");
    let dropped = cached(connection, &sql)?.execute([kept])?;
    count_dropped(connection, dropped)
}

/// Take delivered samples out; those already gone are not counted.
pub(super) fn acknowledge(connection: &Connection, kind: SampleKind, seqs: &[i64]) -> rusqlite::Result<usize> {
    let sql = format!("DELETE FROM {} WHERE seq = ?1", kind.table());
    let mut delivered = 0;
    for seq in seqs {
        delivered += cached(connection, &sql)?.execute([seq])?;
    }
    Ok(delivered)
}

/// Drop the oldest, GPUs' first, at most `rows_max` in all, counted.
pub(super) fn drop_oldest(connection: &Connection, rows_max: usize) -> rusqlite::Result<usize> {
    let mut dropped = 0;
    for kind in SampleKind::ALL {
        let table = kind.table();
        let limit = i64::try_from(rows_max - dropped).unwrap_or(i64::MAX);
        let sql = format!("DELETE FROM {table} WHERE seq IN (SELECT seq FROM {table} ORDER BY seq LIMIT ?1)");
        dropped += cached(connection, &sql)?.execute([limit])?;
    }
    count_dropped(connection, dropped)?;
    Ok(dropped)
}

fn count_dropped(connection: &Connection, dropped: usize) -> rusqlite::Result<()> {
    if dropped > 0 {
        cached(connection, "UPDATE outbox_state SET dropped_samples = dropped_samples + ?1")?
            .execute([i64::try_from(dropped).unwrap_or(i64::MAX)])?;
    }
    Ok(())
}

fn cached<'a>(connection: &'a Connection, sql: &str) -> rusqlite::Result<CachedStatement<'a>> {
    connection.prepare_cached(sql)
}

fn insert_system(connection: &Connection, recorded_at: Timestamp, sample: &SystemStat) -> rusqlite::Result<()> {
    cached(
        connection,
        "INSERT INTO system_stats (recorded_at, id, cpu_usage_pct, load1, memory_used_bytes, memory_total_bytes,
            process_rss_bytes, disk_used_pct, disk_free_bytes, open_fds, temperature_c, fsync_p99_ms, clock_offset_ms,
            uptime_s, outbox_pending, outbox_oldest_s)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
    )?
    .execute(params![
        recorded_at.as_micros(),
        Uuid::now_v7().as_bytes(),
        sample.cpu_usage_pct,
        sample.load1,
        sample.memory_used_bytes,
        sample.memory_total_bytes,
        sample.process_rss_bytes,
        sample.disk_used_pct,
        sample.disk_free_bytes,
        sample.open_fds,
        sample.temperature_c,
        sample.fsync_p99_ms,
        sample.clock_offset_ms,
        sample.uptime_s,
        sample.outbox_pending,
        sample.outbox_oldest_s,
    ])?;
    Ok(())
}

fn insert_gpu(connection: &Connection, recorded_at: Timestamp, sample: &GpuStat) -> rusqlite::Result<()> {
    cached(
        connection,
        "INSERT INTO gpu_stats (
            recorded_at, id, gpu_index, gpu_name, gpu_util_pct, memory_used_bytes, memory_total_bytes,
            temperature_c, power_usage_w, power_limit_w, fan_speed_pct, sm_clock_mhz, memory_clock_mhz,
            pstate, throttle_reasons, inference_rate_hz, memory_bandwidth_util_pct, sm_clock_max_mhz,
            compute_processes_count, pcie_replay_counter, temp_slowdown_threshold_c, memory_clock_max_mhz,
            pcie_link_gen, pcie_link_width, pcie_tx_kb_s, pcie_rx_kb_s, encoder_util_pct, decoder_util_pct,
            bar1_used_bytes)
         VALUES (
            ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
            ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29)",
    )?
    .execute(params![
        recorded_at.as_micros(),
        Uuid::now_v7().as_bytes(),
        sample.gpu_index,
        sample.gpu_name,
        sample.gpu_util_pct,
        sample.memory_used_bytes,
        sample.memory_total_bytes,
        sample.temperature_c,
        sample.power_usage_w,
        sample.power_limit_w,
        sample.fan_speed_pct,
        sample.sm_clock_mhz,
        sample.memory_clock_mhz,
        sample.pstate,
        sample.throttle_reasons,
        sample.inference_rate_hz,
        sample.memory_bandwidth_util_pct,
        sample.sm_clock_max_mhz,
        sample.compute_processes_count,
        sample.pcie_replay_counter,
        sample.temp_slowdown_threshold_c,
        sample.memory_clock_max_mhz,
        sample.pcie_link_gen,
        sample.pcie_link_width,
        sample.pcie_tx_kb_s,
        sample.pcie_rx_kb_s,
        sample.encoder_util_pct,
        sample.decoder_util_pct,
        sample.bar1_used_bytes,
    ])?;
    Ok(())
}
