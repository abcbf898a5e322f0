//! A real PgBouncer before a [`Postgres`], in transaction mode with one server connection; gone when dropped.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Stdio};

use tempfile::TempDir;

use super::postgres::{Postgres, as_postgres};

pub struct PgBouncer {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl PgBouncer {
    /// Start one that lets `logins` (name, password) in; `None` where PgBouncer is not installed, said on stdout.
    pub fn start(server: &Postgres, logins: &[(&str, &str)]) -> Option<Self> {
        let program =
            ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].map(Path::new).into_iter().find(|path| path.exists());
        let Some(program) = program else {
            println!("skipped: PgBouncer is not installed");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let users: String = logins.iter().map(|(name, password)| format!("\"{name}\" \"{password}\"\n")).collect();
        std::fs::write(dir.path().join("users"), users).unwrap();
        let config = format!(
            "[databases]\ncentral = host=127.0.0.1 port={} dbname=central\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {dir}/users\n\
             pool_mode = transaction\ndefault_pool_size = 1\nmax_db_connections = 1\nserver_idle_timeout = 1\n\
             logfile = {dir}/log\npidfile = {dir}/pid\n",
            server.port(),
            dir = dir.path().display()
        );
        let path = dir.path().join("pgbouncer.ini");
        std::fs::write(&path, config).unwrap();
        let mut command = as_postgres(program);
        let child = command.arg(&path).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut bouncer = Self { child, port, dir };
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(bouncer.child.try_wait().unwrap().is_none(), "PgBouncer ended: {}", bouncer.log());
            std::thread::yield_now();
        }
        Some(bouncer)
    }

    pub fn dsn_of(&self, user: &str, password: &str) -> String {
        format!("postgresql://{user}:{password}@127.0.0.1:{}/central", self.port)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // It may be gone already; the test has said why.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
