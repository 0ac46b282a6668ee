//! Making a sandbox: directories first, under a hidden name, then all at once, then the process.

use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use postern_driver_core::condition::{self, EventKind};
use postern_driver_core::{DriverError, SandboxToken};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::{Call, Keeper, Reply, State, answer_to};
use crate::driver::{Common, DRIVER_NAME};
use crate::error::{Context as _, Failure};
use crate::layout::{SandboxDir, remove_tree};
use crate::record::{Record, save_token};

/// Makes the sandbox, answers, and keeps it from then on. After a failure nothing is left.
pub(crate) async fn make(
    common: Arc<Common>,
    dir: SandboxDir,
    record: Record,
    token: SandboxToken,
    (calls, reply): (mpsc::Receiver<Call>, Reply),
) {
    let id = record.sandbox.id.clone();
    let tell = |kind, reason: &str, message: &str| {
        let event = condition::platform_event(DRIVER_NAME, kind, reason, message, Timestamp::now());
        common.inventory.tell(&id, event);
    };
    let prepared = prepare(Arc::clone(&common), dir.clone(), record.clone(), token).await;
    let mut keeper = Keeper::new(Arc::clone(&common), dir, record, State::Ended);
    let made = match prepared {
        Ok(()) => {
            tell(EventKind::Normal, "Scheduled", "directories on this host are ready");
            if has_limits(&keeper.record) {
                tell(
                    EventKind::Warning,
                    "ResourcesNotEnforced",
                    "CPU and memory limits are not applied by the process driver",
                );
            }
            match keeper.launch().await {
                Ok(()) => Ok(()),
                Err(failure) => {
                    undo(&keeper).await;
                    Err(failure.of(&id))
                }
            }
        }
        Err(error) => Err(error),
    };
    match made {
        Ok(()) => {
            answer_to(reply, Ok(()));
            keeper.run(calls).await;
        }
        Err(error) => {
            common.uids.give_back(keeper.record.agent.uid);
            common.forget(&id);
            answer_to(reply, Err(error));
        }
    }
}

async fn prepare(
    common: Arc<Common>,
    dir: SandboxDir,
    record: Record,
    token: SandboxToken,
) -> Result<(), DriverError> {
    let id = record.sandbox.id.clone();
    let work = move || -> Result<(), Failure> {
        let id = &record.sandbox.id;
        let agent = common.agents_have_own_users.then_some((record.agent.uid, record.agent.gid));
        let made = common.state_dir.make(id, agent)?;
        let finish = || -> Result<(), Failure> {
            record.save(&made).context("write its record")?;
            save_token(&made, &token).context("write its token")?;
            common.state_dir.publish(&made, id).context("give its directory its name")
        };
        finish().inspect_err(|_| {
            if let Err(error) = remove_tree(made.path()) {
                tracing::warn!(sandbox_id = %id, %error, "could not remove what was half made");
            }
        })
    };
    let finished = spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Failure { action: "make it", source: io::Error::other(error) })
    });
    finished.map_err(|failure| {
        if failure.source.kind() == io::ErrorKind::AlreadyExists {
            // A directory that no keeper owns: its record could not be read when this driver began.
            DriverError::FailedPrecondition {
                id: id.clone(),
                problem: format!("{} is there and could not be read", dir.path().display()),
                next: "move that directory away",
            }
        } else {
            failure.of(&id)
        }
    })
}

async fn undo(keeper: &Keeper) {
    let (common, dir) = (Arc::clone(&keeper.common), keeper.dir.clone());
    let undone = keeper
        .blocking("remove what was half made", move || {
            dir.remove_socket_dir();
            remove_tree(&common.state_dir.withdraw(&dir)?)
        })
        .await;
    if let Err(error) = undone {
        tracing::warn!(sandbox_id = %keeper.id(), %error, "something of it is left");
    }
}

fn has_limits(record: &Record) -> bool {
    let template = record.sandbox.spec.as_ref().and_then(|spec| spec.template.as_ref());
    template
        .and_then(|template| template.resources.as_ref())
        .is_some_and(|r| !(r.cpu_limit.is_empty() && r.memory_limit.is_empty()))
}
