//! Records, sessions and runtime together.

mod gated;
mod operations;
mod sessions;
mod upkeep;

use std::collections::HashMap;

use postern_proto::v1::SandboxSpec;

use super::testing::Rig;
use super::{CreateSpec, DEFAULT_WORKSPACE};
use crate::call_error::CallError;

/// A plain wish for a sandbox.
fn wish(name: Option<&str>) -> CreateSpec {
    CreateSpec {
        workspace: DEFAULT_WORKSPACE.to_owned(),
        name: name.map(str::to_owned),
        labels: HashMap::new(),
        annotations: HashMap::new(),
        spec: SandboxSpec { command: vec!["/bin/true".to_owned()], ..SandboxSpec::default() },
        repeatable: None,
    }
}

/// Makes a sandbox and gives its id.
async fn made(rig: &Rig) -> String {
    rig.lifecycle.create(wish(None)).await.unwrap().record.id().to_owned()
}

/// Makes a sandbox whose supervisor is connected.
async fn ready(rig: &Rig) -> String {
    let id = made(rig).await;
    rig.connect(&id, "s1").await;
    id
}

fn reason(error: &CallError) -> &'static str {
    error.reason()
}
