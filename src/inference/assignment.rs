//! Asks a loaded session which provider got which part of the graph.
//!
//! ONNX Runtime keeps this when the session entry `session.record_ep_graph_assignment_info` is 1; it is the result of
//! the partitioning that every later run follows. It is asked once, after loading.
#![expect(unsafe_code, reason = "the crate `ort` has no safe form of Session_GetEpGraphAssignmentInfo")]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ptr;

use ort::AsPointer as _;
use ort::session::Session;

use super::provider::from_runtime_name;
use crate::types::Provider;

/// Operators of the graph on each provider.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// By ONNX Runtime's name of the provider.
    pub by_name: BTreeMap<String, usize>,
}

impl NodeCounts {
    /// The known provider that runs most operators.
    #[must_use]
    pub fn main_provider(&self) -> Option<Provider> {
        let known = self.by_name.iter().filter_map(|(name, count)| Some((*count, from_runtime_name(name)?)));
        known.max_by_key(|(count, _)| *count).map(|(_, provider)| provider)
    }
}

impl std::fmt::Display for NodeCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (name, count)) in self.by_name.iter().enumerate() {
            write!(f, "{}{count} operators on {name}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Operators per provider of a session loaded with the recording entry set.
///
/// # Errors
/// When the runtime did not record it.
pub(super) fn node_counts(session: &Session) -> ort::Result<NodeCounts> {
    let api = ort::api();
    let mut subgraphs = ptr::null();
    let mut subgraph_count = 0_usize;
    // SAFETY: the session is alive, both out pointers are valid; the array belongs to the session.
    unsafe {
        let status = (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut subgraphs, &raw mut subgraph_count);
        ort::Error::result_from_status(status)?;
    }
    let mut counts = NodeCounts::default();
    if subgraphs.is_null() {
        return Ok(counts);
    }
    for index in 0..subgraph_count {
        let mut name = ptr::null();
        let mut nodes = ptr::null();
        let mut node_count = 0_usize;
        // SAFETY: `subgraphs` holds `subgraph_count` pointers that live as long as the session; the name is a
        // NUL-terminated string with the same life.
        let name = unsafe {
            let subgraph = *subgraphs.add(index);
            ort::Error::result_from_status((api.EpAssignedSubgraph_GetEpName)(subgraph, &raw mut name))?;
            let status = (api.EpAssignedSubgraph_GetNodes)(subgraph, &raw mut nodes, &raw mut node_count);
            ort::Error::result_from_status(status)?;
            if name.is_null() { "unnamed".to_owned() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
        };
        *counts.by_name.entry(name).or_default() += node_count;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::{NodeCounts, Provider};

    #[test]
    fn the_provider_with_most_operators_is_the_main_one() {
        let counts = |pairs: &[(&str, usize)]| NodeCounts {
            by_name: pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        };
        let mixed = counts(&[("CPUExecutionProvider", 3), ("CUDAExecutionProvider", 60)]);
        assert_eq!(mixed.main_provider(), Some(Provider::Cuda));
        assert_eq!(mixed.to_string(), "3 operators on CPUExecutionProvider, 60 operators on CUDAExecutionProvider");
        assert_eq!(counts(&[("Unheard", 9)]).main_provider(), None);
    }
}
