//! Through a real PgBouncer in transaction mode: every transaction may get another server connection, or another's.

mod support;

use loupe::uplink::{Secret, UplinkConfig};
use support::central::{conserved, count, deliver, filled, proved, provision, start};
use support::pgbouncer::PgBouncer;
use support::samples;
use uuid::Uuid;

fn config(dsn: String, site_id: Option<Uuid>) -> UplinkConfig {
    UplinkConfig { dsn: Secret::new(dsn), site_id }
}

#[test]
fn several_couriers_share_one_server_connection() {
    let Some(server) = start() else { return };
    let (site_a, role_a, password_a) = provision(&server, "plant-a");
    let (site_b, role_b, password_b) = provision(&server, "plant-b");
    let Some(bouncer) = PgBouncer::start(&server, &[(&role_a, &password_a), (&role_b, &password_b)]) else { return };
    // Two devices of one site, which share a login and its pool, and one of another.
    let devices = [(&role_a, &password_a), (&role_a, &password_a), (&role_b, &password_b)];
    let dirs = devices.map(|_| tempfile::tempdir().unwrap());
    std::thread::scope(|scope| {
        for (dir, (role, password)) in dirs.iter().zip(devices) {
            let config = config(bouncer.dsn_of(role, password), None);
            scope.spawn(move || {
                let ledger = filled(dir.path(), 60);
                let delivery = deliver(&ledger, &config, |courier| courier.limit_units(5)).unwrap();
                assert_eq!((delivery.delivered, delivery.parked), (60, 0));
                proved(&ledger);
            });
        }
    });
    let sites = server.lines("SELECT site_id, count(*) FROM loupe.inspections GROUP BY 1 ORDER BY 1");
    assert_eq!(sites, [format!("{site_a}|120"), format!("{site_b}|60")]);
    assert_eq!(count(&server, "items"), 180);
    let leftovers = server.lines("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'loupe'");
    assert!(leftovers[0].parse::<u32>().unwrap() <= 1, "more than one server connection: {leftovers:?}");
}

#[test]
fn a_poisoned_row_behind_a_pooler_leaves_nothing_in_the_session() {
    let Some(server) = start() else { return };
    let (_, role, password) = provision(&server, "plant-a");
    let Some(bouncer) = PgBouncer::start(&server, &[(&role, &password)]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let ledger = filled(dir.path(), 10);
    let mut poison = samples::inspection(10);
    poison.source = "nul\0byte".to_owned();
    ledger.commit(poison, Vec::new()).unwrap();
    for number in 11..20 {
        ledger.commit(samples::inspection(number), Vec::new()).unwrap();
    }
    let config = config(bouncer.dsn_of(&role, &password), None);
    let delivery = deliver(&ledger, &config, |_| ()).unwrap();
    assert_eq!((delivery.delivered, delivery.parked), (19, 1));
    // The next client gets the same server connection, with no site, no statement and no table of this one.
    let other = tempfile::tempdir().unwrap();
    let ledger = filled(other.path(), 3);
    deliver(&ledger, &config, |_| ()).unwrap();
    assert_eq!(count(&server, "inspections"), 22);
    assert!(!bouncer.log().contains("prepared statement"), "{}", bouncer.log());
}

#[test]
fn a_site_that_asks_for_another_through_the_pooler_gets_nothing() {
    let Some(server) = start() else { return };
    let (site_a, role_a, password_a) = provision(&server, "plant-a");
    let (site_b, role_b, password_b) = provision(&server, "plant-b");
    let Some(bouncer) = PgBouncer::start(&server, &[(&role_a, &password_a), (&role_b, &password_b)]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let ledger = filled(dir.path(), 5);
    let error = deliver(&ledger, &config(bouncer.dsn_of(&role_a, &password_a), Some(site_b)), |_| ()).unwrap_err();
    assert!(error.to_string().contains("may not write site"), "{error}");
    assert_eq!(count(&server, "inspections"), 0);
    deliver(&ledger, &config(bouncer.dsn_of(&role_a, &password_a), Some(site_a)), |_| ()).unwrap();
    conserved(&server, &ledger);
}
