//! A migrated central database, and a ledger that reports to it.

use std::path::Path;

use loupe::clock::{Clock, Stopwatch};
use loupe::ledger::{Ledger, LedgerReader};
use loupe::uplink::{Central, Courier, Delivery, Secret, UplinkConfig, UplinkError, block_on};
use uuid::Uuid;

use super::postgres::Postgres;
use super::samples;

pub const SITE: Uuid = Uuid::from_u128(0xA);

/// A server with Loupe's schema; `None` where PostgreSQL is not installed, said on stdout.
pub fn start() -> Option<Postgres> {
    let server = Postgres::start()?;
    migrate(&server);
    Some(server)
}

pub fn migrate(server: &Postgres) {
    block_on(async { Central::connect(&Secret::new(server.dsn())).await?.migrate().await }).unwrap();
}

/// A site with its login: its id, the login's name and password.
pub fn provision(server: &Postgres, code: &'static str) -> (Uuid, String, String) {
    let dsn = Secret::new(server.dsn());
    let site = block_on(async { Central::connect(&dsn).await?.provision_site(code, "Plant", None).await }).unwrap();
    (site.site_id, site.role_name, site.password.expose().to_owned())
}

pub fn open(dir: &Path) -> Ledger {
    let ledger = Ledger::open(dir, Clock::system()).unwrap();
    samples::provenance(&ledger);
    ledger
}

/// A ledger in which `count` inspections wait.
pub fn filled(dir: &Path, count: u64) -> Ledger {
    let ledger = open(dir);
    for number in 0..count {
        ledger.submit(samples::inspection(number), Vec::new()).unwrap();
    }
    // Answered after all before it.
    ledger.unpark().unwrap();
    ledger
}

pub fn to_site(dsn: impl Into<String>) -> UplinkConfig {
    UplinkConfig { dsn: Secret::new(dsn), site_id: Some(SITE) }
}

/// Deliver all, after `prepare` has set the courier's limits.
pub fn deliver(
    ledger: &Ledger,
    config: &UplinkConfig,
    prepare: impl FnOnce(&mut Courier),
) -> Result<Delivery, UplinkError> {
    block_on(async {
        let mut courier = Courier::connect(ledger.clone(), &config.dsn, config.site_id).await?;
        prepare(&mut courier);
        courier.deliver_all(|_| ()).await
    })
}

pub fn count(server: &Postgres, table: &str) -> usize {
    server.lines(&format!("SELECT count(*) FROM loupe.{table}"))[0].parse().unwrap()
}

/// Everything committed is delivered, nothing is pending, central has each inspection once and no other, and the
/// ledger adds up.
pub fn conserved(server: &Postgres, ledger: &Ledger) {
    let counters = ledger.counters().unwrap();
    assert_eq!((counters.delivered, counters.pending), (counters.committed, 0), "{counters:?}");
    let mut sent: Vec<String> = ledger.recent(1_000_000).unwrap().iter().map(|i| i.id.to_string()).collect();
    sent.sort();
    assert_eq!(server.lines("SELECT id::text FROM loupe.inspections ORDER BY 1"), sent);
    let rows = server.lines("SELECT sum(item_count), (SELECT count(*) FROM loupe.items) FROM loupe.inspections");
    let (expected, found) = rows[0].split_once('|').unwrap();
    assert_eq!(expected, found, "items are missing or double");
    proved(ledger);
}

pub fn proved(ledger: &Ledger) {
    let proof = LedgerReader::open(ledger.state_dir()).unwrap().verify(|_, _| ()).unwrap();
    assert!(proof.holds(), "{:?}", proof.faults);
}

/// Wait until `holds`, for at most a minute.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let stopwatch = Stopwatch::start();
    while !holds() {
        assert!(stopwatch.elapsed().as_secs() < 60, "does not happen: {what}");
        std::thread::yield_now();
    }
}
