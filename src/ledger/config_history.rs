//! The history of the configuration: what changed is one unit of the outbox, one row a key.
//!
//! The last row of a key is its value, so that comparing needs nothing else; comparing and writing are one transaction.
//! An unchanged configuration writes nothing. Rows stay for good: they are few, and the next start is compared with them.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, params};
use serde_json::Value;
use uuid::Uuid;

use super::LedgerError;
use super::reader::LedgerReader;
use crate::types::{ConfigChange, ConfigRecord, Digest, Timestamp};

/// The value of each key that has one.
fn last_values(connection: &Connection) -> rusqlite::Result<BTreeMap<String, String>> {
    connection
        .prepare_cached(
            "SELECT config_key, new_value FROM config_history h
             WHERE new_value IS NOT NULL
                AND seq = (SELECT max(l.seq) FROM config_history l WHERE l.config_key = h.config_key)",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// Compare `record` with what was recorded last and write what differs; answers with the number of keys.
pub(super) fn record(connection: &Connection, record: &ConfigRecord, now: Timestamp) -> rusqlite::Result<Value> {
    let before = last_values(connection)?;
    let mut changes = Vec::new();
    for (key, value) in &record.values {
        let old = before.get(key);
        if old != Some(&value.json) {
            changes.push((key, old, Some(&value.json), value.source));
        }
    }
    for (key, old) in before.iter().filter(|(key, _)| !record.values.contains_key(*key)) {
        changes.push((key, Some(old), None, record.source));
    }
    if changes.is_empty() {
        return Ok(Value::from(0));
    }
    let is_signed = record.signed_by.is_empty() || changes.iter().any(|(key, ..)| record.signed_by.contains(key));
    let by = record.changed_by.as_deref().filter(|_| is_signed);
    let reason = record.change_reason.as_deref().filter(|_| is_signed);
    let sha256 = record.sha256();
    let change_id = Uuid::now_v7();
    let count = i64::try_from(changes.len()).unwrap_or(i64::MAX);
    connection
        .prepare_cached("INSERT INTO config_changes (id, occurred_at, key_count) VALUES (?1, ?2, ?3)")?
        .execute(params![change_id.as_bytes(), now.as_micros(), count])?;
    for (key, old, new, source) in changes {
        connection
            .prepare_cached(
                "INSERT INTO config_history (id, change_id, occurred_at, config_key, old_value, new_value,
                    config_sha256, source, changed_by, change_reason)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                Uuid::now_v7().as_bytes(),
                change_id.as_bytes(),
                now.as_micros(),
                key,
                old,
                new,
                sha256.as_bytes(),
                source.as_str(),
                by,
                reason,
            ])?;
    }
    connection
        .prepare_cached(
            "INSERT INTO outbox (root_table, key_at, key_id, row_count, state, attempts, enqueued_at)
             VALUES ('config_history', ?1, ?2, ?3, 'pending', 0, ?1)",
        )?
        .execute(params![now.as_micros(), change_id.as_bytes(), count])?;
    connection.prepare_cached("UPDATE outbox_state SET committed_total = committed_total + 1")?.execute([])?;
    Ok(Value::from(count))
}

impl LedgerReader {
    /// What changed of the configuration, newest first, at most `count_max` keys; with `key` only of that key, or of
    /// those below it.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn config_history(&self, key: Option<&str>, count_max: usize) -> Result<Vec<ConfigChange>, LedgerError> {
        let json = |text: Option<String>| text.map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text)));
        let read = |row: &Row<'_>| {
            Ok(ConfigChange {
                occurred_at: Timestamp::from_micros(row.get(0)?),
                change_id: Uuid::from_bytes(row.get(1)?),
                config_key: row.get(2)?,
                old_value: json(row.get(3)?),
                new_value: json(row.get(4)?),
                config_sha256: Digest::from_bytes(row.get(5)?),
                source: row.get(6)?,
                changed_by: row.get(7)?,
                change_reason: row.get(8)?,
            })
        };
        let sql = "SELECT occurred_at, change_id, config_key, old_value, new_value, config_sha256, source, changed_by,
                change_reason
             FROM config_history
             WHERE ?1 IS NULL OR config_key = ?1 OR substr(config_key, 1, length(?1) + 1) IN (?1 || '.', ?1 || '[')
             ORDER BY seq DESC LIMIT ?2";
        let limit = i64::try_from(count_max).unwrap_or(i64::MAX);
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_map(params![key, limit], read)?.collect())
            .map_err(LedgerError::sqlite(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::clock::Clock;
    use crate::ledger::{Ledger, LedgerReader};
    use crate::types::{ConfigRecord, ConfigSource, ConfigValue};

    fn record(pairs: &[(&str, &str)]) -> ConfigRecord {
        let value = |json: &str| ConfigValue { json: json.to_owned(), source: ConfigSource::File };
        ConfigRecord {
            values: pairs.iter().map(|(key, json)| ((*key).to_owned(), value(json))).collect(),
            changed_by: Some("Kim".to_owned()),
            signed_by: vec!["change.by".to_owned()],
            ..ConfigRecord::default()
        }
    }

    fn proved(ledger: &Ledger) {
        let proof = LedgerReader::open(ledger.state_dir()).unwrap().verify(|_, _| ()).unwrap();
        assert!(proof.holds(), "{:?}", proof.faults);
    }

    #[test]
    fn each_difference_is_a_row_and_no_difference_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
        let first = record(&[("a.x", "1"), ("a.y", "\"one\""), ("b", "null")]);
        assert_eq!(ledger.record_configuration(first.clone()).unwrap(), 3);
        assert_eq!(ledger.record_configuration(first.clone()).unwrap(), 0);
        // One changed, one removed, one added, one the same.
        let second = record(&[("a.x", "2"), ("b", "null"), ("c", "[1]")]);
        assert_eq!(ledger.record_configuration(second.clone()).unwrap(), 3);
        // What was removed comes again.
        assert_eq!(ledger.record_configuration(first.clone()).unwrap(), 3);
        let reader = LedgerReader::open(dir.path()).unwrap();
        let found = reader.config_history(None, 100).unwrap();
        assert_eq!(found.len(), 9);
        let of = |key: &str| -> Vec<_> {
            let found = reader.config_history(Some(key), 100).unwrap();
            found.into_iter().rev().map(|change| (change.config_key, change.old_value, change.new_value)).collect()
        };
        let key = || "a.y".to_owned();
        assert_eq!(
            of("a.y"),
            [(key(), None, Some(json!("one"))), (key(), Some(json!("one")), None), (key(), None, Some(json!("one")))]
        );
        assert_eq!(of("a").len(), 6);
        assert_eq!(of("a.").len(), 0);
        assert_eq!(of("b"), [("b".to_owned(), None, Some(json!(null)))], "a null is a value");
        assert_eq!(found[0].config_sha256, first.sha256());
        assert_eq!(found[3].config_sha256, second.sha256());
        let counters = ledger.counters().unwrap();
        assert_eq!((counters.committed, counters.config_changes, counters.captured), (3, 3, 0), "{counters:?}");
        proved(&ledger);
    }

    #[test]
    fn who_changed_it_counts_only_where_it_was_said_of_this_change() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
        let by = || {
            let reader = LedgerReader::open(dir.path()).unwrap();
            reader.config_history(Some("a"), 1).unwrap().remove(0).changed_by
        };
        ledger.record_configuration(record(&[("a", "1"), ("change.by", "\"Kim\"")])).unwrap();
        assert_eq!(by().as_deref(), Some("Kim"));
        ledger.record_configuration(record(&[("a", "2"), ("change.by", "\"Kim\"")])).unwrap();
        assert_eq!(by(), None, "nobody signed the second change");
        let unsigned = ConfigRecord { signed_by: Vec::new(), ..record(&[("a", "3"), ("change.by", "\"Kim\"")]) };
        ledger.record_configuration(unsigned).unwrap();
        assert_eq!(by().as_deref(), Some("Kim"));
    }

    #[test]
    fn a_unit_that_is_gone_from_the_outbox_is_found_and_put_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
        ledger.record_configuration(record(&[("a", "1"), ("b", "2")])).unwrap();
        ledger.record_configuration(record(&[("a", "2")])).unwrap();
        ledger.close().unwrap();
        let connection = rusqlite::Connection::open(crate::ledger::database_path(dir.path())).unwrap();
        connection.execute("DELETE FROM outbox WHERE seq = 1", []).unwrap();
        drop(connection);
        let repaired = crate::ledger::repair(dir.path(), &Clock::system(), false).unwrap();
        let found = [&repaired.enqueued.lines[..], &repaired.enqueued_in_doubt.lines[..]].concat();
        assert!(found.iter().any(|line| line.contains("2 keys of the configuration")), "{repaired:?}");
        let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
        proved(&ledger);
        let pending = LedgerReader::open(dir.path()).unwrap().pending_units(10, usize::MAX).unwrap();
        let rows: usize = pending.units.iter().map(|unit| unit.rows["config_history"].len()).sum();
        assert_eq!((rows, pending.unreadable.len()), (4, 0));
    }
}
