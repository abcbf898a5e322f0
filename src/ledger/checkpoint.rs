//! Moving committed pages from the log into the file, away from the commits.
//!
//! SQLite would do it inside the commit that makes the log longer than 1 000 pages: that commit would wait for a hundred
//! times the writes of its own. Here a thread with a connection of its own does it when the writer says that the log has
//! grown; passive checkpoints do not hold up the writer. While commits follow one another without a pause such a
//! checkpoint never reaches the log's end, so the log cannot begin anew: at [`LOG_PAGES_MAX`] the writer does the rest
//! itself, which by then is little.
//! Thread: `loupe-log`. Overload: one order waits at most; the writer never waits for this thread.

use std::cell::Cell;
use std::path::Path;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::Connection;
use tracing::warn;

use super::LedgerError;

/// The log is moved into the file each time it has grown by so many pages: 8 MiB.
const LOG_PAGES_PER_CHECKPOINT: i32 = 2_000;
/// Here the writer itself moves what is left, so that the log ends: 64 MiB.
const LOG_PAGES_MAX: i32 = 16_000;

thread_local! {
    /// Pages in the log after this thread's last commit.
    static LOG_PAGES: Cell<i32> = const { Cell::new(0) };
}

/// The writer's side.
#[derive(Debug)]
pub(super) struct Checkpointer {
    orders: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Length of the log at the last order.
    ordered_at: i32,
}

impl Checkpointer {
    /// Take over from SQLite's own checkpoints.
    ///
    /// # Errors
    /// When no second connection can be opened, or no thread started.
    pub fn start(path: &Path) -> Result<Self, LedgerError> {
        let connection = Connection::open(path).map_err(LedgerError::sqlite(path))?;
        let (orders, queue) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("loupe-log".to_owned())
            .spawn(move || serve(&connection, &queue))
            .map_err(LedgerError::io("start the checkpoints of", path))?;
        Ok(Self { orders: Some(orders), thread: Some(thread), ordered_at: 0 })
    }

    /// Must be called on the thread that commits: counts the log's pages there, in place of SQLite's checkpoints.
    pub fn watch(connection: &Connection) {
        connection.wal_hook(Some(|_, pages| {
            LOG_PAGES.set(pages);
            Ok(())
        }));
    }

    /// After a commit: have the log moved where it is time.
    pub fn after_commit(&mut self, connection: &Connection) {
        let pages = LOG_PAGES.get();
        if pages < self.ordered_at {
            // It began anew.
            self.ordered_at = 0;
        }
        if pages >= LOG_PAGES_MAX {
            checkpoint(connection);
            self.ordered_at = 0;
        } else if pages >= self.ordered_at + LOG_PAGES_PER_CHECKPOINT
            && let Some(orders) = &self.orders
        {
            // A full queue means that one waits already.
            orders.try_send(()).unwrap_or_default();
            self.ordered_at = pages;
        }
    }

    /// End the thread, so that nothing stands in the way of the last checkpoint.
    pub fn stop(&mut self) {
        self.orders = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the thread of the ledger's checkpoints died");
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(connection: &Connection, orders: &Receiver<()>) {
    while orders.recv().is_ok() {
        checkpoint(connection);
    }
}

/// What was committed stays in the log where this fails: it is tried again when the log has grown.
fn checkpoint(connection: &Connection) {
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        warn!(%error, "the ledger's log could not be moved into its file; the next attempt follows");
    }
}
