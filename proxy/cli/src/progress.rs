//! Waiting for a sandbox, with something to look at meanwhile.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use postern_proto::v1;
use postern_proto::v1::sandbox_stream_event::Payload;

use crate::connection::Gateway;
use crate::error::CliError;
use crate::output;

/// How long a sandbox may take to become ready; images and virtual machines take minutes.
const READY_WITHIN: Duration = Duration::from_secs(300);

/// Waits until a sandbox is ready, with its phase and events on standard error.
///
/// # Errors
/// When it ends in another phase, or does not become ready within five minutes.
pub async fn wait_ready(gateway: &mut Gateway, name: &str) -> Result<v1::Sandbox, CliError> {
    let shown = Shown::new(name);
    let outcome = tokio::time::timeout(READY_WITHIN, watch(gateway, name, &shown)).await;
    shown.bar.finish_and_clear();
    outcome.unwrap_or_else(|_| {
        Err(CliError::NotReady {
            name: name.to_owned(),
            phase: "still coming up",
            why: format!("not ready within {} s", READY_WITHIN.as_secs()),
        })
    })
}

async fn watch(gateway: &mut Gateway, name: &str, shown: &Shown) -> Result<v1::Sandbox, CliError> {
    let request = v1::WatchSandboxRequest {
        workspace_scope: gateway.scope(),
        sandbox: name.to_owned(),
        follow_status: true,
        follow_events: true,
        event_tail: 50,
        stop_on_terminal: true,
        ..v1::WatchSandboxRequest::default()
    };
    let action = || format!("cannot watch sandbox {name}");
    let mut events = gateway
        .client
        .watch_sandbox(request)
        .await
        .map_err(|status| CliError::refused(action(), status))?
        .into_inner();
    while let Some(event) =
        events.message().await.map_err(|status| CliError::refused(action(), status))?
    {
        match event.payload {
            Some(Payload::Sandbox(sandbox)) => {
                let phase = sandbox.status.as_ref().map_or(0, |status| status.phase);
                shown.say(&output::phase(phase));
                if let Some(outcome) = decided(name, sandbox) {
                    return outcome;
                }
            }
            Some(Payload::Event(event)) => shown.say(&event.message),
            _ => {}
        }
    }
    Err(CliError::NotReady {
        name: name.to_owned(),
        phase: "gone",
        why: "it was removed while it came up".into(),
    })
}

fn decided(name: &str, sandbox: v1::Sandbox) -> Option<Result<v1::Sandbox, CliError>> {
    use v1::SandboxPhase as P;
    let phase = sandbox.status.as_ref().map_or(0, |status| status.phase);
    match P::try_from(phase).unwrap_or(P::Unspecified) {
        P::Ready | P::Completed => Some(Ok(sandbox)),
        P::Error | P::Stopped | P::Deleting => {
            let why = sandbox
                .status
                .iter()
                .flat_map(|status| &status.conditions)
                .find(|condition| condition.status != "True")
                .map_or_else(|| "no reason given".into(), |condition| condition.message.clone());
            Some(Err(CliError::NotReady {
                name: name.to_owned(),
                phase: output::phase_name(phase),
                why,
            }))
        }
        _ => None,
    }
}

/// A spinner on a terminal, lines elsewhere.
struct Shown {
    name: String,
    bar: ProgressBar,
    spins: bool,
}

impl Shown {
    fn new(name: &str) -> Self {
        let spins = std::io::stderr().is_terminal();
        let bar = if spins { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::default_spinner());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { name: name.to_owned(), bar, spins }
    }

    fn say(&self, text: &str) {
        if self.spins {
            self.bar.set_message(format!("{}: {text}", self.name));
        } else {
            output::note(&format!("{}: {text}", self.name));
        }
    }
}
