//! The central schema on a real PostgreSQL: who may touch which row, what the audit proves, what jobs do and leave alone.

mod support;

use std::process::Command;

use loupe::clock::Clock;
use loupe::ledger::Ledger;
use loupe::types::{GpuStat, Timestamp};
use loupe::uplink::{
    Central, MigrationReport, ProvisionedSite, RetentionReport, Secret, StepKind, UplinkConfig, block_on, drain,
};
use serde_json::Value;
use support::postgres::Postgres;
use support::{fail_with, loupe, samples, succeed, text};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// Newest migration of this program.
fn version() -> i32 {
    std::fs::read_dir(support::root().join("migrations/central"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix('V')?.split_once("__")?.0.parse().ok())
        .max()
        .unwrap()
}

fn migrate(server: &Postgres) -> MigrationReport {
    let dsn = Secret::new(server.dsn());
    block_on(async { Central::connect(&dsn).await?.migrate().await }).unwrap()
}

fn provision(server: &Postgres, code: &str) -> ProvisionedSite {
    let dsn = Secret::new(server.dsn());
    block_on(async { Central::connect(&dsn).await?.provision_site(code, "Plant", None).await }).unwrap()
}

/// `loupe <args>` against `dsn`, with one JSON document as its answer.
fn json(dsn: &str, args: &[&str]) -> Value {
    let output = succeed(loupe().args(args).arg("--json").env("LOUPE_DSN", dsn));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A login on the server that stays connected.
struct Session {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Session {
    fn open(dsn: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.unwrap();
            tokio::spawn(connection);
            client
        });
        Self { runtime, client }
    }

    /// The first column of each row (rows affected where there are none), or the SQLSTATE and the message.
    fn run(&self, sql: &str) -> Result<Vec<String>, String> {
        let answer =
            self.runtime.block_on(self.client.simple_query(sql)).map_err(|error| match error.as_db_error() {
                Some(answer) => format!("{} {}", answer.code().code(), answer.message()),
                None => format!("not refused: {error}"),
            })?;
        Ok(answer
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
                SimpleQueryMessage::CommandComplete(rows) if !sql.starts_with("SELECT") => Some(rows.to_string()),
                _ => None,
            })
            .collect())
    }
}

/// A login without a site, in the given groups.
fn login(server: &Postgres, name: &str, groups: &str) -> String {
    server.query(&format!("CREATE ROLE {name} LOGIN PASSWORD 'sesame' IN ROLE {groups}"));
    server.dsn_of(name, "sesame")
}

/// Sixty inspections, two GPU samples, delivered as `site`.
fn deliver(site: &ProvisionedSite, numbers: std::ops::Range<u64>) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path(), Clock::system()).unwrap();
    samples::provenance(&ledger);
    for number in numbers {
        let inspection = if number % 3 == 0 { samples::held(number) } else { samples::inspection(number) };
        ledger.submit(inspection, Vec::new()).unwrap();
    }
    let gpu = |gpu_index| GpuStat { gpu_index, gpu_util_pct: Some(50.0), ..GpuStat::default() };
    ledger.record_gpu_stats(Timestamp::from_micros(samples::NOON_US), vec![gpu(0), gpu(1)]).unwrap();
    drain(ledger, &UplinkConfig { dsn: site.dsn.clone(), site_id: None }, |_| ()).unwrap();
}

// ------------------------------------------------------------------------------------------ migrations

/// Everything of the schema that a failed migration could leave behind.
fn catalogue(server: &Postgres) -> Vec<String> {
    server.lines(
        "SELECT 'schema', nspname FROM pg_namespace WHERE nspname = 'loupe'
         UNION ALL SELECT 'role', rolname FROM pg_roles WHERE rolname LIKE 'loupe%'
         UNION ALL SELECT 'object', c.relname || c.relkind::text || coalesce(c.relacl::text, '') FROM pg_class c
            JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'loupe'
         UNION ALL SELECT 'column', a.attrelid::regclass || '.' || a.attname FROM pg_attribute a
            JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = 'loupe' AND a.attnum > 0
         UNION ALL SELECT 'function', p.oid::regprocedure || md5(p.prosrc) FROM pg_proc p
            JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'loupe'
         UNION ALL SELECT 'policy', p.polrelid::regclass || '.' || p.polname FROM pg_policy p
         ORDER BY 1, 2",
    )
}

/// From now on, what creates a view (the last migration does) ends like this.
fn sabotage(server: &Postgres, how: &str) {
    server.query(&format!(
        "CREATE FUNCTION public.sabotage() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN {how}; END $$;
         CREATE EVENT TRIGGER sabotage ON ddl_command_end WHEN TAG IN ('CREATE VIEW')
            EXECUTE FUNCTION public.sabotage()"
    ));
}

fn repair(server: &Postgres) {
    server.query("DROP EVENT TRIGGER sabotage; DROP FUNCTION public.sabotage()");
}

#[test]
fn a_migration_that_fails_or_is_cut_off_leaves_the_database_as_before() {
    let Some(server) = Postgres::start() else { return };
    let dsn = Secret::new(server.dsn());
    let fails = || block_on(async { Central::connect(&dsn).await?.migrate().await }).unwrap_err().to_string();
    // From nothing, and from an earlier version with rows in it.
    for from in [0, 5] {
        if from > 0 {
            block_on(async { Central::connect(&dsn).await?.migrate_to(from).await }).unwrap();
            server.query(
                "INSERT INTO loupe.sites (id, code, name) VALUES (gen_random_uuid(), 'early', 'Early');
                 INSERT INTO loupe.provenances SELECT id, sha256('{}'), now(), '{}', id FROM loupe.sites",
            );
        }
        let before = catalogue(&server);
        sabotage(&server, "RAISE EXCEPTION 'the disk is full'");
        let error = fails();
        assert!(error.contains("V8__views") && error.contains("the disk is full"), "{error}");
        repair(&server);
        assert_eq!(catalogue(&server), before);
        // The connection dies in the middle of the last migration.
        sabotage(&server, "PERFORM pg_terminate_backend(pg_backend_pid())");
        fails();
        repair(&server);
        assert_eq!(catalogue(&server), before);
    }
    assert_eq!(migrate(&server).version, version());
    assert_eq!(server.query("SELECT code, is_active FROM loupe.sites"), "early|t");
    assert_eq!(migrate(&server).applied.len(), 0);
}

#[test]
fn a_changed_migration_or_a_newer_schema_is_a_matter_of_configuration() {
    let Some(server) = Postgres::start() else { return };
    let run = |args: &[&str], exit_code| fail_with(loupe().args(args).env("LOUPE_DSN", server.dsn()), exit_code);
    for args in [["db", "rollup"], ["db", "retention"], ["audit", "verify"]] {
        assert!(run(&args, 78).contains("loupe db migrate"), "{args:?}");
    }
    migrate(&server);
    server.query("UPDATE loupe.schema_migrations SET checksum = '1' WHERE version = 2");
    let error = run(&["db", "migrate"], 78);
    assert!(error.contains("V2__facts") && error.contains("edited"), "{error}");
    server.query("UPDATE loupe.schema_migrations SET version = 9999 WHERE version = 2");
    for args in [["db", "migrate"], ["db", "rollup"], ["db", "retention"], ["audit", "verify"]] {
        let error = run(&args, 78);
        assert!(error.contains("newer schema (9999)"), "{args:?}: {error}");
    }
    // Looking is allowed, and says so.
    let output = succeed(loupe().args(["db", "status"]).env("LOUPE_DSN", server.dsn()));
    assert!(text(&output.stdout).contains("version 9999"), "{}", text(&output.stdout));
}

#[test]
fn a_login_that_is_refused_is_a_matter_of_configuration() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    server.query("CREATE ROLE stale LOGIN PASSWORD 'hunter2' VALID UNTIL '2020-01-01' IN ROLE loupe_ops");
    server.query("CREATE ROLE shut NOLOGIN PASSWORD 'hunter2' IN ROLE loupe_ops");
    server.query("CREATE ROLE fresh LOGIN PASSWORD 'sesame' IN ROLE loupe_ops");
    for user in ["stale", "shut", "fresh", "nobody"] {
        let error = fail_with(loupe().args(["db", "status"]).env("LOUPE_DSN", server.dsn_of(user, "hunter2")), 78);
        assert!(error.contains(&format!("127.0.0.1:{}", server.port())) && !error.contains("hunter2"), "{error}");
        assert!(error.contains(user), "{error}");
    }
    let nowhere = server.dsn().replace("/central", "/nowhere");
    assert!(fail_with(loupe().args(["db", "status"]).env("LOUPE_DSN", nowhere), 78).contains("nowhere"));
    // A server that is down may come back: not a fault of the configuration.
    server.stop();
    fail_with(loupe().args(["db", "status"]).env("LOUPE_DSN", server.dsn()), 1);
    server.restart();
}

// ------------------------------------------------------------------------------------------ the schema

const PARENTS: &str = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'loupe' AND c.relkind IN ('r', 'p') AND NOT c.relispartition";

#[test]
fn every_table_view_and_column_has_a_comment() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let of_all = PARENTS.replace("('r', 'p')", "('r', 'p', 'v', 'm')");
    let bare = server.lines(&format!("SELECT c.relname {of_all} AND obj_description(c.oid) IS NULL"));
    assert!(bare.is_empty(), "without a comment: {bare:?}");
    let bare = server.lines(&format!(
        "SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         WHERE a.attnum > 0 AND NOT a.attisdropped AND c.oid IN (SELECT c.oid {of_all})
            AND col_description(c.oid, a.attnum) IS NULL"
    ));
    assert!(bare.is_empty(), "columns without a comment: {bare:?}");
    let bare = server.lines(
        "SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'loupe'::regnamespace
            AND obj_description(oid) IS NULL",
    );
    assert!(bare.is_empty(), "functions without a comment: {bare:?}");
}

#[test]
fn every_partitioned_table_has_its_policies() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    for policies in ["partition_policies", "retention_policies"] {
        let bare = server.lines(&format!(
            "SELECT c.relname {PARENTS} AND c.relkind = 'p'
                AND NOT EXISTS (SELECT FROM loupe.{policies} p WHERE p.table_name = c.relname)"
        ));
        assert!(bare.is_empty(), "tables without a row in {policies}: {bare:?}");
    }
}

/// A table, partition, view or materialised view of the schema.
#[derive(Debug)]
struct Relation {
    name: String,
    /// `r`, `p`, `v` or `m`.
    kind: String,
    is_partition: bool,
    /// Column that names the site.
    site_column: Option<String>,
    /// The device may insert, as the catalogue says.
    takes_rows: bool,
    reads: bool,
}

fn relations(server: &Postgres) -> Vec<Relation> {
    let sql = "SELECT c.relname, c.relkind, c.relispartition,
            coalesce((SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
                AND NOT a.attisdropped AND a.attname = CASE c.relname WHEN 'sites' THEN 'id' ELSE 'site_id' END), ''),
            c.relkind IN ('r', 'p') AND has_table_privilege('loupe_device', c.oid, 'INSERT'),
            has_any_column_privilege('loupe_device', c.oid, 'SELECT')
        FROM pg_class c WHERE c.relnamespace = 'loupe'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
        ORDER BY c.relispartition, c.relname";
    let read = |line: &String| {
        let fields: Vec<&str> = line.split('|').collect();
        Relation {
            name: fields[0].to_owned(),
            kind: fields[1].to_owned(),
            is_partition: fields[2] == "t",
            site_column: Some(fields[3].to_owned()).filter(|name| !name.is_empty()),
            takes_rows: fields[4] == "t",
            reads: fields[5] == "t",
        }
    };
    server.lines(sql).iter().map(read).collect()
}

/// A row of any table: the site where it belongs, something of its type in every column that must have a value.
fn row_of(server: &Postgres, relation: &Relation, site: &ProvisionedSite) -> String {
    let columns = server.lines(&format!(
        "SELECT quote_ident(a.attname), format_type(a.atttypid, NULL) FROM pg_attribute a
         WHERE a.attrelid = 'loupe.{}'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
            AND (a.attnotnull OR a.attname = '{}')",
        relation.name,
        relation.site_column.as_deref().unwrap_or_default()
    ));
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for column in &columns {
        let (name, kind) = column.split_once('|').unwrap();
        names.push(name);
        values.push(match kind {
            _ if Some(name) == relation.site_column.as_deref() => format!("'{}'", site.site_id),
            "uuid" => "gen_random_uuid()".to_owned(),
            "text" | "character varying" => "md5(random()::text)".to_owned(),
            "timestamp with time zone" => "clock_timestamp()".to_owned(),
            "date" => "current_date".to_owned(),
            "boolean" => "true".to_owned(),
            "bytea" => "sha256(random()::text::bytea)".to_owned(),
            "jsonb" => "'{}'".to_owned(),
            array if array.ends_with("[]") => "'{}'".to_owned(),
            number if ["integer", "smallint", "bigint", "real", "double precision", "numeric"].contains(&number) => {
                "(random() * 30000)::int".to_owned()
            }
            other => panic!("{}: {name} is of type {other}, of which this test makes no value", relation.name),
        });
    }
    format!("INSERT INTO loupe.{} ({}) VALUES ({})", relation.name, names.join(", "), values.join(", "))
}

/// The one line that must hold for every statement against another site.
fn is_refused(outcome: &Result<Vec<String>, String>) -> bool {
    match outcome {
        Ok(rows) => rows.iter().all(|row| row == "0"),
        // Denied, or no such thing can be done to a view.
        Err(error) => ["42501", "42809", "55000"].iter().any(|code| error.starts_with(code)),
    }
}

#[test]
fn a_device_touches_no_row_of_another_site_in_any_table() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let (ours, theirs) = (provision(&server, "ours"), provision(&server, "theirs"));
    let relations = relations(&server);
    let tables: Vec<&Relation> =
        relations.iter().filter(|r| !r.is_partition && ["r", "p"].contains(&r.kind.as_str())).collect();
    assert!(tables.iter().filter(|table| table.site_column.is_some()).count() > 14, "{}", tables.len());

    let open = server.lines(&format!(
        "SELECT c.relname {PARENTS} AND c.relname <> 'schema_migrations'
            AND NOT (c.relrowsecurity AND c.relforcerowsecurity)"
    ));
    assert!(open.is_empty(), "tables without forced row-level security: {open:?}");
    let granted = server.lines(
        "SELECT c.relname, c.relacl FROM pg_class c WHERE c.relnamespace = 'loupe'::regnamespace AND c.relispartition
            AND c.relkind = 'r' AND c.relacl IS NOT NULL",
    );
    assert!(granted.is_empty(), "partitions with grants, which go round the parent: {granted:?}");
    let powers = server.lines(
        "SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'loupe'::regnamespace AND p.prosecdef
            AND p.prorettype <> 'trigger'::regtype AND has_function_privilege('loupe_device', p.oid, 'EXECUTE')",
    );
    assert_eq!(powers, ["loupe.current_site()"], "functions that lend a device the owner's rights");

    // A row of each site in every table, whatever its constraints: what is tested is who may touch it.
    server.query(
        "DO $$ DECLARE c record; BEGIN
            FOR c IN SELECT conrelid::regclass AS target, conname FROM pg_constraint
                WHERE connamespace = 'loupe'::regnamespace AND contype = 'c' AND coninhcount = 0
            LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I', c.target, c.conname); END LOOP;
        END $$",
    );
    for table in tables.iter().filter(|table| table.site_column.is_some()) {
        if !["sites", "site_logins"].contains(&table.name.as_str()) {
            for site in [&ours, &theirs] {
                server.query(&format!("SET session_replication_role = replica; {}", row_of(&server, table, site)));
            }
        }
    }
    for view in relations.iter().filter(|relation| relation.kind == "m") {
        server.query(&format!("REFRESH MATERIALIZED VIEW loupe.{}", view.name));
    }
    let contents = || {
        let of = |table: &&&Relation| {
            server.lines(&format!(
                "SELECT '{0}', md5(string_agg(t::text, ',' ORDER BY t::text)) FROM loupe.{0} t WHERE {1} = '{2}'",
                table.name,
                table.site_column.as_deref().unwrap_or_default(),
                theirs.site_id
            ))
        };
        tables.iter().filter(|table| table.site_column.is_some()).flat_map(|table| of(&table)).collect::<Vec<_>>()
    };
    let before = contents();
    let bare = before.iter().filter(|line| line.ends_with('|')).collect::<Vec<_>>();
    assert!(bare.is_empty(), "no row to protect in {bare:?}");

    let session = Session::open(ours.dsn.expose());
    let mut faults = Vec::new();
    let mut statements = 0;
    for asks in ["", &theirs.site_id.to_string()] {
        session.run(&format!("SET loupe.site_id = '{asks}'")).unwrap();
        for relation in &relations {
            let Relation { name, site_column, .. } = relation;
            let mut attempts = vec![
                format!("DELETE FROM loupe.{name}"),
                format!("TRUNCATE loupe.{name}"),
                format!("COPY loupe.{name} FROM STDIN"),
            ];
            if let Some(column) = site_column {
                let them = theirs.site_id;
                attempts.push(format!("SELECT count(*) FROM loupe.{name} WHERE {column} = '{them}'"));
                attempts.push(format!("UPDATE loupe.{name} SET {column} = '{}'", ours.site_id));
                attempts.push(format!("DELETE FROM loupe.{name} WHERE {column} = '{them}'"));
            } else if name != "schema_migrations" {
                attempts.push(format!("SELECT count(*) FROM loupe.{name}"));
            }
            if ["r", "p"].contains(&relation.kind.as_str()) {
                attempts.push(row_of(&server, relation, &theirs));
            }
            for sql in attempts {
                statements += 1;
                let outcome = session.run(&sql);
                // COPY FROM is not supported with row-level security: 0A000.
                let is_copy = matches!(&outcome, Err(error) if error.starts_with("0A000") && sql.starts_with("COPY"));
                if !is_copy && !is_refused(&outcome) {
                    faults.push(format!("{sql}: {outcome:?}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} of {statements}:\n{}", faults.len(), faults.join("\n"));

    // COPY TO, the only way to read that psql must do.
    let script: String = relations
        .iter()
        .filter_map(|relation| {
            let column = relation.site_column.as_deref()?;
            Some(format!("COPY (SELECT {column} FROM loupe.{}) TO STDOUT;\n", relation.name))
        })
        .collect();
    let per_table = script.lines().map(|line| {
        let output = Command::new("psql").args(["-X", "-q", ours.dsn.expose(), "-c", line]).output().unwrap();
        (line, text(&output.stdout))
    });
    let mut copied_own = 0;
    for (line, output) in per_table {
        assert!(!output.contains(&theirs.site_id.to_string()), "{line} shows {output}");
        copied_own += usize::from(output.contains(&ours.site_id.to_string()));
    }
    assert!(copied_own > 10, "only {copied_own} tables showed the device its own rows");
    assert_eq!(contents(), before);

    // It is not that nothing works at all.
    session.run("SET loupe.site_id = ''").unwrap();
    for table in &tables {
        let Some(column) = &table.site_column else { continue };
        if table.reads {
            let own = session.run(&format!("SELECT count(*) FROM loupe.{} WHERE {column} IS NOT NULL", table.name));
            assert_eq!(own, Ok(vec!["1".to_owned()]), "{}", table.name);
        }
        if table.takes_rows {
            assert_eq!(session.run(&row_of(&server, table, &ours)), Ok(vec!["1".to_owned()]), "{}", table.name);
        }
    }
}

#[test]
fn groups_may_do_what_the_model_says() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let site = provision(&server, "plant-a");
    deliver(&site, 0..3);
    let ops = Session::open(&login(&server, "viewer", "loupe_ops"));
    let admin = Session::open(&login(&server, "boss", "loupe_admin"));
    let job = login(&server, "timer", "loupe_job");
    let one = Ok(vec!["1".to_owned()]);
    assert_eq!(ops.run("SELECT count(*) FROM loupe.sites"), one);
    assert_eq!(ops.run("SELECT count(*) FROM loupe.inspections"), Ok(vec!["3".to_owned()]));
    for view in relations(&server).iter().filter(|relation| relation.kind == "v") {
        ops.run(&format!("SELECT count(*) FROM loupe.{}", view.name)).unwrap();
    }
    let edit = "UPDATE loupe.retention_policies SET keep_days = 60 WHERE table_name = 'gpu_stats'";
    assert!(ops.run(edit).unwrap_err().starts_with("42501"));
    assert_eq!(admin.run(edit), one);
    assert_eq!(
        server.query(
            "SELECT actor_name, action, entity_id, old_values ->> 'keep_days', new_values ->> 'keep_days'
            FROM loupe.audit_log ORDER BY chain_seq DESC LIMIT 1"
        ),
        "boss|update|gpu_stats|30|60"
    );
    for sql in ["UPDATE loupe.inspections SET verdict = 'pass'", "DELETE FROM loupe.sites", "DELETE FROM loupe.items"] {
        assert!(admin.run(sql).unwrap_err().starts_with("42501"), "{sql}");
    }
    // One that chose a site sees that one, through views and materialised ones too.
    json(&job, &["db", "rollup"]);
    ops.run("SET loupe.site_id = '00000000-0000-7000-8000-000000000001'").unwrap();
    for name in ["inspections", "v_dashboard_stats", "v_site_performance", "v_part_statistics", "v_recent_inspections"]
    {
        assert_eq!(ops.run(&format!("SELECT count(*) FROM loupe.{name}")), Ok(vec!["0".to_owned()]), "{name}");
    }
    ops.run(&format!("SET loupe.site_id = '{}'", site.site_id)).unwrap();
    assert_eq!(ops.run("SELECT count(*) FROM loupe.v_site_performance"), one);
    // Jobs are for jobs.
    let error = fail_with(loupe().args(["db", "rollup"]).env("LOUPE_DSN", site.dsn.expose()), 78);
    assert!(error.contains("loupe_job"), "{error}");
}

#[test]
fn a_revoked_site_does_nothing_until_its_secret_is_rotated() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let site = provision(&server, "plant-a");
    let session = Session::open(site.dsn.expose());
    assert_eq!(session.run("SELECT code FROM loupe.sites"), Ok(vec!["plant-a".to_owned()]));
    let revoked = json(&server.dsn(), &["db", "revoke-site", "plant-a"]);
    assert_eq!(revoked["role_names"][0], "loupe_site_plant-a");
    assert_eq!(revoked["sessions_ended"], 1);
    assert!(session.run("SELECT 1").is_err(), "the session goes on");
    let error = fail_with(loupe().args(["db", "status"]).env("LOUPE_DSN", site.dsn.expose()), 78);
    assert!(error.contains("not permitted to log in"), "{error}");
    assert_eq!(server.query("SELECT is_active FROM loupe.sites"), "f");
    assert!(json(&server.dsn(), &["db", "revoke-site", "plant-a"])["role_names"].as_array().unwrap().is_empty());
    fail_with(loupe().args(["db", "revoke-site", "plant-z"]).env("LOUPE_DSN", server.dsn()), 1);

    let fresh = json(&server.dsn(), &["db", "provision-site", "--code", "plant-a", "--rotate"]);
    assert_eq!(fresh["site_id"], site.site_id.to_string());
    assert_ne!(fresh["password"], site.password.expose());
    let error = fail_with(loupe().args(["db", "status"]).env("LOUPE_DSN", site.dsn.expose()), 78);
    assert!(error.contains("password"), "{error}");
    let session = Session::open(fresh["dsn"].as_str().unwrap());
    assert_eq!(session.run("SELECT code FROM loupe.sites"), Ok(vec!["plant-a".to_owned()]));
    // Whoever looks at the audit learns no secret.
    let audit = server.query("SELECT string_agg(a::text, ',') FROM loupe.audit_log a");
    assert!(!audit.contains(fresh["password"].as_str().unwrap()));
    assert_eq!(json(&server.dsn(), &["audit", "verify"])["holds"], true);
}

// ------------------------------------------------------------------------------------------ the audit

/// `loupe audit verify`: the kinds and positions of what it found.
fn breaks(server: &Postgres) -> Vec<(i64, String)> {
    let output = loupe().args(["audit", "verify", "--json"]).env("LOUPE_DSN", server.dsn()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found: Vec<(i64, String)> = report["breaks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| (found["chain_seq"].as_i64().unwrap(), found["kind"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(output.status.code(), Some(i32::from(!found.is_empty())), "{report}");
    assert_eq!(report["holds"], found.is_empty());
    found
}

/// As the superuser, past every trigger.
fn tamper(server: &Postgres, sql: &str) {
    server.query(&format!("SET session_replication_role = replica; {sql}"));
}

#[test]
fn audit_rows_that_were_edited_deleted_inserted_or_moved_are_named() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    for code in ["plant-a", "plant-b", "plant-ü".trim_end_matches('ü'), "plant-d"] {
        provision(&server, code.trim_end_matches('-'));
    }
    server.query("UPDATE loupe.sites SET name = E'Werk \"Süd\"\\n\\t\\\\ \\x01' WHERE code = 'plant-d'");
    assert_eq!(breaks(&server), []);
    let last: i64 = server.query("SELECT max(chain_seq) FROM loupe.audit_log").parse().unwrap();
    assert!(last > 10);
    tamper(&server, "CREATE TABLE public.kept AS SELECT * FROM loupe.audit_log");
    tamper(&server, "CREATE TABLE public.kept_head AS SELECT * FROM loupe.audit_heads");
    let check = |sql: &str, expected: &[(i64, &str)]| {
        tamper(&server, sql);
        let expected: Vec<(i64, String)> = expected.iter().map(|(seq, kind)| (*seq, (*kind).to_owned())).collect();
        assert_eq!(breaks(&server), expected, "{sql}");
        // The same by the view, but for the end.
        if expected.iter().all(|(seq, _)| *seq < last) {
            let seen = server.lines("SELECT chain_seq FROM loupe.v_audit_chain_breaks");
            assert!(!seen.is_empty(), "{sql}");
        }
        tamper(
            &server,
            "DELETE FROM loupe.audit_log; INSERT INTO loupe.audit_log SELECT * FROM public.kept;
             DELETE FROM loupe.audit_heads; INSERT INTO loupe.audit_heads SELECT * FROM public.kept_head",
        );
        assert_eq!(breaks(&server), []);
    };
    check("UPDATE loupe.audit_log SET actor_name = 'somebody' WHERE chain_seq = 5", &[(5, "edited")]);
    check(
        "UPDATE loupe.audit_log SET new_values = new_values || '{\"name\": \"x\"}' WHERE chain_seq = 5",
        &[(5, "edited")],
    );
    check(
        "UPDATE loupe.audit_log SET occurred_at = occurred_at + interval '1 microsecond' WHERE chain_seq = 5",
        &[(5, "edited")],
    );
    check(
        "UPDATE loupe.audit_log a SET actor_name = 'somebody' WHERE chain_seq = 5;
         UPDATE loupe.audit_log a SET row_sha256 = sha256(prev_sha256 || convert_to(loupe.audit_text(a), 'UTF8'))
            WHERE chain_seq = 5",
        &[(6, "unlinked")],
    );
    check("DELETE FROM loupe.audit_log WHERE chain_seq IN (5, 6)", &[(5, "missing"), (6, "missing")]);
    check(&format!("DELETE FROM loupe.audit_log WHERE chain_seq = {last}"), &[(last, "missing")]);
    check(
        "INSERT INTO loupe.audit_log SELECT (jsonb_populate_record(a, jsonb_build_object('id',
            'ffffffff-ffff-7fff-bfff-ffffffffffff', 'actor_name', 'forger'))).* FROM loupe.audit_log a WHERE chain_seq = 5",
        &[(5, "inserted"), (5, "edited")],
    );
    check(
        "UPDATE loupe.audit_log SET chain_seq = 11 - chain_seq WHERE chain_seq IN (5, 6)",
        &[(5, "edited"), (6, "edited"), (7, "unlinked")],
    );
    check("TRUNCATE loupe.audit_log", &(1..=last).map(|seq| (seq, "missing")).collect::<Vec<_>>());

    // One who owns the database can write the chain anew: only an end that was kept elsewhere tells.
    let report = json(&server.dsn(), &["audit", "verify"]);
    let end = &report["chains"][0]["end"];
    let end = format!("{}:{}", end["chain_seq"], end["sha256"].as_str().unwrap());
    provision(&server, "plant-e");
    json(&server.dsn(), &["audit", "verify", "--expect", &end]);
    tamper(
        &server,
        "DO $$ DECLARE a loupe.audit_log%ROWTYPE; p bytea := decode(repeat('00', 32), 'hex'); BEGIN
            UPDATE loupe.audit_log SET actor_name = 'somebody' WHERE chain_seq = 5;
            FOR a IN SELECT * FROM loupe.audit_log ORDER BY chain_seq LOOP
                a.prev_sha256 := p; p := sha256(p || convert_to(loupe.audit_text(a), 'UTF8'));
                UPDATE loupe.audit_log SET prev_sha256 = a.prev_sha256, row_sha256 = p WHERE chain_seq = a.chain_seq;
            END LOOP;
            UPDATE loupe.audit_heads SET last_sha256 = p; END $$",
    );
    assert_eq!(breaks(&server), []);
    let error = fail_with(loupe().args(["audit", "verify", "--expect", &end]).env("LOUPE_DSN", server.dsn()), 1);
    assert!(error.contains("not as it was written"), "{error}");
}

#[test]
fn no_session_changes_the_audit() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let site = provision(&server, "plant-a");
    let count = || server.query("SELECT count(*), max(chain_seq) FROM loupe.audit_log");
    let before = count();
    let partition = server.query("SELECT tableoid::regclass FROM loupe.audit_log LIMIT 1");
    let logins = [
        login(&server, "viewer", "loupe_ops"),
        login(&server, "boss", "loupe_admin"),
        login(&server, "timer", "loupe_job"),
        site.dsn.expose().to_owned(),
        server.dsn(),
    ];
    for dsn in &logins {
        let session = Session::open(dsn);
        for table in ["loupe.audit_log", &partition] {
            for sql in [
                format!("UPDATE {table} SET actor_name = 'nobody'"),
                format!("DELETE FROM {table}"),
                format!("TRUNCATE {table}"),
            ] {
                // Whoever owns the tables may cut a partition: that is seen, not prevented.
                if sql.starts_with("TRUNCATE") && (dsn == &logins[2] || dsn == &logins[4]) && table == partition {
                    continue;
                }
                let outcome = session.run(&sql);
                assert!(is_refused(&outcome), "{sql}: {outcome:?}");
            }
        }
    }
    assert_eq!(count(), before);
    assert_eq!(breaks(&server), []);
}

#[test]
fn rows_edited_by_hand_that_others_contradict_are_named() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    deliver(&provision(&server, "plant-a"), 0..30);
    let faults = || {
        let args = ["audit", "verify", "--facts", "--days", "3650", "--json"];
        let output = loupe().args(args).env("LOUPE_DSN", server.dsn()).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let faults = report["facts"]["faults"].as_array().unwrap().clone();
        faults.iter().map(|fault| format!("{} {}", fault["table"], fault["detail"])).collect::<Vec<_>>()
    };
    assert_eq!(faults(), Vec::<String>::new());
    server.query("UPDATE loupe.provenances SET record = record || ' '");
    assert!(faults()[0].contains("does not hash"), "{:?}", faults());
    server.query("UPDATE loupe.provenances SET record = trim(record)");
    server.query("DELETE FROM loupe.items WHERE id = (SELECT min(id::text)::uuid FROM loupe.items)");
    assert!(faults()[0].contains("counts 1 items, 0 are here"), "{:?}", faults());
    server.query("DELETE FROM loupe.provenances");
    assert!(faults().iter().any(|fault| fault.contains("provenance that is not here")), "{:?}", faults());
    server.query("UPDATE loupe.ingest_batches SET sha256 = sha256('x')");
    assert!(faults().iter().any(|fault| fault.contains("not of the digest")), "{:?}", faults());
}

// ------------------------------------------------------------------------------------------ retention

fn retention(server: &Postgres, is_dry_run: bool) -> RetentionReport {
    let dsn = Secret::new(server.dsn());
    block_on(async { Central::connect(&dsn).await?.retention(is_dry_run).await }).unwrap()
}

fn kinds(report: &RetentionReport, table: &str) -> Vec<(StepKind, i64)> {
    assert_eq!(report.failures(), 0, "{report:?}");
    report.steps.iter().filter(|step| step.table == table).map(|step| (step.kind, step.rows)).collect()
}

/// GPU samples of `site` at `time` (SQL), as many as `count`.
fn gpu_stats(server: &Postgres, site: &ProvisionedSite, time: &str, ingested: &str, count: u32) {
    server.query(&format!(
        "INSERT INTO loupe.gpu_stats (site_id, recorded_at, id, gpu_index, device_id, ingested_at)
         SELECT '{0}', {time}, gen_random_uuid(), 0, '{0}', {ingested} FROM generate_series(1, {count})",
        site.site_id
    ));
}

#[test]
fn retention_makes_moves_and_drops_but_keeps_what_is_held() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let (a, b) = (provision(&server, "plant-a"), provision(&server, "plant-b"));
    assert_eq!(kinds(&retention(&server, false), "gpu_stats"), []);
    // 30 days: last month but two has expired. Its rows came late, so they lie in DEFAULT until that is made.
    let expired = "date_trunc('month', now(), 'UTC') - interval '2 months' + interval '3 days'";
    let recent = "date_trunc('month', now(), 'UTC') - interval '1 hour'";
    let ahead = "date_trunc('month', now(), 'UTC') + interval '5 months 3 days'";
    gpu_stats(&server, &a, expired, "now()", 4);
    gpu_stats(&server, &a, recent, "now()", 2);
    gpu_stats(&server, &a, ahead, "now()", 5);
    gpu_stats(&server, &a, "'1970-01-02'", "now()", 6);
    gpu_stats(&server, &a, "'1970-01-01'", "now() - interval '31 days'", 7);
    gpu_stats(&server, &a, "'2199-01-01'", "now()", 8);
    let plan = retention(&server, true);
    let planned = kinds(&plan, "gpu_stats");
    // Late rows of an expired month stay in DEFAULT until they were here for 30 days too.
    let expected = [
        (StepKind::Stray, 6),
        (StepKind::Stray, 4),
        (StepKind::Move, 2),
        (StepKind::Move, 5),
        (StepKind::Stray, 8),
        (StepKind::Expire, 7),
    ];
    assert_eq!(planned, expected, "{plan:?}");
    assert_eq!(server.query("SELECT count(*) FROM loupe.gpu_stats"), "32", "a dry run changed something");
    assert_eq!(server.query("SELECT count(*) FROM loupe.gpu_stats_default"), "32");
    assert_eq!(kinds(&retention(&server, false), "gpu_stats"), expected);
    assert_eq!(server.query("SELECT count(*) FROM loupe.gpu_stats"), "25");
    assert_eq!(server.query("SELECT count(*) FROM loupe.gpu_stats_default"), "18");
    let again = kinds(&retention(&server, false), "gpu_stats");
    assert_eq!(again, [(StepKind::Stray, 6), (StepKind::Stray, 4), (StepKind::Stray, 8)]);

    // A month that was made and has expired since, one site's part of it on hold.
    let made = server.query(&format!("SELECT loupe.make_partition('gpu_stats', {expired})"));
    assert_eq!(server.query(&format!("SELECT count(*) FROM loupe.{made}")), "4");
    gpu_stats(&server, &b, expired, "now()", 3);
    let hold = json(
        &server.dsn(),
        &[
            "db",
            "hold",
            "place",
            "--site",
            "plant-b",
            "--from",
            "2020-01-01",
            "--to",
            "2200-01-01",
            "--reason",
            "claim 7",
        ],
    );
    let id = hold[0]["id"].as_str().unwrap().to_owned();
    let step = |report: &RetentionReport| {
        report.steps.iter().find(|step| step.partition == made).map(|step| (step.kind, step.rows))
    };
    assert_eq!(step(&retention(&server, true)), Some((StepKind::Purge, 4)));
    assert_eq!(step(&retention(&server, false)), Some((StepKind::Purge, 4)));
    assert_eq!(
        server.query(&format!("SELECT count(*), min(site_id::text) FROM loupe.{made}")),
        format!("3|{}", b.site_id)
    );
    assert_eq!(step(&retention(&server, false)), Some((StepKind::Hold, 3)));
    json(&server.dsn(), &["db", "hold", "release", &id]);
    assert_eq!(json(&server.dsn(), &["db", "hold", "list"])[0]["site"], "plant-b");
    assert_eq!(step(&retention(&server, false)), Some((StepKind::Drop, 3)));
    assert_eq!(server.query(&format!("SELECT to_regclass('loupe.{made}') IS NULL")), "t");
    assert_eq!(step(&retention(&server, false)), None);
    // Each deletion is in the audit, and the partition of verdicts of that age is still there.
    let audited = server.lines(
        "SELECT details ->> 'kind', details ->> 'rows' FROM loupe.audit_log WHERE entity_type = 'partition'
         ORDER BY chain_seq",
    );
    assert_eq!(audited, ["expire|7", "purge|4", "drop|3"]);
    assert_eq!(breaks(&server), []);
}

#[test]
fn the_audit_holds_after_its_beginning_has_expired() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    provision(&server, "plant-a");
    // As if everything so far had happened eight years ago: written anew, with its digests.
    tamper(
        &server,
        "DO $$ DECLARE a loupe.audit_log%ROWTYPE; p bytea := decode(repeat('00', 32), 'hex'); BEGIN
            UPDATE loupe.audit_log SET occurred_at = occurred_at - interval '8 years', ingested_at = ingested_at - interval '8 years';
            FOR a IN SELECT * FROM loupe.audit_log ORDER BY chain_seq LOOP
                a.prev_sha256 := p; p := sha256(p || convert_to(loupe.audit_text(a), 'UTF8'));
                UPDATE loupe.audit_log SET prev_sha256 = a.prev_sha256, row_sha256 = p WHERE chain_seq = a.chain_seq;
            END LOOP;
            UPDATE loupe.audit_heads SET last_sha256 = p; END $$",
    );
    provision(&server, "plant-b");
    let all = server.query("SELECT count(*) FROM loupe.audit_log");
    let made = server.query("SELECT loupe.make_partition('audit_log', min(occurred_at)) FROM loupe.audit_log");
    assert_eq!(breaks(&server), [], "a move broke the chain");
    let report = retention(&server, false);
    assert!(report.steps.iter().any(|step| step.partition == made && step.kind == StepKind::Drop), "{report:?}");
    assert_ne!(server.query("SELECT count(*) FROM loupe.audit_log"), all);
    assert_eq!(server.query("SELECT count(*) FROM loupe.audit_anchors"), "1");
    assert_eq!(breaks(&server), []);
    assert_eq!(server.lines("SELECT * FROM loupe.v_audit_chain_breaks"), Vec::<String>::new());
}

#[test]
fn a_step_that_cannot_have_its_lock_fails_alone() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let site = provision(&server, "plant-a");
    let old = "date_trunc('month', now(), 'UTC') - interval '5 months'";
    for table in ["gpu_stats", "frame_qa_logs"] {
        server.query(&format!("UPDATE loupe.retention_policies SET keep_days = 30 WHERE table_name = '{table}'"));
        server.query(&format!("SELECT loupe.make_partition('{table}', {old})"));
    }
    gpu_stats(&server, &site, old, "now()", 2);
    // A row trigger that refuses stands for whatever a step may meet.
    server.query(
        "CREATE FUNCTION public.sabotage() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() WHERE object_name LIKE 'frame_qa_logs_20%') THEN
                RAISE EXCEPTION 'in use'; END IF; END $$;
         CREATE EVENT TRIGGER sabotage ON sql_drop EXECUTE FUNCTION public.sabotage()",
    );
    let report = retention(&server, false);
    assert_eq!(report.failures(), 1, "{report:?}");
    let failed = report.steps.iter().find(|step| step.error.is_some()).unwrap();
    assert!(failed.table == "frame_qa_logs" && failed.error.as_ref().unwrap().contains("in use"), "{failed:?}");
    assert_eq!(server.query("SELECT count(*) FROM loupe.gpu_stats"), "0");
    assert_eq!(breaks(&server), []);
    let error = fail_with(loupe().args(["db", "retention"]).env("LOUPE_DSN", server.dsn()), 1);
    assert!(error.contains("1 steps failed"), "{error}");
}

// ------------------------------------------------------------------------------------------ rollups

const ROLLED_UP: [&str; 4] = ["inspection_hourly", "item_hourly", "frame_qa_hourly", "gpu_hourly"];

fn rolled_up(server: &Postgres) -> Vec<String> {
    ROLLED_UP
        .iter()
        .flat_map(|table| server.lines(&format!("SELECT '{table}', t.* FROM loupe.{table} t ORDER BY t::text")))
        .collect()
}

/// Rows that a run changed, by table.
fn roll_up(server: &Postgres, full: &[&str]) -> Vec<i64> {
    let report = json(&server.dsn(), &[&["db", "rollup"], full].concat());
    assert!(report["views"].as_array().unwrap().iter().all(|view| view["error"].is_null()), "{report}");
    report["rollups"].as_array().unwrap().iter().map(|rollup| rollup["rows"].as_i64().unwrap()).collect()
}

#[test]
fn rollups_are_the_same_whenever_and_however_often_they_run() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let (a, b) = (provision(&server, "plant-a"), provision(&server, "plant-b"));
    deliver(&a, 0..60);
    let first = roll_up(&server, &[]);
    assert!(first.iter().all(|rows| *rows > 0), "{first:?}");
    assert_eq!(roll_up(&server, &[]), [0; 4]);
    // An hour is read again for an hour only; what arrives later than that is new by its ingested_at.
    server.query("UPDATE loupe.rollup_state SET rolled_to = clock_timestamp() + interval '2 hours'");
    deliver(&b, 10..20);
    assert_eq!(roll_up(&server, &[]), [0; 4], "facts before the overlap are read again");
    server.query("UPDATE loupe.rollup_state SET rolled_to = clock_timestamp()");
    assert!(roll_up(&server, &[]).iter().all(|rows| *rows > 0));
    // Late rows of an hour that was rolled up.
    deliver(&a, 60..90);
    assert!(roll_up(&server, &[]).iter().all(|rows| *rows > 0));
    let at_once = rolled_up(&server);
    assert_eq!(roll_up(&server, &["--full"]), [0; 4]);
    for table in ROLLED_UP {
        server.query(&format!("TRUNCATE loupe.{table}"));
    }
    roll_up(&server, &["--full"]);
    assert_eq!(rolled_up(&server), at_once);

    let counts = server.query(&format!(
        "SELECT sum(inspection_count), sum(item_count), sum(inspection_count) FILTER (WHERE verdict = 'hold'),
            sum((SELECT sum(n) FROM unnest(hist_latency_ms) n))
         FROM loupe.inspection_hourly WHERE site_id = '{}'",
        a.site_id
    ));
    assert_eq!(counts, "90|90|30|90");
    let day = server.query(&format!(
        "SELECT inspection_count, hold_count, item_count, round(avg_latency_ms::numeric, 3)
         FROM loupe.v_dashboard_stats WHERE site_id = '{}' AND day = '2026-11-21'",
        a.site_id
    ));
    let latency = server.query("SELECT round(avg(latency_ms)::numeric, 3) FROM loupe.inspections");
    assert_eq!(day, format!("90|30|90|{latency}"));
}

#[test]
fn quantiles_are_off_by_a_bucket_at_most() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let off = server.lines(
        "SELECT q, truth, guess FROM (
            SELECT q, percentile_cont(q) WITHIN GROUP (ORDER BY v) AS truth,
                loupe.hist_quantile((SELECT loupe.hist_from(array_agg(b), array_agg(n)) FROM (
                    SELECT loupe.hist_bucket(v) AS b, count(*) AS n FROM data GROUP BY 1) h), q) AS guess
            FROM (SELECT exp(random() * 8 - 2) AS v FROM generate_series(1, 20000)) d (v), unnest(ARRAY[0.01, 0.5, 0.9, 0.99]) q
            GROUP BY q) x WHERE guess / truth NOT BETWEEN 1 / 1.26 AND 1.26"
            .replace(
                "SELECT q, truth, guess FROM (",
                "WITH data AS MATERIALIZED (SELECT exp(random() * 8 - 2) AS v FROM generate_series(1, 20000))
                 SELECT q, truth, guess FROM (",
            )
            .replace("(SELECT exp(random() * 8 - 2) AS v FROM generate_series(1, 20000)) d (v),", "data,")
            .as_str(),
    );
    assert!(off.is_empty(), "{off:?}");
    let bounds = server.query(
        "SELECT loupe.hist_bucket(0), loupe.hist_bucket(0.05), loupe.hist_bucket(0.051), loupe.hist_bucket(0.1),
            loupe.hist_bucket(1e30), loupe.hist_quantile(array_fill(0::bigint, ARRAY[64]), 0.5) IS NULL",
    );
    assert_eq!(bounds, "0|0|1|3|63|t");
}

#[test]
fn a_refresh_by_a_session_that_sees_one_site_leaves_views_as_they_are() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let site = provision(&server, "plant-a");
    deliver(&site, 0..9);
    roll_up(&server, &[]);
    let held = server.query("SELECT * FROM loupe.mv_site_daily");
    assert!(!held.is_empty());
    let job = Session::open(&login(&server, "timer", "loupe_job"));
    job.run("SET loupe.site_id = '00000000-0000-7000-8000-000000000001'").unwrap();
    for how in ["", "CONCURRENTLY"] {
        let error = job.run(&format!("REFRESH MATERIALIZED VIEW {how} loupe.mv_site_daily")).unwrap_err();
        assert!(error.contains("would lose rows"), "{error}");
    }
    assert_eq!(server.query("SELECT * FROM loupe.mv_site_daily"), held);
    // A login that always has a site: the command says what is wrong.
    server.query("ALTER ROLE timer SET loupe.site_id = '00000000-0000-7000-8000-000000000001'");
    let error = fail_with(loupe().args(["db", "rollup"]).env("LOUPE_DSN", server.dsn_of("timer", "sesame")), 78);
    assert!(error.contains("does not read every site"), "{error}");
    assert_eq!(server.query("SELECT * FROM loupe.mv_site_daily"), held);
}

#[test]
fn two_rollups_at_once_do_not_meet() {
    let Some(server) = Postgres::start() else { return };
    migrate(&server);
    let other = Session::open(&server.dsn());
    other.run("SELECT pg_advisory_lock(hashtext('loupe.rollup'))").unwrap();
    assert_eq!(json(&server.dsn(), &["db", "rollup"])["is_skipped"], true);
    other.run("SELECT pg_advisory_unlock(hashtext('loupe.rollup'))").unwrap();
    assert_eq!(json(&server.dsn(), &["db", "rollup"])["is_skipped"], false);
}
