//! What live sessions said of themselves, for when a record appears or starts after its session did.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Most sessions kept in mind. More than a gateway can hold at 24 KiB each on a small machine; beyond it a session
/// that is ahead of its record is picked up by the next comparison only.
const MAX_KNOWN: usize = 65_536;

/// One session as its supervisor introduced it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownSession {
    /// The gateway's name of the session.
    pub(super) session_id: String,
    /// The supervisor's process epoch.
    pub(super) instance_id: String,
    /// Its SSH host key.
    pub(super) host_key_fingerprint: Option<String>,
}

/// Sessions by sandbox id. An entry lives as long as its session.
#[derive(Default)]
pub(super) struct KnownSessions {
    by_sandbox: Mutex<HashMap<String, KnownSession>>,
}

impl KnownSessions {
    pub(super) fn keep(&self, sandbox_id: &str, session: KnownSession) {
        let mut known = self.by_sandbox.lock();
        if known.len() < MAX_KNOWN || known.contains_key(sandbox_id) {
            known.insert(sandbox_id.to_owned(), session);
        }
    }

    pub(super) fn get(&self, sandbox_id: &str) -> Option<KnownSession> {
        self.by_sandbox.lock().get(sandbox_id).cloned()
    }

    /// Forgets the session if it is still the one kept; a newer one stays.
    pub(super) fn forget(&self, sandbox_id: &str, session_id: &str) {
        let mut known = self.by_sandbox.lock();
        if known.get(sandbox_id).is_some_and(|session| session.session_id == session_id) {
            known.remove(sandbox_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str) -> KnownSession {
        KnownSession { session_id: id.into(), instance_id: "i".into(), host_key_fingerprint: None }
    }

    #[test]
    fn the_end_of_an_older_session_forgets_nothing() {
        let known = KnownSessions::default();
        known.keep("a", session("old"));
        known.keep("a", session("new"));
        known.forget("a", "old");
        assert_eq!(known.get("a"), Some(session("new")));
        known.forget("a", "new");
        assert_eq!(known.get("a"), None);
    }
}
