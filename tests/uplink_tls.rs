//! TLS to a real PostgreSQL: the right server is reached, every other one is refused in words that help.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use loupe::uplink::{Central, Secret, UplinkError, block_on};
use support::postgres::Postgres;
use support::proxy::Proxy;
use support::{loupe, succeed, text};

/// A certificate authority in a folder of its own.
struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |file: &str| dir.path().join(file);
        let config = "[ca]\ndefault_ca = it\n[it]\ndatabase = index.txt\nserial = serial\nnew_certs_dir = .\n\
             default_md = sha256\npolicy = any\nunique_subject = no\n[any]\ncommonName = supplied\n";
        std::fs::write(path("ca.cnf"), config).unwrap();
        std::fs::write(path("index.txt"), "").unwrap();
        std::fs::write(path("serial"), "01\n").unwrap();
        let authority = Self { dir };
        let subject = format!("/CN={name}");
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "30",
            "-subj",
            &subject,
        ]);
        authority
    }

    fn openssl(&self, args: &[&str]) {
        let mut command = Command::new("openssl");
        succeed(command.args(args).current_dir(self.dir.path()));
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Make `server` show a certificate for `names`, valid in these years.
    fn issue(&self, server: &Postgres, names: &str, from_year: &str, to_year: &str) {
        std::fs::write(self.dir.path().join("extensions"), format!("subjectAltName = {names}\n")).unwrap();
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "server.key",
            "-out",
            "server.csr",
            "-subj",
            "/CN=server",
        ]);
        let (from, to) = (format!("{from_year}0101000000Z"), format!("{to_year}0101000000Z"));
        self.openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "ca.cnf",
            "-keyfile",
            "ca.key",
            "-cert",
            "ca.pem",
            "-in",
            "server.csr",
            "-out",
            "server.pem",
            "-startdate",
            &from,
            "-enddate",
            &to,
            "-extfile",
            "extensions",
        ]);
        for name in ["server.key", "server.pem"] {
            server.put(name, &std::fs::read(self.dir.path().join(name)).unwrap());
        }
        server.configure("ssl = on\nssl_cert_file = 'server.pem'\nssl_key_file = 'server.key'");
        server.stop();
        server.restart();
    }
}

fn connect(dsn: &str) -> Result<String, UplinkError> {
    block_on(async { Central::connect(&Secret::new(dsn)).await.map(|central| central.server().to_owned()) })
}

fn dsn(server: &Postgres, host: &str, mode: &str, root: Option<&Path>) -> String {
    let root = root.map(|path| format!("&sslrootcert={}", path.display())).unwrap_or_default();
    format!("postgresql://postgres:any@{host}:{}/central?sslmode={mode}{root}", server.port())
}

#[track_caller]
fn refused(dsn: &str, expected: &[&str]) {
    let error = connect(dsn).unwrap_err();
    let said = error.to_string();
    assert!(expected.iter().all(|part| said.contains(part)), "{said}");
    assert!(error.is_configuration(), "{said}");
}

#[test]
fn the_right_server_is_reached_and_every_other_certificate_is_refused() {
    let Some(server) = Postgres::start() else { return };
    let authority = Authority::new("Plant CA");
    let stranger = Authority::new("Other CA");
    authority.issue(&server, "DNS:localhost,IP:127.0.0.1", "2020", "2049");
    let root = authority.file();
    let with = |mode: &str| dsn(&server, "127.0.0.1", mode, Some(&root));
    for mode in ["require", "verify-ca", "verify-full"] {
        connect(&with(mode)).unwrap();
    }
    connect(&dsn(&server, "localhost", "verify-full", Some(&root))).unwrap();

    let other = stranger.file();
    for mode in ["require", "verify-ca", "verify-full"] {
        refused(&dsn(&server, "127.0.0.1", mode, Some(&other)), &["not trusted here", "sslrootcert=FILE"]);
    }
    refused(&dsn(&server, "127.0.0.1", "verify-full", Some(Path::new("/nowhere.pem"))), &["/nowhere.pem", "PEM file"]);
    let empty = server.put("empty.pem", b"no certificate\n");
    refused(&dsn(&server, "127.0.0.1", "verify-full", Some(&empty)), &["holds no certificate"]);

    authority.issue(&server, "DNS:db.plant", "2020", "2049");
    refused(&with("verify-full"), &["not for this host name", "db.plant", "verify-ca"]);
    refused(&with("require"), &["not for this host name"]);
    connect(&with("verify-ca")).unwrap();

    authority.issue(&server, "IP:127.0.0.1", "2020", "2021");
    for mode in ["require", "verify-ca", "verify-full"] {
        refused(&with(mode), &["has expired", "renew it"]);
    }
    // The program ends as for any fault of the configuration.
    let said = support::fail_with(loupe().args(["db", "status"]).env("LOUPE_DSN", with("verify-full")), 78);
    assert!(said.contains("has expired"), "{said}");
    authority.issue(&server, "IP:127.0.0.1", "2048", "2049");
    refused(&with("verify-full"), &["not valid yet", "clock"]);
}

#[test]
fn a_server_without_tls_is_refused_where_tls_is_asked_for() {
    let Some(server) = Postgres::start() else { return };
    let authority = Authority::new("Plant CA");
    for mode in ["require", "verify-ca", "verify-full"] {
        refused(&dsn(&server, "127.0.0.1", mode, Some(&authority.file())), &["offers no TLS", "ssl=on"]);
    }
    for mode in ["disable", "prefer"] {
        connect(&dsn(&server, "127.0.0.1", mode, None)).unwrap();
    }
}

/// What `loupe db status` says on stderr of a server that is not on this machine.
fn warnings(proxy: &Proxy, mode: &str) -> String {
    let dsn = format!("{}?sslmode={mode}", proxy.dsn_of("postgres", "any"));
    let output = loupe().args(["db", "status"]).env("LOUPE_DSN", dsn).output().unwrap();
    text(&output.stderr)
}

#[test]
fn nothing_goes_to_another_machine_in_the_clear_without_a_warning() {
    let Some(server) = Postgres::start() else { return };
    let proxy = Proxy::start_on("127.0.0.2", server.port());
    for mode in ["prefer", "disable"] {
        let said = warnings(&proxy, mode);
        assert!(said.contains("not encrypted") && said.contains("verify-full"), "{said}");
    }
    Authority::new("Plant CA").issue(&server, "DNS:db.plant", "2020", "2049");
    let said = warnings(&proxy, "prefer");
    assert!(!said.contains("not encrypted") && said.contains("not checked to be the right one"), "{said}");
    assert!(warnings(&proxy, "disable").contains("not encrypted"));
}
