//! Parts that run as processes of their own.
//!
//! Every command of this crate is also every part: started with the name of a role as its first argument, it plays
//! that role instead. So one build is enough, and what is measured is always of the same build as what measures.
//! A role prints `ready` and its address when it serves, and ends when its standard input does.

mod delay;
mod forward;
mod gateway;
mod hop;
mod process;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use crate::access::AccessArgs;
use crate::error::BenchError;
use crate::supervisor::{Identity, Session, Watch};
use crate::target;

pub use delay::DelayArgs;
pub use forward::ForwardArgs;
pub use gateway::{DriverName, GatewayArgs};
pub use hop::HopArgs;
pub use process::Process;

/// The hidden command by which the process driver of a gateway starts supervisors.
const SUPERVISE: &str = "supervise";

#[derive(Parser, Debug)]
#[command(name = "role", disable_help_subcommand = true)]
struct RoleArgs {
    #[command(subcommand)]
    role: Role,
}

/// What a process can be.
#[derive(Subcommand, Debug)]
enum Role {
    /// A gateway.
    Gateway(GatewayArgs),
    /// What relays lead to.
    Target(TargetArgs),
    /// A hop that copies bytes.
    Hop(HopArgs),
    /// A listener whose connections are relays into a sandbox.
    Forward(ForwardArgs),
    /// A hop that delays bytes.
    Delay(DelayArgs),
    /// A scripted supervisor.
    Session(SessionArgs),
}

/// A target.
#[derive(Args, Debug)]
pub struct TargetArgs {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Go on when standard input ends: inside a sandbox it is empty.
    #[arg(long)]
    pub stay: bool,
}

/// A scripted supervisor.
#[derive(Args, Debug)]
pub struct SessionArgs {
    /// The gateway.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Whose supervisor.
    #[arg(long)]
    pub sandbox_id: String,
    /// Its token.
    #[arg(long, env = "OPENSHELL_SANDBOX_TOKEN", hide_env_values = true)]
    pub token: String,
}

/// Plays a role if the command line names one; call it first in `main`.
///
/// Roles have one thread unless they are the gateway or a real supervisor, which choose for themselves.
#[must_use]
pub fn play() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    let first = words.next()?;
    if first == SUPERVISE {
        // Makes its own runtime: it forks before it has threads.
        return Some(postern_supervisor::main(words));
    }
    if first != "role" {
        return None;
    }
    let arguments = RoleArgs::parse_from(std::iter::once(OsString::from("role")).chain(words));
    Some(match run(arguments.role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    })
}

fn run(role: Role) -> Result<(), BenchError> {
    let mut builder = match role {
        Role::Gateway(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.enable_all().build().map_err(BenchError::io("start the runtime"))?;
    let outcome = runtime.block_on(async {
        match role {
            Role::Gateway(arguments) => gateway::run(arguments).await,
            Role::Target(arguments) => run_target(arguments).await,
            Role::Hop(arguments) => hop::run(arguments).await,
            Role::Forward(arguments) => forward::run(arguments).await,
            Role::Delay(arguments) => delay::run(arguments).await,
            Role::Session(arguments) => run_session(arguments).await,
        }
    });
    // A read of standard input cannot be cancelled, and must not hold the end up.
    runtime.shutdown_background();
    outcome
}

async fn run_target(arguments: TargetArgs) -> Result<(), BenchError> {
    let listener = listen(arguments.listen).await?;
    let serving = target::serve(listener);
    if arguments.stay {
        return serving.await.map_err(BenchError::io("accept a connection"));
    }
    until_stdin_ends(serving).await
}

async fn run_session(arguments: SessionArgs) -> Result<(), BenchError> {
    let identity = Identity { sandbox_id: arguments.sandbox_id, token: arguments.token };
    let watch = Watch::new(tokio::time::Instant::now());
    let _session = Session::start(&arguments.access.access()?, &identity, &watch).await?;
    println!("ready -");
    until_stdin_ends(std::future::pending()).await
}

/// Binds and says where.
async fn listen(address: SocketAddr) -> Result<TcpListener, BenchError> {
    let listener =
        TcpListener::bind(address).await.map_err(BenchError::io(format!("listen on {address}")))?;
    let address = listener.local_addr().map_err(BenchError::io("learn the address"))?;
    println!("ready {address}");
    Ok(listener)
}

/// Runs until standard input ends or the work fails.
async fn until_stdin_ends(
    work: impl Future<Output = std::io::Result<()>>,
) -> Result<(), BenchError> {
    let mut stdin = tokio::io::stdin();
    let mut nothing = [0; 64];
    let ended = async { while matches!(stdin.read(&mut nothing).await, Ok(1..)) {} };
    tokio::select! {
        outcome = work => outcome.map_err(BenchError::io("serve")),
        () = ended => Ok(()),
    }
}
