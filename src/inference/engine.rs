//! How one worker reaches a model: a session of its own, or the one that a batcher shares.
//!
//! Thread: one worker. Overload: none of its own; a call waits for its answer.

use std::sync::Arc;

use super::InferenceError;
use super::batcher::Client;
use super::health::ModelHealth;
use super::keeper::Keeper;
use super::outputs::{Output, Wanted};
use super::preprocess::Preprocessor;
use super::session::Facts;

#[derive(Debug)]
enum Way {
    /// Nobody else runs it at the same time.
    Own(Arc<Keeper>),
    Batched(Client),
}

/// One worker's access to a model.
#[derive(Debug)]
pub(super) struct Engine {
    way: Way,
    session_ms: f64,
    health: ModelHealth,
}

impl Engine {
    pub(super) fn own(keeper: Arc<Keeper>, health: ModelHealth) -> Self {
        Self { way: Way::Own(keeper), session_ms: 0.0, health }
    }

    pub(super) fn batched(client: Client, health: ModelHealth) -> Self {
        Self { way: Way::Batched(client), session_ms: 0.0, health }
    }

    /// Run on what the preprocessor holds and hand `wanted`, in its order, to `then`.
    ///
    /// # Errors
    /// When the runtime fails, the model cannot answer now ([`InferenceError::is_unavailable`]), or `then` says so.
    pub(super) fn run<R>(
        &mut self,
        input: &Preprocessor,
        wanted: &Wanted,
        then: impl FnOnce(&[Output<'_>]) -> Result<R, InferenceError>,
    ) -> Result<R, InferenceError> {
        let (view, shape) = input.input();
        let (found, session_ms) = match &mut self.way {
            Way::Own(keeper) => keeper.run(view, shape, wanted, then)?,
            Way::Batched(client) => client.run(view, shape, wanted, then)?,
        };
        self.session_ms += session_ms;
        Ok(found)
    }

    pub(super) fn facts(&self) -> &Arc<Facts> {
        match &self.way {
            Way::Own(keeper) => keeper.facts(),
            Way::Batched(client) => client.facts(),
        }
    }

    /// Pictures that a shared session takes at once; `None` where the session is the worker's own.
    pub(super) fn shared_pictures_max(&self) -> Option<usize> {
        match &self.way {
            Way::Own(_) => None,
            Way::Batched(client) => Some(client.pictures_max()),
        }
    }

    /// This worker's share of the time inside the runtime.
    pub(super) fn session_ms(&self) -> f64 {
        self.session_ms
    }

    pub(super) fn health(&self) -> &ModelHealth {
        &self.health
    }
}
