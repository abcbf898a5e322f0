//! `loupe audit verify`: whether the audit chain and the sites' rows are as they were written.
//!
//! The digests are computed here, not by the server, from the text of every column (RFC 8785: sorted keys, no blanks).
//! Seen: a row edited, deleted, inserted, moved or cut off the end. Not seen: a chain that somebody who owns the database
//! wrote anew from some row to its head; against that, keep a head elsewhere and give it back with `--expect`.
//! Of the sites' rows only what they say of each other can be proved here; see [`FactReport`].

use std::collections::BTreeMap;

use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::UplinkError;
use super::central::Central;
use crate::types::Digest;

/// Audit rows read at a time: about a megabyte.
const PAGE_ROWS: i64 = 1_000;
/// Faults named in a report; more are counted.
const FAULTS_MAX: usize = 1_000;
/// Zeros: before the first row.
const NOTHING: [u8; 32] = [0; 32];

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakKind {
    /// The row's digest is not of what it says: it was edited, or moved to another position.
    Edited,
    /// No row at this position: it was deleted.
    Missing,
    /// A second row at this position: it was inserted.
    Inserted,
    /// The row does not follow the one before: either was replaced together with its digest.
    Unlinked,
    /// The chain does not end where its head says.
    Head,
}

/// One fault of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditBreak {
    pub chain: String,
    pub chain_seq: i64,
    /// The row; `None` where there is none.
    pub id: Option<String>,
    pub kind: BreakKind,
    pub detail: String,
}

/// Where a chain ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainEnd {
    pub chain_seq: i64,
    pub sha256: Digest,
}

/// One chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainReport {
    pub chain: String,
    pub rows: u64,
    /// Rows before this position had expired and are gone.
    pub first_seq: i64,
    /// Its end; keep it elsewhere, to prove later that nothing up to it was written anew.
    pub end: ChainEnd,
}

/// A row of a site that does not agree with another, or with itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FactFault {
    pub table: String,
    pub site_id: String,
    /// The row's key.
    pub id: String,
    pub detail: String,
}

/// What the sites' rows say of each other: provenances hash to their keys, batches to their ids, inspections name a
/// provenance that is here and count their items, stock bookings follow each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FactReport {
    /// Checked back to so many days; provenances and stock wholly.
    pub days: i32,
    pub faults: Vec<FactFault>,
    /// Tables that only ever take inserts and where the server counted updates since its statistics began.
    pub updated_tables: Vec<String>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// `host:port/database`.
    pub server: String,
    pub chains: Vec<ChainReport>,
    pub breaks: Vec<AuditBreak>,
    pub facts: Option<FactReport>,
}

impl AuditReport {
    /// Whether everything is as it was written, as far as can be told.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.breaks.is_empty()
            && self.facts.as_ref().is_none_or(|facts| facts.faults.is_empty() && facts.updated_tables.is_empty())
    }
}

/// The columns that the digest is over, each as text, sorted by name; then what it is compared with.
const ROWS: &str = "SELECT a.action, a.actor_id, a.actor_kind, a.actor_name, a.chain, a.chain_seq::text, a.details::text,
        a.entity_id, a.entity_type, a.id::text, pg_catalog.host(a.ip), a.new_values::text,
        to_char(a.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), a.old_values::text, a.request_id,
        a.site_id::text, a.status, a.user_agent, a.chain_seq, a.prev_sha256, a.row_sha256
    FROM loupe.audit_log a
    WHERE a.chain = $1 AND (a.chain_seq, a.id::text) > ($2, $3)
    ORDER BY a.chain_seq, a.id::text LIMIT $4";
const COLUMNS: [&str; 18] = [
    "action",
    "actor_id",
    "actor_kind",
    "actor_name",
    "chain",
    "chain_seq",
    "details",
    "entity_id",
    "entity_type",
    "id",
    "ip",
    "new_values",
    "occurred_at",
    "old_values",
    "request_id",
    "site_id",
    "status",
    "user_agent",
];

/// One audit row.
#[derive(Debug, Clone)]
struct Link {
    chain_seq: i64,
    id: String,
    what: String,
    text: String,
    prev_sha256: Vec<u8>,
    row_sha256: Vec<u8>,
}

impl Link {
    fn of(row: &Row) -> Self {
        let fields: BTreeMap<&str, Option<String>> =
            COLUMNS.iter().enumerate().map(|(index, name)| (*name, row.get(index))).collect();
        let word = |name: &str| fields.get(name).cloned().flatten().unwrap_or_default();
        let what =
            format!("{} {} {}, by {}", word("action"), word("entity_type"), word("entity_id"), word("actor_name"));
        Self {
            chain_seq: row.get(18),
            id: word("id"),
            what,
            // A map of text serialises without fail.
            text: serde_json::to_string(&fields).unwrap_or_default(),
            prev_sha256: row.get(19),
            row_sha256: row.get(20),
        }
    }

    fn digest(&self) -> Digest {
        let mut bytes = self.prev_sha256.clone();
        bytes.extend_from_slice(self.text.as_bytes());
        Digest::of(&bytes)
    }
}

/// Walks one chain from its first row to its last.
#[derive(Debug)]
struct Walk {
    chain: String,
    first_seq: i64,
    last_seq: i64,
    last_sha256: Vec<u8>,
    /// Whether the row before was read, so that this one can be compared with it.
    is_linked: bool,
    rows: u64,
    breaks: Vec<AuditBreak>,
}

impl Walk {
    fn new(chain: String, anchor_seq: i64, anchor_sha256: Vec<u8>) -> Self {
        let first_seq = anchor_seq + 1;
        Self {
            chain,
            first_seq,
            last_seq: anchor_seq,
            last_sha256: anchor_sha256,
            is_linked: true,
            rows: 0,
            breaks: Vec::new(),
        }
    }

    fn broken(&mut self, chain_seq: i64, id: Option<&str>, kind: BreakKind, detail: String) {
        let id = id.map(str::to_owned);
        self.breaks.push(AuditBreak { chain: self.chain.clone(), chain_seq, id, kind, detail });
    }

    fn take(&mut self, link: &Link) {
        self.rows += 1;
        let id = Some(link.id.as_str());
        if link.chain_seq == self.last_seq {
            let detail = format!("a second row at this position: {}", link.what);
            self.broken(link.chain_seq, id, BreakKind::Inserted, detail);
        }
        for missing in (self.last_seq + 1..link.chain_seq).take(FAULTS_MAX) {
            self.is_linked = false;
            self.broken(missing, None, BreakKind::Missing, "the row was deleted".to_owned());
        }
        let is_true = link.digest().as_bytes().as_slice() == link.row_sha256;
        if !is_true {
            self.broken(link.chain_seq, id, BreakKind::Edited, format!("the row was edited or moved: {}", link.what));
        } else if self.is_linked && link.chain_seq == self.last_seq + 1 && link.prev_sha256 != self.last_sha256 {
            let detail = format!("this row or the one before was replaced: {}", link.what);
            self.broken(link.chain_seq, id, BreakKind::Unlinked, detail);
        }
        if link.chain_seq > self.last_seq {
            self.last_seq = link.chain_seq;
            self.last_sha256.clone_from(&link.row_sha256);
            self.is_linked = true;
        }
    }

    /// Compare the end with what the head says.
    fn finish(&mut self, head_seq: i64, head_sha256: &[u8]) {
        for missing in (self.last_seq + 1..=head_seq).take(FAULTS_MAX) {
            self.broken(missing, None, BreakKind::Missing, "the row at the end was deleted".to_owned());
        }
        if self.last_seq > head_seq || (self.last_seq == head_seq && self.last_sha256 != head_sha256) {
            let detail = format!("the chain ends at {}, its head says {head_seq} or another digest", self.last_seq);
            self.broken(self.last_seq, None, BreakKind::Head, detail);
        }
    }
}

impl Central {
    /// Check every chain; with `expected`, also that the central one still holds an end that was noted before; with
    /// `fact_days`, also what the sites' rows of so many days say of each other.
    ///
    /// # Errors
    /// When the login does not read every site, or the server fails.
    pub async fn verify_audit(
        &self,
        expected: Option<&ChainEnd>,
        fact_days: Option<i32>,
    ) -> Result<AuditReport, UplinkError> {
        self.check_same_schema().await?;
        self.must_read_all().await?;
        let on_statement = UplinkError::statement(&self.server);
        let heads = "SELECT h.chain, h.last_seq, h.last_sha256, coalesce(a.last_seq, 0), a.last_sha256
            FROM (SELECT chain, last_seq, last_sha256 FROM loupe.audit_heads
                UNION ALL SELECT DISTINCT l.chain, 0::bigint, NULL::bytea FROM loupe.audit_log l
                    WHERE NOT EXISTS (SELECT FROM loupe.audit_heads x WHERE x.chain = l.chain)) h
            LEFT JOIN LATERAL (SELECT last_seq, last_sha256 FROM loupe.audit_anchors n WHERE n.chain = h.chain
                ORDER BY n.last_seq DESC LIMIT 1) a ON true
            ORDER BY h.chain";
        let mut chains = Vec::new();
        let mut breaks = Vec::new();
        for head in self.client.query_typed(heads, &[]).await.map_err(&on_statement)? {
            let (head_seq, head_sha256): (i64, Option<Vec<u8>>) = (head.get(1), head.get(2));
            let anchor: Option<Vec<u8>> = head.get(4);
            let mut walk = Walk::new(head.get(0), head.get(3), anchor.unwrap_or_else(|| NOTHING.to_vec()));
            self.walk(&mut walk, expected).await?;
            walk.finish(head_seq, &head_sha256.unwrap_or_default());
            let sha256 = Digest::from_bytes(walk.last_sha256.as_slice().try_into().unwrap_or(NOTHING));
            let end = ChainEnd { chain_seq: walk.last_seq, sha256 };
            chains.push(ChainReport { chain: walk.chain, rows: walk.rows, first_seq: walk.first_seq, end });
            breaks.extend(walk.breaks);
        }
        breaks.truncate(FAULTS_MAX);
        let facts = match fact_days {
            Some(days) => Some(self.check_facts(days).await?),
            None => None,
        };
        Ok(AuditReport { server: self.server.clone(), chains, breaks, facts })
    }

    async fn walk(&self, walk: &mut Walk, expected: Option<&ChainEnd>) -> Result<(), UplinkError> {
        let expected = expected.filter(|_| walk.chain == "central");
        let mut found = expected.is_none_or(|end| end.chain_seq < walk.first_seq);
        let (mut after_seq, mut after_id) = (i64::MIN, String::new());
        loop {
            let page = self
                .client
                .query_typed(
                    ROWS,
                    &[
                        (&walk.chain, Type::TEXT),
                        (&after_seq, Type::INT8),
                        (&after_id, Type::TEXT),
                        (&PAGE_ROWS, Type::INT8),
                    ],
                )
                .await
                .map_err(UplinkError::statement(&self.server))?;
            let Some(last) = page.last() else { break };
            let last = Link::of(last);
            for row in &page {
                let link = Link::of(row);
                found = found
                    || expected.is_some_and(|end| {
                        end.chain_seq == link.chain_seq && end.sha256.as_bytes().as_slice() == link.row_sha256
                    });
                walk.take(&link);
            }
            (after_seq, after_id) = (last.chain_seq, last.id);
        }
        if let (false, Some(end)) = (found, expected) {
            let detail = format!("no row {} with digest {}: the chain was written anew", end.chain_seq, end.sha256);
            walk.broken(end.chain_seq, None, BreakKind::Head, detail);
        }
        Ok(())
    }

    async fn check_facts(&self, days: i32) -> Result<FactReport, UplinkError> {
        let on_statement = UplinkError::statement(&self.server);
        let mut faults = Vec::new();
        for (table, sql) in FACT_CHECKS {
            let sql = sql.replace("{days}", &days.to_string());
            let rows =
                self.client.query_typed(&format!("{sql} LIMIT {FAULTS_MAX}"), &[]).await.map_err(&on_statement)?;
            faults.extend(rows.iter().map(|row| FactFault {
                table: (*table).to_owned(),
                site_id: row.get(0),
                id: row.get(1),
                detail: row.get(2),
            }));
        }
        let updated = self.client.query_typed(UPDATED, &[]).await.map_err(&on_statement)?;
        Ok(FactReport { days, faults, updated_tables: updated.iter().map(|row| row.get(0)).collect() })
    }
}

/// Each finds rows that cannot be what a device sent: (site, key, why).
const FACT_CHECKS: &[(&str, &str)] = &[
    (
        "provenances",
        "SELECT site_id::text, encode(p.sha256, 'hex'), 'the record does not hash to its key'
         FROM loupe.provenances p WHERE pg_catalog.sha256(convert_to(p.record, 'UTF8')) <> p.sha256",
    ),
    (
        "ingest_batches",
        // A custom UUID (version 8) of the digest's first half.
        "SELECT site_id::text, id::text, 'the id is not of the digest'
         FROM (SELECT site_id, id, substring(sha256 FROM 1 FOR 16) AS half FROM loupe.ingest_batches
            WHERE enqueued_at >= now() - interval '{days} days') b
         WHERE set_byte(set_byte(half, 6, (get_byte(half, 6) & 15) | 128), 8, (get_byte(half, 8) & 63) | 128)
            <> uuid_send(id)",
    ),
    (
        "inspections",
        "SELECT i.site_id::text, i.id::text, 'names a provenance that is not here'
         FROM loupe.inspections i
         WHERE i.captured_at >= now() - interval '{days} days' AND NOT EXISTS (SELECT FROM loupe.provenances p
            WHERE p.site_id = i.site_id AND p.sha256 = i.provenance_sha256)",
    ),
    (
        "inspections",
        // Items are kept for less long than inspections.
        "SELECT i.site_id::text, i.id::text, format('counts %s items, %s are here', i.item_count, coalesce(n.found, 0))
         FROM loupe.inspections i
         LEFT JOIN (SELECT t.site_id, t.captured_at, t.inspection_id, count(*) AS found FROM loupe.items t
            WHERE t.captured_at >= now() - interval '{days} days' GROUP BY 1, 2, 3) n
            ON n.site_id = i.site_id AND n.captured_at = i.captured_at AND n.inspection_id = i.id
         WHERE i.captured_at >= greatest(now() - interval '{days} days', (SELECT now() - make_interval(days => keep_days)
                FROM loupe.retention_policies WHERE table_name = 'items'))
            AND i.item_count <> coalesce(n.found, 0)",
    ),
    (
        "stock_ledger",
        "SELECT site_id::text, id::text,
            format('starts at %s, the booking before left %s', previous_quantity, before)
         FROM (SELECT site_id, id, previous_quantity, lag(new_quantity) OVER (
                PARTITION BY site_id, device_id, part_id, color_id ORDER BY recorded_at, id) AS before
            FROM loupe.stock_ledger) s
         WHERE previous_quantity <> before",
    ),
];

/// Partitions of tables that devices may only insert into, where the server counted updated rows.
const UPDATED: &str = "SELECT s.relname::text
    FROM pg_stat_all_tables s
    JOIN pg_inherits h ON h.inhrelid = s.relid
    WHERE s.schemaname = 'loupe' AND s.n_tup_upd > 0
        AND has_table_privilege('loupe_device', h.inhparent, 'INSERT')
        AND NOT has_table_privilege('loupe_device', h.inhparent, 'UPDATE')
    ORDER BY 1";

#[cfg(test)]
mod tests {
    use super::{BreakKind, COLUMNS, Link, NOTHING, Walk};

    fn chain(length: i64) -> Vec<Link> {
        let mut prev_sha256 = NOTHING.to_vec();
        (1..=length)
            .map(|chain_seq| {
                let text = format!("{{\"chain_seq\":\"{chain_seq}\"}}");
                let (id, what) = (format!("id-{chain_seq}"), "create sites".to_owned());
                let mut link =
                    Link { chain_seq, id, what, text, prev_sha256: prev_sha256.clone(), row_sha256: Vec::new() };
                link.row_sha256 = link.digest().as_bytes().to_vec();
                prev_sha256.clone_from(&link.row_sha256);
                link
            })
            .collect()
    }

    fn check(links: &[Link], expected: &[(i64, BreakKind)]) {
        let head = chain(5).pop().unwrap();
        let mut walk = Walk::new("central".to_owned(), 0, NOTHING.to_vec());
        links.iter().for_each(|link| walk.take(link));
        walk.finish(head.chain_seq, &head.row_sha256);
        let found: Vec<_> = walk.breaks.iter().map(|found| (found.chain_seq, found.kind)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_text_is_of_sorted_columns() {
        assert!(COLUMNS.is_sorted());
    }

    #[test]
    fn a_whole_chain_holds() {
        check(&chain(5), &[]);
    }

    #[test]
    fn an_edited_row_is_named() {
        let mut links = chain(5);
        links[2].text.push(' ');
        check(&links, &[(3, BreakKind::Edited)]);
    }

    #[test]
    fn a_row_edited_together_with_its_digest_breaks_the_next() {
        let mut links = chain(5);
        links[2].text.push(' ');
        links[2].row_sha256 = links[2].digest().as_bytes().to_vec();
        check(&links, &[(4, BreakKind::Unlinked)]);
    }

    #[test]
    fn deleted_rows_are_named_in_the_middle_and_at_the_end() {
        let mut links = chain(5);
        links.remove(4);
        links.remove(1);
        check(&links, &[(2, BreakKind::Missing), (5, BreakKind::Missing)]);
        check(&[], &(1..=5).map(|seq| (seq, BreakKind::Missing)).collect::<Vec<_>>());
    }

    #[test]
    fn an_inserted_row_is_named() {
        let mut links = chain(5);
        let mut forged = links[1].clone();
        forged.text.push(' ');
        forged.row_sha256 = forged.digest().as_bytes().to_vec();
        links.insert(2, forged);
        check(&links, &[(2, BreakKind::Inserted)]);
        let mut links = chain(5);
        links.push(chain(6).pop().unwrap());
        check(&links, &[(6, BreakKind::Head)]);
    }

    #[test]
    fn rows_that_changed_places_are_named() {
        let mut links = chain(5);
        let (second, third) = (links[1].text.clone(), links[2].text.clone());
        (links[1].text, links[2].text) = (third, second);
        check(&links, &[(2, BreakKind::Edited), (3, BreakKind::Edited)]);
    }
}
