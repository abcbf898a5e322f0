//! systemd: ready, status, watchdog and stopping messages.
//!
//! The watchdog is fed by the pipeline's progress, not by a timer: [`Watchdog::tick`] pings only when **every** station
//! has moved since the last ping or says that it is idle by design (waiting for a trigger, a frame or the next file).
//! A station stuck in a driver call stops the pings, and systemd restarts the daemon after `WatchdogSec`.
//!
//! Runs on its own thread `loupe-watchdog`. Without `NOTIFY_SOCKET` (not started by systemd) every call does nothing.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::clock::Stopwatch;
use crate::shutdown::Shutdown;

/// What one station has done so far; cheap to clone. The station writes it, watchdog and health check read it.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    station: String,
    steps: AtomicU64,
    is_idle: AtomicBool,
    since_start: Stopwatch,
    /// Microseconds from `since_start` to the last step.
    last_step_us: AtomicU64,
}

impl Progress {
    #[must_use]
    pub fn new(station: &str) -> Self {
        Self(Arc::new(Inner {
            station: station.to_owned(),
            steps: AtomicU64::new(0),
            is_idle: AtomicBool::new(false),
            since_start: Stopwatch::start(),
            last_step_us: AtomicU64::new(0),
        }))
    }

    #[must_use]
    pub fn station(&self) -> &str {
        &self.0.station
    }

    /// One frame further, whatever came of it. Ends being idle.
    pub fn advance(&self) {
        self.0.last_step_us.store(self.now_us(), Ordering::Relaxed);
        self.0.steps.fetch_add(1, Ordering::Relaxed);
        self.0.is_idle.store(false, Ordering::Release);
    }

    /// Say that nothing is to be done now, and that this is as it should be; or that work begins again.
    pub fn set_idle(&self, is_idle: bool) {
        if !is_idle {
            // Work that begins after a long rest must not look stalled at once.
            self.0.last_step_us.store(self.now_us(), Ordering::Relaxed);
        }
        self.0.is_idle.store(is_idle, Ordering::Release);
    }

    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.is_idle.load(Ordering::Acquire)
    }

    /// Steps since the start.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.0.steps.load(Ordering::Relaxed)
    }

    /// Time since the last step, since work last began, or since the start.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_micros(self.now_us().saturating_sub(self.0.last_step_us.load(Ordering::Relaxed)))
    }

    /// Neither idle nor moved for longer than `limit`.
    #[must_use]
    pub fn is_stalled(&self, limit: Duration) -> bool {
        !self.is_idle() && self.age() > limit
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.0.since_start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Models, index and ledger are open: `READY=1`.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    // A line break would start another assignment of the protocol.
    let line = text.replace(['\n', '\r'], " ");
    send_at_once(&NotifyState::Status(&line));
}

/// Before a long step of the start (an engine build): do not give up on it before `longer` has passed.
pub fn extend_start(longer: Duration) {
    send(&[NotifyState::ExtendTimeoutUsec(u32::try_from(longer.as_micros()).unwrap_or(u32::MAX))]);
}

/// The stop began: `STOPPING=1`.
pub fn stopping() {
    send_at_once(&NotifyState::Stopping);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(error = %error, "could not notify systemd");
    }
}

/// As [`send`], without waiting where nobody reads: what is said again soon, or is no more than a word, must not hold up a stop.
fn send_at_once(state: &NotifyState<'_>) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = deliver(&path, format!("{state}\n").as_bytes()) {
        tracing::debug!(error = %error, "systemd does not hear");
    }
}

/// One datagram to a socket by its path, or by its abstract name behind `@`.
fn deliver(path: &OsStr, message: &[u8]) -> std::io::Result<()> {
    let address = match path.as_encoded_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message, &address).map(drop)
}

/// Pings systemd's watchdog while the stations move.
#[derive(Debug)]
pub struct Watchdog {
    stations: Vec<(Progress, u64)>,
}

impl Watchdog {
    #[must_use]
    pub fn new(stations: Vec<Progress>) -> Self {
        Self { stations: stations.into_iter().map(|progress| (progress, u64::MAX)).collect() }
    }

    /// Ping when every station is idle by design or has moved since the last ping; `true` when it pinged.
    pub fn tick(&mut self) -> bool {
        let is_alive = self.stations.iter().all(|(progress, seen)| progress.is_idle() || progress.steps() != *seen);
        if is_alive {
            for (progress, seen) in &mut self.stations {
                *seen = progress.steps();
            }
            send_at_once(&NotifyState::Watchdog);
        }
        is_alive
    }

    /// Tick on a thread until `shutdown`, at a quarter of the interval that systemd asks for; `None` when it asks for
    /// no watchdog.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(mut self, shutdown: Shutdown) -> std::io::Result<Option<std::thread::JoinHandle<()>>> {
        let Some(interval) = sd_notify::watchdog_enabled() else { return Ok(None) };
        let pause = (interval / 4).max(Duration::from_millis(10));
        let run = move || {
            let mut has_warned = false;
            while !shutdown.wait_timeout(pause) {
                if self.tick() {
                    has_warned = false;
                    continue;
                }
                let stations: Vec<&str> = self.stalled(interval / 2).collect();
                if !has_warned && !stations.is_empty() {
                    tracing::warn!(?stations, "no progress: systemd will restart the daemon if this goes on");
                    has_warned = true;
                }
            }
        };
        std::thread::Builder::new().name("loupe-watchdog".to_owned()).spawn(run).map(Some)
    }

    fn stalled(&self, limit: Duration) -> impl Iterator<Item = &str> {
        self.stations.iter().filter(move |(progress, _)| progress.is_stalled(limit)).map(|(p, _)| p.station())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use std::os::linux::net::SocketAddrExt as _;

    use super::{Progress, SocketAddr, UnixDatagram, Watchdog, deliver};

    #[test]
    fn a_manager_that_does_not_read_holds_nothing_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let sent = (0..10_000).take_while(|_| deliver(path.as_os_str(), b"WATCHDOG=1\n").is_ok()).count();
        assert!((1..10_000).contains(&sent), "the socket is full after {sent}");
        let mut heard = [0_u8; 64];
        assert_eq!(manager.recv(&mut heard).unwrap(), b"WATCHDOG=1\n".len());
        deliver(path.as_os_str(), b"STOPPING=1\n").unwrap();
        drop(manager);
        assert!(deliver(path.as_os_str(), b"STOPPING=1\n").is_err());
        let name = format!("loupe-notify-{}", std::process::id());
        let abstracted = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        deliver(format!("@{name}").as_ref(), b"STOPPING=1\n").unwrap();
        assert_eq!(abstracted.recv(&mut heard).unwrap(), b"STOPPING=1\n".len());
    }

    #[test]
    fn one_stalled_station_of_two_stops_the_pings() {
        let (busy, stuck) = (Progress::new("a"), Progress::new("b"));
        let mut watchdog = Watchdog::new(vec![busy.clone(), stuck.clone()]);
        assert!(watchdog.tick(), "the first ping starts the count");
        busy.advance();
        assert!(!watchdog.tick());
        stuck.advance();
        assert!(watchdog.tick(), "both moved since the last ping, if not in the same interval");
        stuck.set_idle(true);
        busy.advance();
        assert!(watchdog.tick(), "idle by design is no stall");
        stuck.set_idle(false);
        busy.advance();
        assert!(!watchdog.tick());
    }

    #[test]
    fn waking_after_a_long_rest_is_no_stall() {
        let progress = Progress::new("a");
        progress.set_idle(true);
        assert!(!progress.is_stalled(Duration::ZERO));
        progress.set_idle(false);
        assert!(!progress.is_stalled(Duration::from_secs(60)));
        assert!(progress.age() < Duration::from_secs(60));
    }
}
