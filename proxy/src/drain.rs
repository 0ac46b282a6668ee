//! How the gateway ends: first it takes nothing new, then it takes nothing at all.
//!
//! One [`Drain`] starts it, any number of [`Watch`]es follow it. Phases only go forward.

use tokio::sync::watch;

/// Where the gateway is on its way to the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    #[default]
    Open,
    /// Takes no connection and opens no relay; what is live goes on.
    Draining,
    /// Connections are told to go away (GOAWAY); streams on them may finish.
    Leaving,
    /// Whatever is still live is closed now.
    Closing,
}

/// Moves the gateway towards its end. Clones are the same drain.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
}

/// Follows a [`Drain`].
#[derive(Clone, Debug)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// An open gateway.
    #[must_use]
    pub fn new() -> Self {
        Self { phase: watch::Sender::new(Phase::Open) }
    }

    /// Something that follows this drain.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { phase: self.phase.subscribe() }
    }

    /// Takes nothing new from now on. Does nothing if that is so already.
    pub fn start(&self) {
        self.forward(Phase::Draining);
    }

    /// Tells connections to go away. Does nothing if that is so already.
    pub fn leave(&self) {
        self.forward(Phase::Leaving);
    }

    /// Closes what is live. Does nothing if that is so already.
    pub fn close(&self) {
        self.forward(Phase::Closing);
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    fn forward(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = *phase < to;
            if forward {
                *phase = to;
            }
            forward
        });
    }
}

impl Watch {
    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// The next phase after `seen`; at once if it is there already. A drain that was dropped counts as closing.
    pub async fn beyond(&mut self, seen: Phase) -> Phase {
        self.phase.wait_for(|phase| *phase > seen).await.map_or(Phase::Closing, |phase| *phase)
    }

    /// Resolves when nothing new is taken; at once if that is so already. A drain that was dropped counts as closing.
    pub async fn draining(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase >= Phase::Draining).await;
    }

    /// Resolves when what is live is to be closed.
    pub async fn closing(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase >= Phase::Closing).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_go_forward_only() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        assert_eq!(watch.phase(), Phase::Open);
        drain.start();
        watch.draining().await;
        drain.close();
        drain.start();
        assert_eq!((drain.phase(), watch.phase()), (Phase::Closing, Phase::Closing));
        watch.closing().await;
        // Whoever comes late does not wait.
        drain.watch().draining().await;
    }

    #[tokio::test]
    async fn a_forgotten_drain_ends_its_watches() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        drop(drain);
        watch.closing().await;
        assert_eq!(watch.beyond(Phase::Open).await, Phase::Closing);
    }
}
