//! A TCP proxy on loopback that loses replies, cuts connections and leaves them half open.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Network {
    /// Carries everything.
    Up,
    /// New connections are closed at once; [`Proxy::cut`] closes those that are open.
    Down,
    /// Takes everything and delivers nothing, in both directions; connections stay open.
    HalfOpen,
    /// Carries everything up to a COMMIT; its reply is lost and the connection with it.
    LosesCommitReplies,
}

struct Shared {
    mode: AtomicU8,
    is_over: AtomicBool,
    target: u16,
    open: Mutex<Vec<TcpStream>>,
    commits_swallowed: AtomicU64,
}

/// The proxy; ends when dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
}

impl Proxy {
    /// A proxy to `target` on this machine.
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            mode: AtomicU8::new(Network::Up as u8),
            is_over: AtomicBool::new(false),
            target,
            open: Mutex::new(Vec::new()),
            commits_swallowed: AtomicU64::new(0),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || serve(&listener, &serving));
        Self { shared, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, network: Network) {
        self.shared.mode.store(network as u8, Ordering::SeqCst);
    }

    /// Close what is open, as a router does that forgot its table.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            // It may be closed already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// COMMITs that reached the server and whose reply was lost.
    pub fn commits_swallowed(&self) -> u64 {
        self.shared.commits_swallowed.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.cut();
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn is(shared: &Shared, network: Network) -> bool {
    shared.mode.load(Ordering::SeqCst) == network as u8
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming().map_while(Result::ok) {
        if shared.is_over.load(Ordering::SeqCst) {
            return;
        }
        if is(shared, Network::Down) {
            continue;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", shared.target)) else { continue };
        let mut open = shared.open.lock().unwrap();
        open.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        drop(open);
        // Set once a COMMIT was passed on whose reply must be lost.
        let is_doomed = Arc::new(AtomicBool::new(false));
        for (from, to, is_upward) in [
            (client.try_clone().unwrap(), server.try_clone().unwrap(), true),
            (server.try_clone().unwrap(), client.try_clone().unwrap(), false),
        ] {
            let (shared, is_doomed) = (Arc::clone(shared), Arc::clone(&is_doomed));
            std::thread::spawn(move || pump(from, to, is_upward, &shared, &is_doomed));
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, is_upward: bool, shared: &Shared, is_doomed: &AtomicBool) {
    /// A simple query message as the driver sends it.
    const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
    let mut bytes = vec![0; 64 << 10];
    loop {
        let length = match from.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        if is(shared, Network::HalfOpen) {
            continue;
        }
        let chunk = &bytes[..length];
        if is_upward && is(shared, Network::LosesCommitReplies) && chunk.windows(COMMIT.len()).any(|w| w == COMMIT) {
            is_doomed.store(true, Ordering::SeqCst);
        }
        if !is_upward && is_doomed.load(Ordering::SeqCst) {
            shared.commits_swallowed.fetch_add(1, Ordering::SeqCst);
            break;
        }
        if to.write_all(chunk).is_err() {
            break;
        }
    }
    drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
}
