//! What a scenario acts on: a gateway, sandboxes with targets, clients.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::Uri;
use postern_layers::units::{format_duration, parse_duration};
use tokio::time::Instant;

use crate::access::{Access, AccessArgs, H2Args, client_tls};
use crate::client::{Client, Tokens};
use crate::error::BenchError;
use crate::host::{raise_open_files, resident_kib};
use crate::lab::{Lab, LabConfig, Minter};
use crate::report::{Figure, Report};
use crate::role::{DriverName, Process};
use crate::supervisor::{Identity, Session, Watch};

/// Which gateway, and what stands around it.
///
/// Without an endpoint a gateway is started for the run, with a configuration that lifts the limits on one address.
#[derive(Args, Clone, Debug)]
pub struct PlantArgs {
    /// A gateway that runs already; sandboxes then have to be there, with a target each.
    #[arg(long, global = true, value_name = "URL")]
    pub endpoint: Option<Uri>,
    /// Folder with ca.crt, tls.crt and tls.key of a user, for that gateway.
    #[arg(long, global = true, value_name = "DIR", requires = "endpoint")]
    pub certificates: Option<PathBuf>,
    /// The same of sandboxes.
    #[arg(long, global = true, value_name = "DIR", requires = "endpoint")]
    pub sandbox_certificates: Option<PathBuf>,
    /// A sandbox of that gateway; may be repeated.
    #[arg(long = "sandbox", global = true, value_name = "NAME", requires = "endpoint")]
    pub names: Vec<String>,
    /// Port of the target in those sandboxes.
    #[arg(long, global = true, default_value_t = 7070)]
    pub port: u16,
    /// Key (PEM) with which that gateway signs sandbox tokens, to play supervisors.
    #[arg(long, global = true, value_name = "FILE", requires = "endpoint")]
    pub signing_key: Option<PathBuf>,
    /// Name of that gateway in sandbox tokens.
    #[arg(long, global = true, default_value = "openshell")]
    pub gateway_id: String,
    /// Mutual TLS instead of plaintext, for a gateway of our own.
    #[arg(long, global = true)]
    pub tls: bool,
    /// Real supervisors instead of scripted ones, for a gateway of our own.
    #[arg(long, global = true)]
    pub real: bool,
    /// Sandboxes, for a gateway of our own.
    #[arg(long, global = true, default_value_t = 4)]
    pub sandboxes: usize,
    /// Round trip added between users and gateway.
    #[arg(long, global = true, value_parser = parse_duration, value_name = "TIME")]
    pub rtt: Option<Duration>,
    /// More lines for the configuration of a gateway of our own.
    #[arg(long, global = true, value_name = "TOML", default_value = "")]
    pub config: String,
    /// HTTP/2 settings of our own ends.
    #[command(flatten)]
    pub h2: H2Args,
}

impl PlantArgs {
    /// Notes how the plant was.
    pub fn note(&self, report: &mut Report) {
        let gateway = self.endpoint.as_ref().map_or("own".to_owned(), Uri::to_string);
        report.setting("gateway", gateway);
        if self.endpoint.is_none() {
            report.setting("tls", self.tls);
            report.setting("supervisors", if self.real { "real" } else { "scripted" });
        }
        if let Some(rtt) = self.rtt {
            report.setting("rtt", format_duration(rtt));
        }
        for pair in self.h2.flags().chunks(2) {
            report.setting(pair[0].trim_start_matches('-'), &pair[1]);
        }
        for line in self.config.lines().filter(|line| line.contains('=')) {
            report.setting("config", line.trim());
        }
    }

    fn lab(&self) -> Result<Lab, BenchError> {
        let driver = if self.real { DriverName::Process } else { DriverName::Fake };
        let config = LabConfig { tls: self.tls, driver, config: self.config.clone() };
        Lab::start(&config)
    }
}

/// A sandbox that relays can be opened into.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its name.
    pub name: Arc<str>,
    /// Port of its target.
    pub port: u16,
    /// Tokens for its relays.
    pub tokens: Tokens,
}

/// What a scenario acts on; gone with the value.
#[derive(Debug)]
pub struct Plant {
    /// How users reach the gateway.
    pub user: Access,
    /// How supervisors reach it.
    pub supervisor: Access,
    /// Tells what supervisors see.
    pub watch: Arc<Watch>,
    minter: Option<Minter>,
    // In the order in which they end.
    sessions: Vec<Session>,
    delay: Option<Process>,
    target: Option<Process>,
    lab: Option<Lab>,
}

impl Plant {
    /// A gateway without sandboxes.
    ///
    /// # Errors
    /// When it does not come up or cannot be reached.
    pub fn build(arguments: &PlantArgs) -> Result<Self, BenchError> {
        raise_open_files();
        let (lab, mut user, mut supervisor, minter) = match &arguments.endpoint {
            None => {
                let lab = arguments.lab()?;
                let minter = lab.minter()?;
                let (user, supervisor) = (lab.user.clone(), lab.sandbox.clone());
                (Some(lab), user, supervisor, Some(minter))
            }
            Some(endpoint) => {
                let (h2, certificates) = (arguments.h2.clone(), arguments.certificates.clone());
                let user = AccessArgs { endpoint: endpoint.clone(), certificates, h2 }.access()?;
                let mut supervisor = user.clone();
                if let Some(folder) = &arguments.sandbox_certificates {
                    supervisor.tls = Some(client_tls(folder)?);
                }
                let key = arguments.signing_key.as_deref();
                let minter = key.map(|key| Minter::of(key, None, &arguments.gateway_id));
                (None, user, supervisor, minter.transpose()?)
            }
        };
        user.h2 = arguments.h2.settings();
        supervisor.h2 = arguments.h2.settings();
        let delay = match arguments.rtt {
            Some(rtt) => Some(delayed(&mut user, rtt)?),
            None => None,
        };
        let watch = Watch::new(Instant::now());
        let (sessions, target) = (Vec::new(), None);
        Ok(Self { user, supervisor, watch, minter, sessions, delay, target, lab })
    }

    /// Sandboxes with a target each, and tokens for `relays` relays at a time into each.
    ///
    /// # Errors
    /// When a sandbox does not come up.
    pub async fn sites(
        &mut self,
        arguments: &PlantArgs,
        relays: usize,
    ) -> Result<Vec<Site>, BenchError> {
        let client = Client::connect(&self.user).await?;
        let mut sites = Vec::new();
        let names = match self.lab {
            None => arguments.names.clone(),
            Some(_) => (0..arguments.sandboxes).map(|n| format!("load-{n}")).collect(),
        };
        for name in names {
            let port = match &self.lab {
                None => arguments.port,
                Some(lab) if arguments.real => lab.real_sandbox(&client, &name).await?,
                Some(lab) => {
                    let identity = lab.bare_sandbox(&client, &name).await?;
                    self.session(&identity).await?;
                    client.wait_ready(&name).await?;
                    self.target_port()?
                }
            };
            let tokens = Tokens::create(&client, &name, relays).await?;
            sites.push(Site { name: name.as_str().into(), port, tokens });
        }
        if sites.is_empty() {
            let problem = "named no sandbox; give --sandbox NAME with a target in it";
            return Err(BenchError::unexpected("the command line", problem));
        }
        Ok(sites)
    }

    /// Names of sandboxes with real supervisors, for commands: without target and tokens.
    ///
    /// # Errors
    /// When a sandbox does not come up.
    pub async fn rooms(&self, arguments: &PlantArgs) -> Result<Vec<Arc<str>>, BenchError> {
        if self.lab.is_none() {
            return Ok(arguments.names.iter().map(|name| name.as_str().into()).collect());
        }
        let client = Client::connect(&self.user).await?;
        let mut rooms = Vec::new();
        for number in 0..arguments.sandboxes.max(1) {
            let name = format!("load-{number}");
            client.create(&name, &[]).await?;
            client.wait_ready(&name).await?;
            rooms.push(name.into());
        }
        Ok(rooms)
    }

    async fn session(&mut self, identity: &Identity) -> Result<(), BenchError> {
        let session = Session::start(&self.supervisor, identity, &self.watch).await?;
        self.sessions.push(session);
        Ok(())
    }

    /// The target that all scripted supervisors share.
    fn target_port(&mut self) -> Result<u16, BenchError> {
        if self.target.is_none() {
            self.target = Some(Process::start("target", [""; 0])?);
        }
        let address = self.target.as_ref().map_or("", |target| &target.address);
        let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
        port.ok_or_else(|| BenchError::unexpected("the target", "named no address"))
    }

    /// Who plays the supervisor of a sandbox that has no record.
    ///
    /// # Errors
    /// For a gateway whose key is not known.
    pub fn stranger(&self, sandbox_id: &str) -> Result<Identity, BenchError> {
        let minter = self.minter.as_ref().ok_or_else(|| {
            BenchError::unexpected("the command line", "gave no --signing-key to play supervisors")
        })?;
        Ok(minter.identity(sandbox_id))
    }

    /// KiB of memory of the gateway, if it is ours.
    #[must_use]
    pub fn gateway_kib(&self) -> Option<u64> {
        resident_kib(self.lab.as_ref()?.gateway_pid()).ok()
    }

    /// The memory of the gateway as a figure, if it is ours.
    #[must_use]
    pub fn memory(&self) -> Option<Figure> {
        let mib = self.gateway_kib()? as f64 / 1024.0;
        Some(Figure::plain("memory of the gateway", mib, "MiB"))
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        // Sessions first, so that the gateway need not wait for them.
        self.sessions.clear();
        self.delay.take();
        self.lab.take();
    }
}

/// Puts a delay in front of what `access` leads to.
fn delayed(access: &mut Access, rtt: Duration) -> Result<Process, BenchError> {
    let authority = access.uri.authority().map(ToString::to_string).unwrap_or_default();
    let process = Process::start("delay", ["--to", &authority, "--rtt", &format_duration(rtt)])?;
    let scheme = access.uri.scheme_str().unwrap_or("http");
    access.uri = format!("{scheme}://{}", process.address)
        .parse()
        .map_err(|_| BenchError::unexpected("the delay", "named no address"))?;
    Ok(process)
}
