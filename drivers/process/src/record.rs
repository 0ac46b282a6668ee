//! What is kept of a sandbox besides the agent's own files.

use std::io;

use postern_driver_core::SandboxToken;
use postern_driver_core::compute::DriverSandbox;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::layout::{SandboxDir, read_private, write_private};

/// A sandbox as it was asked for, and who its agent is. Holds no token.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) sandbox: DriverSandbox,
    pub(crate) agent: Agent,
}

/// User and group of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agent {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Why a sandbox is not started again by the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) reason: String,
    pub(crate) message: String,
}

// === impl Record ===

impl Record {
    /// Writes the record into a directory that is being made.
    pub(crate) fn save(&self, dir: &SandboxDir) -> io::Result<()> {
        write_private(&dir.spec(), &self.sandbox.encode_to_vec())?;
        write_private(&dir.agent(), &serde_json::to_vec(&self.agent)?)
    }

    /// Reads the record of a sandbox back.
    pub(crate) fn load(dir: &SandboxDir, id: &str) -> io::Result<Self> {
        let missing = |what| io::Error::new(io::ErrorKind::NotFound, what);
        let spec = read_private(&dir.spec())?.ok_or_else(|| missing("spec.pb is missing"))?;
        let sandbox = DriverSandbox::decode(spec.as_slice())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if sandbox.id != id {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "spec.pb belongs to another sandbox",
            ));
        }
        let agent = read_private(&dir.agent())?.ok_or_else(|| missing("agent is missing"))?;
        Ok(Self { sandbox, agent: serde_json::from_slice(&agent)? })
    }
}

// === impl Ended ===

impl Ended {
    pub(crate) fn save(&self, dir: &SandboxDir) -> io::Result<()> {
        write_private(&dir.ended(), &serde_json::to_vec(self)?)
    }

    pub(crate) fn load(dir: &SandboxDir) -> io::Result<Option<Self>> {
        let Some(bytes) = read_private(&dir.ended())? else {
            return Ok(None);
        };
        Ok(Some(serde_json::from_slice(&bytes)?))
    }
}

/// Writes the sandbox's credential where its supervisor looks for it.
pub(crate) fn save_token(dir: &SandboxDir, token: &SandboxToken) -> io::Result<()> {
    write_private(&dir.token(), token.expose().as_bytes())
}
