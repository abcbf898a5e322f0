//! From the pipeline to the page: the last inspections, and each new one as it is committed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;
use uuid::Uuid;

use crate::limits;
use crate::types::Inspection;

/// Publisher and memory of the dashboard; cheap to clone. Publishing never waits: the ring forgets its oldest entry,
/// and a client that lags behind the broadcast is told to reload.
#[derive(Debug, Clone)]
pub struct Feed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    recent: Mutex<VecDeque<Arc<Inspection>>>,
    sender: broadcast::Sender<Arc<Inspection>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self::new()
    }
}

impl Feed {
    #[must_use]
    pub fn new() -> Self {
        let (sender, _) = broadcast::channel(limits::DASHBOARD_SSE_LAG_MAX);
        let recent = Mutex::new(VecDeque::with_capacity(limits::DASHBOARD_RECENT_MAX));
        Self(Arc::new(Inner { recent, sender }))
    }

    /// Show an inspection. Call it only once the ledger has committed it (invariant 1).
    pub fn publish(&self, inspection: Arc<Inspection>) {
        let mut recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == limits::DASHBOARD_RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(inspection.clone());
        drop(recent);
        // An error only says that nobody looks.
        self.0.sender.send(inspection).map(drop).unwrap_or_default();
    }

    /// At most `limit` inspections, of `station` where one is named; newest first.
    #[must_use]
    pub fn recent(&self, limit: usize, station: Option<&str>) -> Vec<Arc<Inspection>> {
        let recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let of_station = |inspection: &&Arc<Inspection>| station.is_none_or(|name| inspection.station == name);
        recent.iter().rev().filter(of_station).take(limit).cloned().collect()
    }

    /// One of the recent inspections.
    #[must_use]
    pub fn find(&self, id: Uuid) -> Option<Arc<Inspection>> {
        let recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().find(|inspection| inspection.id.0 == id).cloned()
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<Inspection>> {
        self.0.sender.subscribe()
    }
}
