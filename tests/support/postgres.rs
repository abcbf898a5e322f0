//! A real PostgreSQL in a temporary folder, on a port of its own, gone when dropped.
//!
//! Runs as user postgres where the tests run as root, since PostgreSQL refuses root. Roles belong to a
//! server, so each test starts its own.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// The one database, empty at first.
const DATABASE: &str = "central";

pub struct Postgres {
    bin: PathBuf,
    dir: TempDir,
    port: u16,
}

impl Postgres {
    /// Start a server; `None` where PostgreSQL is not installed, said on stdout.
    pub fn start() -> Option<Self> {
        let Some(bin) = binaries() else {
            println!("skipped: no PostgreSQL below /usr/lib/postgresql");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { bin, dir, port };
        let data = server.data();
        server.run("initdb", &["-D", &data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]);
        // Logins of sites prove themselves, so that tests see a password that is wrong.
        let hba =
            "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(Path::new(&data).join("pg_hba.conf"), hba).unwrap();
        server.restart();
        server.query_in("postgres", &format!("CREATE DATABASE {DATABASE}"));
        Some(server)
    }

    /// Put `lines` into postgresql.conf; they hold from the next start on.
    pub fn configure(&self, lines: &str) {
        use std::io::Write as _;
        let path = Path::new(&self.data()).join("postgresql.conf");
        let mut file = std::fs::File::options().append(true).open(path).unwrap();
        writeln!(file, "{lines}").unwrap();
    }

    /// Put a file into the data folder, readable by the server alone; returns its path.
    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let data = PathBuf::from(self.data());
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&data).unwrap());
        let path = data.join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
        path
    }

    pub fn restart(&self) {
        self.start_up("", &[]);
    }

    /// Start with `more` options, which win over those of the tests.
    pub fn restart_with(&self, more: &str) {
        self.start_up(more, &[]);
    }

    /// Start with these variables in the server's environment.
    pub fn restart_in(&self, environment: &[(&str, &Path)]) {
        self.start_up("", environment);
    }

    fn start_up(&self, more: &str, environment: &[(&str, &Path)]) {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c fsync=off -c shared_buffers=32MB {more}",
            self.port,
            self.dir.path().display()
        );
        let log = self.dir.path().join("log").display().to_string();
        self.run_with(
            "pg_ctl",
            &["-D", &self.data(), "-w", "-t", "60", "-l", &log, "-o", &options, "start"],
            environment,
        );
    }

    /// Whether the server takes connections.
    pub fn answers(&self) -> bool {
        let port = self.port.to_string();
        let mut ready = Command::new(self.bin.join("pg_isready"));
        ready.args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success()
    }

    pub fn stop(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-w", "-m", "immediate", "stop"]);
    }

    /// The DSN of the superuser.
    pub fn dsn(&self) -> String {
        self.dsn_of("postgres", "any")
    }

    pub fn dsn_of(&self, user: &str, password: &str) -> String {
        format!("postgresql://{user}:{password}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Run `sql` as superuser; one line a row, columns separated by `|`.
    pub fn query(&self, sql: &str) -> String {
        self.query_in(DATABASE, sql)
    }

    /// The rows of [`Postgres::query`].
    pub fn lines(&self, sql: &str) -> Vec<String> {
        self.query(sql).lines().map(str::to_owned).collect()
    }

    fn query_in(&self, database: &str, sql: &str) -> String {
        let port = self.port.to_string();
        let output = Command::new(self.bin.join("psql"))
            .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &port, "-U", "postgres"])
            .args(["-d", database, "-c", sql])
            .output()
            .unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Folder of the programs: psql and others.
    pub fn programs(&self) -> &Path {
        &self.bin
    }

    /// Run `sql` in a transaction that stays open until what this returns is dropped.
    pub fn hold(&self, sql: &str) -> Held {
        use std::io::{BufRead as _, Write as _};
        let mut child = Command::new(self.bin.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", DATABASE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "BEGIN; {sql}; SELECT 'held';").unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Held(child)
    }

    fn data(&self) -> String {
        self.dir.path().join("data").display().to_string()
    }

    fn run(&self, program: &str, args: &[&str]) {
        self.run_with(program, args, &[]);
    }

    fn run_with(&self, program: &str, args: &[&str], environment: &[(&str, &Path)]) {
        let status = self.command(program, args).envs(environment.iter().copied()).status().unwrap();
        assert!(status.success(), "{program} {args:?}: {status}");
    }

    /// A program of PostgreSQL, ready to be run as a user it accepts.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let program = self.bin.join(program);
        let mut command = as_postgres(&program);
        command.args(args).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It may be down already, and a panic here would hide the one that matters.
        drop(self.command("pg_ctl", &["-D", &self.data(), "-w", "-m", "immediate", "stop"]).status());
    }
}

/// `program` as user postgres where this is root, which PostgreSQL and PgBouncer refuse to run as.
pub fn as_postgres(program: &Path) -> Command {
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if is_root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// A session with an open transaction.
pub struct Held(std::process::Child);

impl Drop for Held {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn binaries() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop()
}
