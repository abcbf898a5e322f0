//! [`Balance`]: the totals of the ledger beside what is really stored, read in one go.
//!
//! `committed = delivered + waiting + quarantined`; every commit took one position of the outbox and every inspection
//! one code number, but for those that a repair wrote off in `outbox_repairs`. Repairs and proofs share this page.

use rusqlite::Connection;

/// Fifty gaps say enough.
const GAPS_MAX: usize = 50;

/// Totals and counts; see the columns of `outbox_state`, `outbox_repairs` and `inspection_codes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Balance {
    pub committed: i64,
    pub delivered: i64,
    /// Rows of `outbox`.
    pub waiting: i64,
    /// Rows of `outbox_quarantine` that stand for a commit.
    pub quarantined: i64,
    /// Quarantined entries that name no row.
    pub lost: i64,
    /// Those of them that were inspections.
    pub lost_inspections: i64,
    pub stored_inspections: i64,
    /// Inspections that were delivered and have expired.
    pub expired_inspections: i64,
    /// Stored units that are no inspections, and such units that have expired.
    pub stored_others: i64,
    /// Highest position ever given by the outbox.
    pub last_seq: i64,
    /// Positions that repairs wrote off.
    pub void_seqs: i64,
    /// Code numbers given.
    pub numbered: i64,
    /// Code numbers that repairs wrote off.
    pub void_codes: i64,
}

impl Balance {
    pub fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        Ok(Self {
            committed: number("SELECT committed_total FROM outbox_state")?,
            delivered: number("SELECT delivered_total FROM outbox_state")?,
            waiting: number("SELECT count(*) FROM outbox")?,
            quarantined: number("SELECT count(*) FROM outbox_quarantine WHERE kind <> 'duplicate'")?,
            lost: number("SELECT count(*) FROM outbox_quarantine WHERE kind = 'missing'")?,
            lost_inspections: number(
                "SELECT count(*) FROM outbox_quarantine WHERE kind = 'missing' AND root_table = 'inspections'",
            )?,
            stored_inspections: number("SELECT count(*) FROM inspections")?,
            expired_inspections: number("SELECT pruned_inspections FROM retention_totals")?,
            stored_others: number(
                "SELECT (SELECT count(*) FROM reviews) + (SELECT pruned_reviews FROM retention_totals)
                    + (SELECT count(*) FROM kit_sessions WHERE ended_at IS NOT NULL)
                    + (SELECT count(*) FROM stock_ledger WHERE reference_type = 'manual')
                    + (SELECT count(*) FROM refusal_reports) + (SELECT count(*) FROM operators)
                    + (SELECT count(*) FROM feedback) + (SELECT count(*) FROM action_logs)
                    + (SELECT pruned_remarks FROM retention_totals)
                    + (SELECT count(*) FROM config_changes)",
            )?,
            last_seq: number("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox'")?,
            void_seqs: number("SELECT coalesce(sum(void_seqs), 0) FROM outbox_repairs")?,
            numbered: number("SELECT coalesce(sum(last_number - skipped), 0) FROM inspection_codes")?,
            void_codes: number("SELECT coalesce(sum(void_codes), 0) FROM outbox_repairs")?,
        })
    }

    /// Units that are here: stored, or known to be lost.
    pub fn accounted(&self) -> i64 {
        self.stored_inspections + self.expired_inspections + self.stored_others + self.lost
    }

    /// Inspections ever committed.
    pub fn inspections(&self) -> i64 {
        self.stored_inspections + self.expired_inspections + self.lost_inspections
    }

    /// Units that were committed and neither delivered nor wait: nothing would ever send them.
    pub fn deficit(&self) -> i64 {
        self.accounted() - self.delivered - self.waiting - self.quarantined
    }

    /// What does not add up, each with what to do.
    pub fn faults(&self) -> Vec<String> {
        let Self { committed, delivered, waiting, quarantined, lost, last_seq, numbered, .. } = *self;
        let mut faults = Vec::new();
        let mut expect = |holds: bool, fault: String| {
            if !holds {
                faults.push(format!("{fault}; stop the daemon and run `loupe outbox repair`"));
            }
        };
        expect(
            committed == delivered + waiting + quarantined,
            format!(
                "committed {committed} is not delivered {delivered} + waiting {waiting} + quarantined {quarantined}"
            ),
        );
        expect(
            committed == self.accounted(),
            format!(
                "committed {committed}, but {} inspections are stored, {} have expired, {} other units are accounted for \
                 and {lost} known to be lost",
                self.stored_inspections, self.expired_inspections, self.stored_others
            ),
        );
        expect(
            committed == last_seq - self.void_seqs,
            format!("committed {committed}, but the outbox has numbered {last_seq}: entries are missing or double"),
        );
        let inspections = self.inspections();
        expect(
            inspections == numbered - self.void_codes,
            format!("{inspections} inspections were committed, but {numbered} codes were given"),
        );
        faults
    }
}

/// Positions of the outbox beyond the last acknowledged one that are neither waiting nor quarantined, as `from to`.
pub(super) fn gaps(connection: &Connection) -> rusqlite::Result<Vec<(i64, i64)>> {
    // Parked entries are passed by, so the order of delivery says nothing of what lies below the last acknowledged.
    let sql = "WITH last (seq) AS (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'outbox'),
            acked (seq) AS (SELECT last_acked_seq FROM outbox_state),
            known (seq) AS (
                SELECT seq FROM outbox UNION SELECT seq FROM outbox_quarantine
                UNION SELECT seq FROM acked UNION SELECT seq + 1 FROM last),
            pairs (before, after) AS (SELECT lag(seq) OVER (ORDER BY seq), seq FROM known)
        SELECT before + 1, after - 1 FROM pairs, acked WHERE before >= acked.seq AND after > before + 1 ORDER BY 1";
    let mut statement = connection.prepare(sql)?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.take(GAPS_MAX).collect()
}
