//! Supervisor sessions come and go; a sandbox is Ready exactly while it has one.

use super::Lifecycle;
use super::known_sessions::KnownSession;
use super::phase::Event;
use super::transition::Outcome;
use crate::call_error::CallError;

impl Lifecycle {
    /// A supervisor session was accepted and stands in the registry: the sandbox becomes Ready.
    ///
    /// Fenced: if `session_id` is not the registry's current session any more when the record is written, nothing
    /// changes. A session whose record does not exist yet is kept in mind and picked up when the record appears.
    ///
    /// `instance_id` is the supervisor's process epoch, `host_key_fingerprint` its SSH host key, if it told one.
    ///
    /// # Errors
    /// `UNAVAILABLE` when the store is away, `ABORTED` when the record kept changing under every attempt.
    pub async fn session_connected(
        &self,
        sandbox_id: &str,
        session_id: &str,
        instance_id: &str,
        host_key_fingerprint: Option<&str>,
    ) -> Result<(), CallError> {
        let session = KnownSession {
            session_id: session_id.to_owned(),
            instance_id: instance_id.to_owned(),
            host_key_fingerprint: host_key_fingerprint.map(str::to_owned),
        };
        let guard = self.shared.records.lock(sandbox_id).await;
        self.promote(&guard, sandbox_id, &session).await
    }

    /// A supervisor session ended: the sandbox waits for the next one, unless it already has one.
    ///
    /// Fenced: the registry's current session is read again under the record lock, so the late end of an older
    /// session never demotes a sandbox whose newer session is live. Failures are logged: the next comparison with the
    /// runtime corrects the record.
    pub async fn session_disconnected(&self, sandbox_id: &str, session_id: &str) {
        self.shared.known.forget(sandbox_id, session_id);
        let guard = self.shared.records.lock(sandbox_id).await;
        let outcome = self
            .transition(&guard, sandbox_id, |_| Event::SessionDisconnected {
                session_id: session_id.to_owned(),
                current: self.shared.sessions.current(sandbox_id),
            })
            .await;
        match outcome {
            Ok(Outcome::Same(record)) => self.release_if_ended(&record),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(sandbox_id, session_id, %error, "could not record the end of a session");
            }
        }
    }

    /// Picks up a session that was registered before the record was there, or while an operation refused it.
    pub(super) async fn pick_up_session(&self, sandbox_id: &str) -> Result<(), CallError> {
        let guard = self.shared.records.lock(sandbox_id).await;
        match self.shared.known.get(sandbox_id) {
            Some(session) => self.promote(&guard, sandbox_id, &session).await,
            None => Ok(()),
        }
    }

    async fn promote(
        &self,
        guard: &super::locks::KeyedGuard,
        sandbox_id: &str,
        session: &KnownSession,
    ) -> Result<(), CallError> {
        let outcome = self
            .transition(guard, sandbox_id, |_| Event::SessionConnected {
                session_id: session.session_id.clone(),
                current: self.shared.sessions.current(sandbox_id),
                instance_id: session.instance_id.clone(),
                host_key_fingerprint: session.host_key_fingerprint.clone(),
            })
            .await?;
        // Kept while it is current, so that an operation that ends later (a start) finds it again.
        if self.shared.sessions.current(sandbox_id).as_deref() == Some(&session.session_id) {
            self.shared.known.keep(sandbox_id, session.clone());
        }
        if matches!(outcome, Outcome::NoRecord) {
            tracing::debug!(
                sandbox_id,
                session_id = session.session_id,
                "session is ahead of its record"
            );
        }
        Ok(())
    }
}
