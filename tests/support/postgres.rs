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

    pub fn restart(&self) {
        self.restart_with(&[]);
    }

    /// As [`Postgres::restart`], with these variables in the server's environment.
    pub fn restart_with(&self, environment: &[(&str, &Path)]) {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c fsync=off -c shared_buffers=32MB",
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
        let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
        let mut command = if is_root {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
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

fn binaries() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop()
}
