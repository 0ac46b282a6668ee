//! What a watcher receives.

use std::pin::Pin;

use futures_core::Stream;

use crate::compute::watch_sandboxes_event::Payload;
use crate::compute::{
    DriverPlatformEvent, DriverSandbox, WatchSandboxesDeletedEvent, WatchSandboxesEvent,
    WatchSandboxesPlatformEvent, WatchSandboxesSandboxEvent,
};

/// Events of one watcher. Its end means that the runtime was lost.
pub type WatchStream = Pin<Box<dyn Stream<Item = WatchEvent> + Send + 'static>>;

/// One thing that happened on the runtime.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// The sandbox as it is now. Replaces all that was known of it.
    Sandbox(Box<DriverSandbox>),
    /// The sandbox is gone.
    Deleted {
        /// Its id.
        id: String,
    },
    /// Something worth telling the user that is no state by itself.
    Platform {
        /// The sandbox it is about.
        id: String,
        /// What happened.
        event: Box<DriverPlatformEvent>,
    },
}

impl WatchEvent {
    /// The id of the sandbox this event is about.
    #[must_use]
    pub fn sandbox_id(&self) -> &str {
        match self {
            Self::Sandbox(sandbox) => &sandbox.id,
            Self::Deleted { id } | Self::Platform { id, .. } => id,
        }
    }
}

/// A watch message of an external driver that holds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the driver sent a watch event without a payload; ignore it and report it to the driver")]
pub struct EmptyWatchEvent;

// === impl WatchEvent ===

impl From<WatchEvent> for WatchSandboxesEvent {
    fn from(event: WatchEvent) -> Self {
        let payload = match event {
            WatchEvent::Sandbox(sandbox) => {
                Payload::Sandbox(WatchSandboxesSandboxEvent { sandbox: Some(*sandbox) })
            }
            WatchEvent::Deleted { id } => {
                Payload::Deleted(WatchSandboxesDeletedEvent { sandbox_id: id })
            }
            WatchEvent::Platform { id, event } => {
                Payload::PlatformEvent(WatchSandboxesPlatformEvent {
                    sandbox_id: id,
                    event: Some(*event),
                })
            }
        };
        Self { payload: Some(payload) }
    }
}

impl TryFrom<WatchSandboxesEvent> for WatchEvent {
    type Error = EmptyWatchEvent;

    fn try_from(message: WatchSandboxesEvent) -> Result<Self, Self::Error> {
        match message.payload.ok_or(EmptyWatchEvent)? {
            Payload::Sandbox(event) => {
                Ok(Self::Sandbox(Box::new(event.sandbox.ok_or(EmptyWatchEvent)?)))
            }
            Payload::Deleted(event) => Ok(Self::Deleted { id: event.sandbox_id }),
            Payload::PlatformEvent(event) => Ok(Self::Platform {
                id: event.sandbox_id,
                event: Box::new(event.event.ok_or(EmptyWatchEvent)?),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_wire_form() {
        let events = [
            WatchEvent::Sandbox(Box::new(DriverSandbox { id: "a".into(), ..Default::default() })),
            WatchEvent::Deleted { id: "b".into() },
            WatchEvent::Platform {
                id: "c".into(),
                event: Box::new(DriverPlatformEvent {
                    reason: "Started".into(),
                    ..Default::default()
                }),
            },
        ];
        for event in events {
            let wire = WatchSandboxesEvent::from(event.clone());
            assert_eq!(WatchEvent::try_from(wire), Ok(event));
        }
        assert_eq!(WatchEvent::try_from(WatchSandboxesEvent::default()), Err(EmptyWatchEvent));
    }
}
