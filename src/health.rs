//! Who is ready and who is not, and why not. Roles write it, `/readyz` reads it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::record::Map;

/// Readiness of every role of this process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Map<&'static str, Option<String>>>>);

impl Health {
    /// `role` does its work.
    pub fn ready(&self, role: &'static str) {
        self.set(role, None);
    }

    /// `role` cannot work now; `reason` is one line for people.
    pub fn not_ready(&self, role: &'static str, reason: impl Into<String>) {
        self.set(role, Some(reason.into()));
    }

    fn set(&self, role: &'static str, state: Option<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(role, state);
    }

    /// `role: reason` for every role that is not ready; empty when all are. A process in which no role
    /// has said anything yet is not ready.
    pub fn reasons(&self) -> Vec<String> {
        let roles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if roles.is_empty() {
            return vec!["starting".to_owned()];
        }
        roles.iter().filter_map(|(role, why)| why.as_ref().map(|w| format!("{role}: {w}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_must_be_ready() {
        let h = Health::default();
        assert_eq!(h.reasons(), ["starting"]);
        h.not_ready("rollup", "no partition assigned yet");
        h.ready("classify");
        assert_eq!(h.reasons(), ["rollup: no partition assigned yet"]);
        h.ready("rollup");
        assert!(h.reasons().is_empty());
    }
}
