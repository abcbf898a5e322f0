#![allow(dead_code, reason = "each test file uses a part of it")]

//! A TCP proxy before a server, which can fail as networks do.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Works,
    /// Connections are cut, and new ones too.
    Cut,
    /// Nothing arrives any more, in either direction, and nobody is told.
    Silent,
    /// Each piece of data arrives this much later.
    Slow(Duration),
    /// As `Works`, until the server has said that it committed: that answer is lost with its connection, the `n`th.
    LosesCommitReply(u32),
}

struct State {
    network: Network,
    connections: Vec<TcpStream>,
    accepted: u32,
    commit_replies_lost: u64,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

pub struct Proxy {
    port: u16,
    host: &'static str,
    shared: Shared,
}

impl Proxy {
    /// Listen on a port of 127.0.0.1 and forward to `server_port` there.
    pub fn start(server_port: u16) -> Self {
        Self::start_on("127.0.0.1", server_port)
    }

    /// As [`Proxy::start`], on another loopback address.
    pub fn start_on(host: &'static str, server_port: u16) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { network: Network::Works, connections: Vec::new(), accepted: 0, commit_replies_lost: 0 };
        let shared: Shared = Arc::new((Mutex::new(state), Condvar::new()));
        let accepting = Arc::clone(&shared);
        // Ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                accept(client, server_port, &accepting);
            }
        });
        Self { port, host, shared }
    }

    pub fn set(&self, network: Network) {
        let (state, changed) = &*self.shared;
        let mut state = state.lock().unwrap();
        state.network = network;
        if network == Network::Cut {
            close(&mut state);
        }
        changed.notify_all();
    }

    /// Close what is open, as a router does that forgot its table.
    pub fn cut(&self) {
        close(&mut self.shared.0.lock().unwrap());
    }

    pub fn network(&self) -> Network {
        self.shared.0.lock().unwrap().network
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// COMMITs that the server carried out and whose reply was lost.
    pub fn commit_replies_lost(&self) -> u64 {
        self.shared.0.lock().unwrap().commit_replies_lost
    }

    /// Connections that came in so far.
    pub fn accepted(&self) -> u32 {
        self.shared.0.lock().unwrap().accepted
    }

    pub fn dsn_of(&self, user: &str, password: &str) -> String {
        format!("postgresql://{user}:{password}@{}:{}/central", self.host, self.port)
    }
}

fn close(state: &mut State) {
    for connection in state.connections.drain(..) {
        // It may be closed already.
        drop(connection.shutdown(Shutdown::Both));
    }
}

fn accept(client: TcpStream, server_port: u16, shared: &Shared) {
    let mut state = shared.0.lock().unwrap();
    state.accepted += 1;
    if state.network == Network::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)) else { return };
    state.connections.push(client.try_clone().unwrap());
    state.connections.push(server.try_clone().unwrap());
    drop(state);
    for (from, to, is_answer) in [(&client, &server, false), (&server, &client, true)] {
        let (from, to, shared) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(shared));
        std::thread::spawn(move || forward(from, to, is_answer, &shared));
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, is_answer: bool, shared: &Shared) {
    let mut buffer = vec![0; 1 << 16];
    // The end of the last piece: what is looked for may lie across two.
    let mut seen = Vec::new();
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let network = arrive(shared);
        seen.extend_from_slice(&buffer[..read]);
        if let Network::LosesCommitReply(left) = network
            && is_answer
            && seen.windows(7).any(|window| window == b"COMMIT\0")
        {
            seen.clear();
            let mut state = shared.0.lock().unwrap();
            if left <= 1 {
                state.network = Network::Works;
                state.commit_replies_lost += 1;
                break;
            }
            state.network = Network::LosesCommitReply(left - 1);
        }
        let keep_from = seen.len().saturating_sub(6);
        seen.drain(..keep_from);
        if network == Network::Cut || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // They may be closed already.
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

/// Wait as long as the network makes data wait.
fn arrive(shared: &Shared) -> Network {
    let (state, changed) = &**shared;
    let mut state = state.lock().unwrap();
    while state.network == Network::Silent {
        state = changed.wait(state).unwrap();
    }
    if let Network::Slow(delay) = state.network {
        let unless_changed = |state: &mut State| matches!(state.network, Network::Slow(_));
        state = changed.wait_timeout_while(state, delay, unless_changed).unwrap().0;
    }
    state.network
}
