//! systemd's protocol over a real socket: the test is the service manager, a child process is the daemon.
//!
//! The child is this test binary run again with `NOTIFY_SOCKET` set, because a process cannot set its own environment
//! safely once it has threads.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use loupe::notify::{self, Progress, Watchdog};
use loupe::shutdown::Shutdown;

const PATIENCE: Duration = Duration::from_secs(20);

/// Run the ignored test `child` as the daemon and hand its messages to `read` while it lives.
fn with_child<T>(child: &str, watchdog_us: &str, read: impl FnOnce(&UnixDatagram) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", child])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", watchdog_us)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let result = read(&socket);
    assert!(process.wait().unwrap().success(), "the child failed");
    result
}

fn receive(socket: &UnixDatagram) -> String {
    let mut buffer = [0_u8; 512];
    let length = socket.recv(&mut buffer).expect("a message in time");
    String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
}

#[test]
fn watchdog_pings_only_while_progress_advances_or_the_line_is_idle() {
    let messages: Vec<String> = with_child("daemon_step_by_step", "30000000", |socket| {
        std::iter::repeat_with(|| receive(socket)).take_while(|message| message != "STOPPING=1").collect()
    });
    let expected = [
        "READY=1",
        "STATUS=2 stations running",
        "WATCHDOG=1",
        "STATUS=stuck",
        "STATUS=moving",
        "WATCHDOG=1",
        "STATUS=idle",
        "WATCHDOG=1",
        "WATCHDOG=1",
    ];
    assert_eq!(messages, expected);
}

#[test]
#[ignore = "the child of watchdog_pings_only_while_progress_advances_or_the_line_is_idle"]
fn daemon_step_by_step() {
    let progress = Progress::new("tray");
    let mut watchdog = Watchdog::new(vec![progress.clone()]);
    notify::ready();
    notify::status("2 stations\nrunning");
    assert!(watchdog.tick());
    notify::status("stuck");
    assert!(!watchdog.tick());
    assert!(!watchdog.tick());
    notify::status("moving");
    progress.advance();
    assert!(watchdog.tick());
    assert!(!watchdog.tick());
    notify::status("idle");
    progress.set_idle(true);
    assert!(watchdog.tick());
    assert!(watchdog.tick());
    notify::stopping();
}

#[test]
fn the_watchdog_thread_pings_by_itself_and_ends_with_the_daemon() {
    with_child("daemon_with_thread", "80000", |socket| {
        assert_eq!((receive(socket), receive(socket)), ("WATCHDOG=1".to_owned(), "WATCHDOG=1".to_owned()));
        while receive(socket) != "STOPPING=1" {}
    });
}

#[test]
#[ignore = "the child of the_watchdog_thread_pings_by_itself_and_ends_with_the_daemon"]
fn daemon_with_thread() {
    let (progress, shutdown) = (Progress::new("tray"), Shutdown::new());
    progress.set_idle(true);
    let thread = Watchdog::new(vec![progress]).spawn(shutdown.clone()).unwrap().expect("WATCHDOG_USEC is set");
    assert!(!shutdown.wait_timeout(Duration::from_millis(200)), "ten intervals of 20 ms");
    shutdown.request();
    thread.join().unwrap();
    notify::stopping();
}

#[test]
fn without_systemd_nothing_happens() {
    if std::env::var_os("NOTIFY_SOCKET").is_some() || std::env::var_os("WATCHDOG_USEC").is_some() {
        println!("skipped: this test runs under a service manager");
        return;
    }
    notify::ready();
    notify::stopping();
    assert!(Watchdog::new(vec![]).spawn(Shutdown::new()).unwrap().is_none());
}
