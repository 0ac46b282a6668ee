//! Three processes between a client and a target.

use std::net::SocketAddr;

use super::CompareArgs;
use crate::client::Client;
use crate::error::BenchError;
use crate::lab::{Lab, LabConfig};
use crate::role::{DriverName, Process};

/// The sandbox of a relay chain.
const SANDBOX: &str = "compare";

/// Which chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Copy hops with buffers of 64 KiB.
    Copy64,
    /// Copy hops with buffers of 256 KiB: the limit.
    Copy256,
    /// The relay.
    Relay,
    /// Copy hops with rustls between them.
    CopyTls,
    /// The relay over mutual TLS.
    RelayTls,
}

impl ChainKind {
    /// All of them, or those without TLS.
    #[must_use]
    pub fn all(plaintext: bool) -> Vec<Self> {
        let mut all = vec![Self::Copy64, Self::Copy256, Self::Relay];
        if !plaintext {
            all.extend([Self::CopyTls, Self::RelayTls]);
        }
        all
    }

    /// Its name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy64 => "three copy hops, 64 KiB",
            Self::Copy256 => "three copy hops, 256 KiB",
            Self::Relay => "relay",
            Self::CopyTls => "three copy hops, 256 KiB, rustls",
            Self::RelayTls => "relay, mutual TLS",
        }
    }

    /// What it is measured against.
    #[must_use]
    pub const fn limit(self) -> Option<Self> {
        match self {
            Self::Relay => Some(Self::Copy256),
            Self::RelayTls => Some(Self::CopyTls),
            _ => None,
        }
    }
}

/// A chain that is up.
#[derive(Debug)]
pub struct Chain {
    /// Which.
    pub kind: ChainKind,
    address: SocketAddr,
    /// From the client's end, which is also the order in which they end.
    _processes: Vec<Process>,
    _lab: Option<Lab>,
}

impl Chain {
    /// Starts its processes.
    ///
    /// # Errors
    /// When one does not come up.
    pub async fn build(kind: ChainKind, arguments: &CompareArgs) -> Result<Self, BenchError> {
        match kind {
            ChainKind::Copy64 => hops(kind, "64KiB", None),
            ChainKind::Copy256 => hops(kind, "256KiB", None),
            ChainKind::CopyTls => {
                // A gateway of which only the certificates are used.
                let config =
                    LabConfig { tls: true, driver: DriverName::Fake, config: String::new() };
                let lab = Lab::start(&config)?;
                hops(kind, "256KiB", Some(lab))
            }
            ChainKind::Relay => relay(kind, false, arguments).await,
            ChainKind::RelayTls => relay(kind, true, arguments).await,
        }
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn of(kind: ChainKind, processes: Vec<Process>, lab: Option<Lab>) -> Result<Self, BenchError> {
        let first = processes.first().and_then(|process| process.address.parse().ok());
        let address =
            first.ok_or_else(|| BenchError::unexpected(kind.name(), "named no address"))?;
        Ok(Self { kind, address, _processes: processes, _lab: lab })
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn hops(kind: ChainKind, buffer: &str, lab: Option<Lab>) -> Result<Chain, BenchError> {
    let server = lab.as_ref().map(|lab| lab.pki().display().to_string());
    let client = lab.as_ref().map(|lab| lab.pki().join("client").display().to_string());
    let mut chain = vec![Process::start("target", [""; 0])?];
    // From the target's end: takes TLS except at the client's, speaks it except at the target's.
    for (takes, speaks) in [(true, false), (true, true), (false, true)] {
        let to = chain.last().map_or("", |process| &process.address);
        let mut flags = words(&["--to", to, "--buffer", buffer]);
        if let (true, Some(server)) = (takes, &server) {
            flags.extend(words(&["--tls-in", server]));
        }
        if let (true, Some(client)) = (speaks, &client) {
            flags.extend(words(&["--tls-out", client]));
        }
        chain.push(Process::start("hop", flags)?);
    }
    chain.reverse();
    Chain::of(kind, chain, lab)
}

async fn relay(kind: ChainKind, tls: bool, arguments: &CompareArgs) -> Result<Chain, BenchError> {
    let driver = if arguments.scripted { DriverName::Fake } else { DriverName::Process };
    let lab = Lab::start(&LabConfig { tls, driver, config: arguments.config.clone() })?;
    let client = Client::connect(&lab.user).await?;
    let mut behind = Vec::new();
    let port = if arguments.scripted {
        let identity = lab.bare_sandbox(&client, SANDBOX).await?;
        let mut flags = lab.access_flags("sandbox", None);
        flags.extend(arguments.h2.flags());
        flags.extend(words(&["--sandbox-id", &identity.sandbox_id]));
        let token = [("OPENSHELL_SANDBOX_TOKEN", identity.token.as_str())];
        behind.push(Process::start_with("session", flags, &token)?);
        client.wait_ready(SANDBOX).await?;
        let target = Process::start("target", [""; 0])?;
        let port = target.address.rsplit(':').next().unwrap_or("").to_owned();
        behind.push(target);
        port
    } else {
        lab.real_sandbox(&client, SANDBOX).await?.to_string()
    };
    let mut flags = lab.access_flags("client", None);
    flags.extend(arguments.h2.flags());
    flags.extend(words(&["--sandbox", SANDBOX, "--port", &port]));
    behind.insert(0, Process::start("forward", flags)?);
    Chain::of(kind, behind, Some(lab))
}
