//! The conservation oracle: what was promised is in the ledger, what the ledger holds is in PostgreSQL, once, the same
//! in every column that is sent, and the next inspection flows.
//!
//! It reads the ledger's tables and the central ones by itself, so that an error of the encoder is one too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use loupe::backup::check;
use loupe::clock::{Clock, Stopwatch};
use loupe::ledger::{
    CentralTable, Ledger, LedgerError, LedgerReader, SENT_TABLES, SentTable, database_path, read_parcel,
};
use loupe::types::{Digest, Timestamp};
use loupe::uplink::{Central, ProvisionedSite, Secret, UplinkConfig, block_on, drain};
use rusqlite::types::Value as Cell;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use uuid::Uuid;

use crate::driver::{Ack, Drive, POISON, STATION, serving};
use crate::support::postgres::Postgres;
use crate::support::samples;

/// Longest time that delivery may take once the faults have ended.
const PATIENCE_S: u64 = 240;

/// Goes from the ledger some days after it was delivered.
const DETAIL: [&str; 3] = ["items", "anomaly_maps", "frame_qa_logs"];

/// One device of one site under test, and what it promised.
pub struct Subject<'a> {
    pub server: &'a Postgres,
    pub site: ProvisionedSite,
    pub state: PathBuf,
    pub acks: Vec<Ack>,
    /// Microseconds that the device's clock is off.
    pub clock_us: i64,
}

/// What an oracle looked at.
#[derive(Debug, Default, Clone, Copy)]
pub struct Verdict {
    pub promised: usize,
    pub inspections: usize,
    pub rows: usize,
    pub parked: usize,
    /// Inspections in the ledger that nobody was told of: the process died before it could say so.
    pub untold: usize,
    pub lost: usize,
}

impl std::ops::AddAssign for Verdict {
    fn add_assign(&mut self, other: Self) {
        self.promised += other.promised;
        self.inspections += other.inspections;
        self.rows += other.rows;
        self.parked += other.parked;
        self.untold += other.untold;
        self.lost += other.lost;
    }
}

/// Migrate the central database.
pub fn migrate(server: &Postgres) {
    let dsn = Secret::new(server.dsn());
    block_on(async { Central::connect(&dsn).await?.migrate().await }).unwrap();
}

impl<'a> Subject<'a> {
    /// A device of a new site, its state below `dir`.
    pub fn new(server: &'a Postgres, dir: &Path, code: &str) -> Self {
        let dsn = Secret::new(server.dsn());
        let site = block_on(async { Central::connect(&dsn).await?.provision_site(code, code, None).await }).unwrap();
        Self { server, site, state: dir.join(code), acks: Vec::new(), clock_us: 0 }
    }

    pub fn dsn(&self) -> String {
        self.site.dsn.expose().to_owned()
    }

    pub fn config(&self) -> UplinkConfig {
        UplinkConfig { dsn: self.site.dsn.clone(), site_id: None }
    }

    /// The centre wants another recipe and another fit of this site, and a part of all; every third recipe is no good.
    pub fn publish(&self, number: u64) {
        let (site, sort) = (self.site.site_id, if number.is_multiple_of(3) { "bad" } else { "good" });
        let body = format!("name = \"{sort}-{number}\"");
        self.server.query(&format!(
            "INSERT INTO loupe.parts (part_number, name_en) VALUES ('part-{number}', 'Part')
                 ON CONFLICT DO NOTHING;
             INSERT INTO loupe.recipes (site_id, sha256, name, version_label, body)
                 VALUES ('{site}', sha256('{body}'), '{sort}', '{number}', '{body}') ON CONFLICT DO NOTHING;
             UPDATE loupe.recipe_assignments SET is_active = false WHERE site_id = '{site}' AND is_active;
             INSERT INTO loupe.recipe_assignments (site_id, station, recipe_id)
                 SELECT '{site}', '{STATION}', id FROM loupe.recipes WHERE site_id = '{site}' AND body = '{body}';
             INSERT INTO loupe.fits (site_id, generation_sha256, sha256, body)
                 VALUES ('{site}', sha256('generation'), sha256('{number}'), '{number}')
                 ON CONFLICT (generation_sha256, (coalesce(site_id, '00000000-0000-0000-0000-000000000000'::uuid)))
                 DO UPDATE SET sha256 = excluded.sha256, body = excluded.body, is_active = true"
        ));
    }

    /// Number of the last change of its fits, which are changed last.
    pub fn last_change(&self) -> i64 {
        let sql =
            format!("SELECT coalesce(max(change_seq), 0) FROM loupe.fits WHERE site_id = '{}'", self.site.site_id);
        self.server.query(&sql).parse().unwrap()
    }

    pub fn withdraw_fits(&self) {
        self.server.query(&format!("UPDATE loupe.fits SET is_active = false WHERE site_id = '{}'", self.site.site_id));
    }

    /// The device started as usual.
    ///
    /// # Panics
    /// When it does not start.
    pub fn open(&self) -> Ledger {
        let clock = Clock::system();
        clock.shift(self.clock_us);
        let ledger = Ledger::open(&self.state, clock).unwrap_or_else(|error| panic!("no normal start: {error}"));
        samples::provenance(&ledger);
        ledger
    }

    /// The faults are over: drain, let a fresh inspection flow, and compare everything.
    ///
    /// # Errors
    /// The first violation, in words.
    pub fn judge(&self) -> Result<Verdict, String> {
        let ledger = self.open();
        drain_all(&ledger, &self.config())?;
        let mut fresh = samples::inspection(77);
        fresh.captured_at = Clock::system().now();
        fresh.decided_at = fresh.captured_at;
        let fresh = ledger.commit(fresh, Vec::new()).map_err(|error| format!("no fresh inspection: {error}"))?;
        drain_all(&ledger, &self.config())?;
        let counters = ledger.counters().map_err(|error| error.to_string())?;
        if counters.pending != counters.parked || counters.committed != counters.delivered + counters.pending {
            return Err(format!("the counters do not balance: {counters:?}"));
        }
        let device = ledger.device_id();
        ledger.close().map_err(|error| format!("no clean close: {error}"))?;
        let reader = LedgerReader::open(&self.state).map_err(|error| error.to_string())?;
        let proof = reader.verify(|_, _| ()).map_err(|error| error.to_string())?;
        if !proof.holds() {
            return Err(format!("the ledger does not add up: {:?}", proof.faults));
        }
        let local = Local::open(&self.state);
        self.promises_are_kept(&local)?;
        let mut verdict = self.tables_agree(&local, device)?;
        let arrived = self.server.lines(&format!("SELECT count(*) FROM loupe.inspections WHERE id = '{}'", fresh.id));
        if arrived != ["1"] {
            return Err(format!("the fresh inspection {} is {} times in the centre", fresh.id, arrived[0]));
        }
        self.codes_are_unique(&local)?;
        self.index_serves()?;
        self.copies_are_whole()?;
        self.centre_is_obeyed()?;
        let told: BTreeSet<Uuid> = self.acks.iter().filter_map(inspection_of).collect();
        verdict.promised = self.acks.iter().filter(|ack| !matches!(ack, Ack::Refused { .. } | Ack::Done)).count();
        verdict.inspections = local.ids("inspections").len();
        verdict.untold = local.ids("inspections").iter().filter(|id| **id != fresh.id.0 && !told.contains(id)).count();
        Ok(verdict)
    }

    fn promises_are_kept(&self, local: &Local) -> Result<(), String> {
        let records = local.records();
        let reviews = local.ids("reviews");
        let sessions = local.ids("kit_sessions");
        let remarks: BTreeSet<Uuid> = [local.ids("feedback"), local.ids("action_logs")].into_iter().flatten().collect();
        let people = local.people();
        let stock = local.number("SELECT coalesce(max(new_quantity), 0) FROM stock_ledger");
        for ack in &self.acks {
            let is_kept = match ack {
                Ack::Inspection { id, code, record } => {
                    records.get(id).is_some_and(|(held, text)| held == code && Digest::of(text.as_bytes()) == *record)
                }
                Ack::Shown { id, code } => records.get(id).is_some_and(|(held, _)| held == code),
                Ack::Review { id } => reviews.contains(id),
                Ack::Person { operator_id, version } => people.contains(&(*operator_id, *version)),
                Ack::Remark { id } => remarks.contains(id),
                Ack::Session { id } => sessions.contains(id),
                Ack::Stock { quantity } => stock >= *quantity,
                Ack::Sample { recorded_at } => {
                    let there = self.server.lines(&format!(
                        "SELECT count(*) FROM loupe.gpu_stats WHERE recorded_at = '{recorded_at}' AND site_id = '{}'",
                        self.site.site_id
                    ));
                    there == ["1"]
                }
                Ack::Generation { .. } | Ack::Refused { .. } | Ack::Done => true,
            };
            if !is_kept {
                return Err(format!("LOST: promised and not there, or changed: {ack:?}"));
            }
        }
        Ok(())
    }

    /// Every row that is sent: there once, the same; and no row there that is not here.
    fn tables_agree(&self, local: &Local, device: Uuid) -> Result<Verdict, String> {
        let waiting = local.waiting();
        let poison = local.poison();
        if waiting != poison {
            return Err(format!("parked are {waiting:?}, which should be {poison:?}"));
        }
        let mut verdict = Verdict { parked: waiting.len(), ..Verdict::default() };
        let brief = local.uuids("SELECT inspection_id FROM delivered_inspections WHERE is_brief = 1");
        for table in SENT_TABLES {
            if ["gpu_stats", "system_stats"].contains(&table.name) {
                self.samples_came_once(table.name, device)?;
                continue;
            }
            let types = self.types_of(table);
            let here = local.rows(table, &waiting);
            let there = self.rows_there(table, device)?;
            for (key, row) in &here {
                let Some(central) = there.get(key) else {
                    return Err(format!("LOST: {} {key} did not arrive", table.name));
                };
                for (column, cell) in row {
                    let value = &central[column];
                    if !agrees(cell, value, types.get(column).map_or("", String::as_str)) {
                        return Err(format!("CHANGED: {} {key}: {column} is {cell:?} here, {value} there", table.name));
                    }
                }
            }
            let is_brief = |row: &Value| {
                let id = row["inspection_id"].as_str().and_then(|id| id.parse().ok());
                DETAIL.contains(&table.name) && id.is_some_and(|id: Uuid| brief.contains(&id))
            };
            if let Some((key, _)) = there.iter().find(|(key, row)| !here.contains_key(*key) && !is_brief(row)) {
                return Err(format!("INVENTED: {} {key} is in the centre and not in the ledger", table.name));
            }
            verdict.rows += here.len();
        }
        Ok(verdict)
    }

    fn types_of(&self, table: &SentTable) -> BTreeMap<String, String> {
        let sql = format!(
            "SELECT column_name, data_type FROM information_schema.columns
             WHERE table_schema = 'loupe' AND table_name = '{}'",
            table.name
        );
        let pair = |line: String| line.split_once('|').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        self.server.lines(&sql).into_iter().map(pair).collect()
    }

    /// By the last column of the key; a key that is there twice is a violation.
    fn rows_there(&self, table: &SentTable, device: Uuid) -> Result<BTreeMap<String, Value>, String> {
        let key = table.key.last().unwrap();
        let sql = format!("SELECT to_jsonb(t) FROM loupe.{} t WHERE device_id = '{device}'", table.name);
        let mut rows = BTreeMap::new();
        for line in self.server.lines(&sql) {
            let row: Value = serde_json::from_str(&line).unwrap();
            let name = row[*key].as_str().unwrap().to_owned();
            if rows.insert(name.clone(), row).is_some() {
                return Err(format!("DOUBLE: {} {name} is there twice", table.name));
            }
        }
        Ok(rows)
    }

    fn samples_came_once(&self, table: &str, device: Uuid) -> Result<(), String> {
        let sql = format!("SELECT id FROM loupe.{table} WHERE device_id = '{device}' GROUP BY id HAVING count(*) > 1");
        match self.server.lines(&sql).first() {
            Some(id) => Err(format!("DOUBLE: {table} {id} is there twice")),
            None => Ok(()),
        }
    }

    fn codes_are_unique(&self, local: &Local) -> Result<(), String> {
        let here = local.number("SELECT count(*) - count(DISTINCT code) FROM inspections");
        let there = self.server.lines(&format!(
            "SELECT count(*) - count(DISTINCT code) FROM loupe.inspections WHERE site_id = '{}'",
            self.site.site_id
        ));
        if here == 0 && there == ["0"] {
            Ok(())
        } else {
            Err(format!("codes given twice: {here} here, {there:?} there"))
        }
    }

    /// A backup or export under its own name is whole.
    fn copies_are_whole(&self) -> Result<(), String> {
        let backup = Drive::backup_file(&self.state);
        if backup.exists() {
            let scratch = self.state.parent().unwrap();
            let checked = check(&backup, scratch, None, &Clock::system(), &mut |_, _| ());
            let proof = checked.map_err(|error| format!("the backup is damaged: {error}"))?.proof;
            if !proof.holds() {
                return Err(format!("the backup does not add up: {:?}", proof.faults));
            }
        }
        let export = Drive::export_file(&self.state);
        if export.exists() {
            read_parcel(&export, |_| Ok::<(), LedgerError>(()))
                .map_err(|error| format!("the export is damaged: {error}"))?;
        }
        Ok(())
    }

    /// What the centre wants is here, and the centre knows what became of it, once.
    fn centre_is_obeyed(&self) -> Result<(), String> {
        let site = self.site.site_id;
        let wanted = self
            .server
            .query(&format!("SELECT count(*) FROM loupe.recipe_assignments WHERE site_id = '{site}' AND is_active"));
        if wanted == "0" {
            return Ok(());
        }
        let drive = Drive { pulls: Some(self.last_change()), ..Drive::idle(&self.state, &self.dsn()) };
        let status = drive.command().stdout(std::process::Stdio::null()).status().unwrap();
        if !status.success() {
            return Err(format!("a driver that only pulls fails: {status}"));
        }
        let reader = LedgerReader::open(&self.state).map_err(|error| error.to_string())?;
        let head = self
            .server
            .query(&format!("SELECT max(change_seq) FROM loupe.parts WHERE site_id IS NULL OR site_id = '{site}'"));
        let cursor = reader.central_cursor(CentralTable::Parts).map_err(|error| error.to_string())?;
        if head != cursor.to_string() {
            return Err(format!("the centre's parts stand at {head}, the cursor at {cursor}"));
        }
        let local = Local::open(&self.state);
        let (held, parts) = (
            local.number("SELECT count(*) FROM central_rows WHERE table_name = 'parts' AND state = 'applied'"),
            self.server.query("SELECT count(*) FROM loupe.parts WHERE is_active AND site_id IS NULL"),
        );
        if held.to_string() != parts {
            return Err(format!("of {parts} parts of the centre {held} are in use"));
        }
        let told = |kind: &str| {
            self.server.query(&format!(
                "SELECT outcome || ' ' || encode(sha256, 'hex') FROM loupe.provision_reports
                 WHERE site_id = '{site}' AND subject_kind = '{kind}' ORDER BY occurred_at DESC, id DESC LIMIT 1"
            ))
        };
        for fit in reader.fit_states().map_err(|error| error.to_string())? {
            let serving = fit.taken_sha256.map_or_else(String::new, |sha256| format!("serving {sha256}"));
            if told("fit") != serving {
                return Err(format!("of the fit the centre was told `{}`, it is `{serving}`", told("fit")));
            }
        }
        for station in reader.station_recipes().map_err(|error| error.to_string())? {
            let refused = station.refused_sha256.map(|sha256| format!("refused {sha256}"));
            if refused.is_some_and(|refused| told("recipe") != refused) {
                return Err(format!("of the refused recipe the centre was told `{}`", told("recipe")));
            }
        }
        let untold = local.number("SELECT count(*) FROM provision_reports");
        if untold > 0 {
            return Err(format!("{untold} reports were not sent"));
        }
        Ok(())
    }

    /// An index that was once built answers, by the last generation promised or a later one.
    fn index_serves(&self) -> Result<(), String> {
        let root = Drive::index_dir(&self.state);
        let promised = self.acks.iter().rev().find_map(|ack| match ack {
            Ack::Generation { name } => Some(name.clone()),
            _ => None,
        });
        let Some(promised) = promised else { return Ok(()) };
        let name = serving(&root).map_err(|error| format!("the index does not open: {error}"))?;
        if root.join("quarantine").exists() {
            return Err(format!("a generation was damaged; {name} serves, {promised} was promised"));
        }
        crate::driver::build(&root, "part-next").map_err(|error| format!("the index cannot be built: {error}"))?;
        Ok(())
    }
}

fn inspection_of(ack: &Ack) -> Option<Uuid> {
    match ack {
        Ack::Inspection { id, .. } | Ack::Shown { id, .. } => Some(*id),
        _ => None,
    }
}

/// Drain until nothing but parked units waits; a server that is just coming back may refuse for a while.
pub fn drain_all(ledger: &Ledger, config: &UplinkConfig) -> Result<(), String> {
    let watch = Stopwatch::start();
    loop {
        let outcome = drain(ledger.clone(), config, |_| ());
        let counters = ledger.counters().map_err(|error| error.to_string())?;
        if outcome.is_ok() && counters.pending == counters.parked {
            return Ok(());
        }
        if watch.elapsed().as_secs() > PATIENCE_S {
            return Err(format!("the outbox does not drain: {counters:?}, {outcome:?}"));
        }
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
}

/// The ledger's tables, read without the ledger room.
struct Local(Connection);

impl Local {
    fn open(state: &Path) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self(Connection::open_with_flags(database_path(state), flags).unwrap())
    }

    fn number(&self, sql: &str) -> i64 {
        self.0.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn ids(&self, table: &str) -> BTreeSet<Uuid> {
        self.uuids(&format!("SELECT id FROM {table}"))
    }

    fn uuids(&self, sql: &str) -> BTreeSet<Uuid> {
        let mut statement = self.0.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get::<_, [u8; 16]>(0)).unwrap();
        rows.map(|id| Uuid::from_bytes(id.unwrap())).collect()
    }

    /// Versions of people.
    fn people(&self) -> BTreeSet<(Uuid, i64)> {
        let mut statement = self.0.prepare("SELECT operator_id, version FROM operators").unwrap();
        let read = |row: &rusqlite::Row<'_>| Ok((Uuid::from_bytes(row.get(0)?), row.get(1)?));
        statement.query_map([], read).unwrap().map(Result::unwrap).collect()
    }

    /// Units still in the outbox, by the id of their root.
    fn waiting(&self) -> BTreeSet<Uuid> {
        self.uuids("SELECT key_id FROM outbox")
    }

    /// Inspections that central must refuse.
    fn poison(&self) -> BTreeSet<Uuid> {
        let prefix = POISON.trim_end_matches('\0');
        self.uuids(&format!("SELECT id FROM inspections WHERE source GLOB '{prefix}*'"))
    }

    fn records(&self) -> BTreeMap<Uuid, (String, String)> {
        let mut statement = self.0.prepare("SELECT id, code, record FROM inspections").unwrap();
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, [u8; 16]>(0)?, (row.get(1)?, row.get(2)?)));
        let rows = statement.query_map([], read).unwrap();
        rows.map(|row| row.map(|(id, held)| (Uuid::from_bytes(id), held)).unwrap()).collect()
    }

    /// What of `table` must be in the centre: everything but the families of units that wait, and what is not finished.
    fn rows(&self, table: &SentTable, waiting: &BTreeSet<Uuid>) -> BTreeMap<String, BTreeMap<String, Cell>> {
        let condition = match table.name {
            "kit_sessions" => "ended_at IS NOT NULL",
            "provenances" => "sha256 IN (SELECT provenance_sha256 FROM inspections)",
            _ => "1",
        };
        let columns: Vec<&str> = table.columns().collect();
        let sql = format!("SELECT {} FROM {} WHERE {condition}", columns.join(", "), table.local_name);
        let mut statement = self.0.prepare(&sql).unwrap();
        let mut found = statement.query([]).unwrap();
        let mut rows = BTreeMap::new();
        while let Some(row) = found.next().unwrap() {
            let cells: BTreeMap<String, Cell> =
                columns.iter().enumerate().map(|(at, name)| ((*name).to_owned(), row.get(at).unwrap())).collect();
            let roots = ["id", "inspection_id", "reference_id"];
            let is_waiting = !["reviews", "feedback", "action_logs"].contains(&table.name)
                && roots.iter().filter_map(|name| cells.get(*name)).any(|cell| match cell {
                    Cell::Blob(bytes) => Uuid::from_slice(bytes).is_ok_and(|id| waiting.contains(&id)),
                    _ => false,
                });
            if !is_waiting {
                rows.insert(text_of(&cells[*table.key.last().unwrap()]), cells);
            }
        }
        rows
    }
}

/// A blob as PostgreSQL shows it.
fn text_of(cell: &Cell) -> String {
    match cell {
        Cell::Blob(bytes) if bytes.len() == 16 => Uuid::from_slice(bytes).unwrap().to_string(),
        Cell::Blob(bytes) => {
            format!("\\x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
        other => format!("{other:?}"),
    }
}

/// Whether a cell of the ledger and a value of the centre say the same.
#[expect(clippy::cast_possible_truncation, reason = "the ledger stores f32s")]
fn agrees(cell: &Cell, value: &Value, data_type: &str) -> bool {
    match (cell, value) {
        (Cell::Null, Value::Null) => true,
        (Cell::Integer(micros), Value::String(text)) if data_type.starts_with("timestamp") => {
            text.parse::<jiff::Timestamp>().is_ok_and(|time| time.as_microsecond() == *micros)
        }
        (Cell::Integer(number), Value::Bool(flag)) => (*number != 0) == *flag,
        (Cell::Integer(number), Value::Number(there)) => there.as_i64() == Some(*number),
        (Cell::Real(real), Value::Number(there)) => {
            there.as_f64().is_some_and(|there| (there as f32).to_bits() == (*real as f32).to_bits())
        }
        (Cell::Text(text), Value::String(there)) if data_type != "jsonb" => text == there,
        (Cell::Text(text), there) => serde_json::from_str::<Value>(text).is_ok_and(|here| same_json(&here, there)),
        (Cell::Blob(_), Value::String(there)) => text_of(cell) == *there,
        _ => false,
    }
}

/// As PostgreSQL stores numbers by value, 1 and 1.0 are the same.
fn same_json(here: &Value, there: &Value) -> bool {
    match (here, there) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_json(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same_json(a, b)))
        }
        _ => here == there,
    }
}

/// When an inspection of `day` days ago was captured.
pub fn days_ago(now: Timestamp, days: f64) -> Timestamp {
    #[expect(clippy::cast_possible_truncation, reason = "microseconds of some months")]
    let us = (days * 86_400e6) as i64;
    Timestamp::from_micros(now.as_micros() - us)
}

#[test]
fn the_oracle_tells_a_changed_cell() {
    let cell = Cell::Real(f64::from(0.1_f32));
    assert!(agrees(&cell, &serde_json::json!(0.1), "real"));
    assert!(!agrees(&cell, &serde_json::json!(0.10001), "real"));
    assert!(!agrees(&Cell::Null, &serde_json::json!(0), "integer"));
    assert!(agrees(&Cell::Text("[\"a\"]".to_owned()), &serde_json::json!(["a"]), "ARRAY"));
    assert!(!agrees(&Cell::Text("[\"a\"]".to_owned()), &serde_json::json!(["b"]), "ARRAY"));
    assert!(!agrees(
        &Cell::Integer(1),
        &serde_json::json!("1970-01-01T00:00:00.000002+00:00"),
        "timestamp with time zone"
    ));
}
