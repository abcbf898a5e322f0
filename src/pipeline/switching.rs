//! Taking up index generations and their fits while frames are inspected.
//!
//! Once a second the thread looks which generation `CURRENT` names. Another one is opened and checked here, off the hot
//! path; its provenance is stored in the ledger; only then do the workers see it. A frame uses one generation throughout.
//!
//! Thread: `index-switch`, one for all stations; none where no station matches parts. Overload: opening a large index
//! takes a core for about a second a gigabyte.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{error, info};

use super::{PipelineError, Provenances};
use crate::ledger::Ledger;
use crate::matching::LiveIndex;
use crate::shutdown::Shutdown;

/// Pause between two looks at `CURRENT`.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// One station's index.
#[derive(Debug)]
pub struct Watched {
    pub station: String,
    pub index: LiveIndex,
    pub provenances: Provenances,
}

/// An index with what was said last of it: a fault that lasts is reported once.
type Watch = (Watched, String);

/// The watching thread.
#[derive(Debug)]
pub struct Switching {
    stop: Shutdown,
    watched: Arc<Mutex<Vec<Watch>>>,
    ledger: Ledger,
    thread: Option<JoinHandle<()>>,
}

impl Switching {
    /// Watch these indexes until stopped.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(watched: Vec<Watched>, ledger: Ledger) -> Result<Self, PipelineError> {
        let watched: Vec<Watch> = watched.into_iter().map(|watched| (watched, String::new())).collect();
        let mut switching =
            Self { stop: Shutdown::new(), watched: Arc::new(Mutex::new(watched)), ledger, thread: None };
        switching.run()?;
        Ok(switching)
    }

    /// Watch this index for `station` from now on, or none.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn watch(&mut self, station: &str, index: Option<Watched>) -> Result<(), PipelineError> {
        {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.retain(|(watched, _)| watched.station != station);
            watched.extend(index.map(|index| (index, String::new())));
        }
        self.run()
    }

    /// Start the thread when it is needed and does not run.
    fn run(&mut self) -> Result<(), PipelineError> {
        if self.thread.is_some() || self.watched.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return Ok(());
        }
        let (watched, ledger, stopped) = (Arc::clone(&self.watched), self.ledger.clone(), self.stop.clone());
        let thread = super::spawn("index-switch".to_owned(), move || {
            for (watched, _) in watched.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                watched.index.current().warm();
            }
            while !stopped.wait_timeout(LOOK_INTERVAL) {
                for (watched, said) in watched.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
                    look(watched, &ledger, said);
                }
            }
        })?;
        self.thread = Some(thread);
        Ok(())
    }

    /// Stop watching, and wait until the thread has ended.
    pub fn stop(self) {
        self.stop.request();
        if self.thread.is_some_and(|thread| thread.join().is_err()) {
            error!("the thread that takes up index generations died");
        }
    }
}

fn look(watched: &Watched, ledger: &Ledger, said: &mut String) {
    let taken = watched.index.refresh_with(|next| -> Result<(), PipelineError> {
        let register = |json: &str| ledger.register_provenance(json);
        watched.provenances.add(next.generation_sha256(), next.fit_sha256(), register)?;
        Ok(())
    });
    let fault = match taken {
        Ok(taken) => {
            if let Some(sha256) = taken {
                info!(station = watched.station, generation = %sha256, "a new index generation serves");
            }
            String::new()
        }
        Err(error) => error.to_string(),
    };
    if !fault.is_empty() && fault != *said {
        error!(
            station = watched.station,
            fault, "the new index generation cannot be used; the one before it goes on serving"
        );
    }
    *said = fault;
}
