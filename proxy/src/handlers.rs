//! What the gateway does, call by call.
//!
//! [`Handlers`] is the `OpenShell` service: one line per method, each handing over to a function of the file that is
//! about its subject. No authentication, caps, waiting, auditing or limits stand here; those are layers in front.
//! [`router`] decides what reaches it: `RelayStream` and `ForwardTcp` never do, and neither does a method that is not
//! in [`IMPLEMENTED`].

pub mod config;
pub mod connect_ssh;
pub mod exec;
pub mod forward;
pub mod identity_info;
pub mod logs;
pub mod main_process;
pub mod relay_stream;
pub mod router;
pub mod sandboxes;
pub mod ssh_sessions;
pub mod supervisor;
pub mod tokens;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use postern_identity::SandboxTokenIssuer;
use postern_proto::sandbox::{GetSandboxConfigRequest, GetSandboxConfigResponse};
use postern_proto::v1;
use postern_proto::v1::open_shell_server::OpenShell;
use postern_relay::registry::Registry;
use postern_relay::ssh::PoolConfig;
use tokio_util::task::TaskTracker;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use self::connect_ssh::ConnectSsh;
use self::exec::{Exec, ExecStream};
use self::forward::Forward;
use self::identity_info::GatewayInfo;
use self::router::Router;
use self::ssh_sessions::{Address, SshSessionCalls};
use self::supervisor::Supervisors;
use self::tokens::Tokens;
use self::watch::WatchEvents;
use crate::auth::Principal;
use crate::auth::clock::WallClock;
use crate::auth::sandbox_token::SandboxToken;
use crate::lifecycle::Lifecycle;
use crate::relay_plane::gate::Gate;
use crate::relay_plane::ssh_sessions::SshSessions;
use crate::relay_plane::{Budgets, RelayPlane};

/// The methods of `openshell.v1.OpenShell` that this gateway has. All others answer `UNIMPLEMENTED` and name themselves.
pub const IMPLEMENTED: &[&str] = &[
    "ConnectSupervisor",
    "CreateSandbox",
    "CreateSshSession",
    "DeleteSandbox",
    "ExecSandbox",
    "ExecSandboxInteractive",
    "FinalizeMainProcessExit",
    "ForwardTcp",
    "GetCurrentUser",
    "GetGatewayInfo",
    "GetSandbox",
    "GetSandboxConfig",
    "GetSandboxLogs",
    "Health",
    "ListSandboxes",
    "PushSandboxLogs",
    "RefreshSandboxToken",
    "RelayStream",
    "ReportMainProcessExit",
    "RevokeSshSession",
    "StartSandbox",
    "StopSandbox",
    "WatchSandbox",
];

/// What the handlers are made of.
pub struct Parts {
    /// Records and phases of sandboxes.
    pub lifecycle: Lifecycle,
    /// Who is connected.
    pub registry: Registry,
    /// Opens relays.
    pub plane: RelayPlane,
    /// How long relays wait for a sandbox.
    pub budgets: Budgets,
    /// Tokens that open relays for users.
    pub ssh_sessions: SshSessions,
    /// Mints sandbox tokens.
    pub issuer: Arc<SandboxTokenIssuer>,
    /// The time of day.
    pub clock: WallClock,
    /// Heartbeat interval of sessions.
    pub heartbeat: Duration,
    /// What clients are told to connect to, when that differs from what they themselves connected to.
    pub advertised: Option<Address>,
    /// What the gateway says about itself.
    pub info: GatewayInfo,
    /// Warm SSH connections for exec.
    pub exec_pool: PoolConfig,
    /// The tasks of sessions and tunnels, for a shutdown to wait for.
    pub tasks: TaskTracker,
}

/// The `OpenShell` service. Cloning shares everything.
#[derive(Clone)]
pub struct Handlers {
    shared: Arc<Shared>,
}

struct Shared {
    lifecycle: Lifecycle,
    exec: Exec,
    ssh_sessions: SshSessionCalls,
    supervisors: Supervisors,
    tokens: Tokens,
    info: GatewayInfo,
}

/// The inner end of the call plane, and what has to be kept running beside it.
#[derive(Debug)]
pub struct Assembled {
    /// Goes into `stack::call_plane`.
    pub router: Router,
    /// The exec calls: their pool is reaped, and evicted when a sandbox goes.
    pub exec: Exec,
}

/// Puts the handlers together.
#[must_use]
pub fn assemble(parts: Parts) -> Assembled {
    let Parts { lifecycle, registry, plane, ssh_sessions, issuer, clock, tasks, .. } = parts;
    let gate = Gate::new(lifecycle.clone(), plane.clone());
    let exec =
        Exec::new(lifecycle.clone(), gate.clone(), plane, parts.budgets.clone(), parts.exec_pool);
    let handlers = Handlers {
        shared: Arc::new(Shared {
            lifecycle: lifecycle.clone(),
            exec: exec.clone(),
            ssh_sessions: SshSessionCalls {
                lifecycle: lifecycle.clone(),
                sessions: ssh_sessions.clone(),
                advertised: parts.advertised,
            },
            supervisors: Supervisors {
                registry: registry.clone(),
                lifecycle: lifecycle.clone(),
                tokens: SandboxToken::new(issuer.verifier(), clock.clone()),
                clock: clock.clone(),
                heartbeat: parts.heartbeat,
                tasks: tasks.clone(),
            },
            tokens: Tokens::new(Arc::clone(&issuer), clock),
            info: parts.info,
        }),
    };
    let forward = Forward {
        lifecycle: lifecycle.clone(),
        gate: gate.clone(),
        sessions: ssh_sessions.clone(),
        budgets: parts.budgets.clone(),
    };
    let budgets = parts.budgets;
    let connect_ssh = ConnectSsh { lifecycle, gate, sessions: ssh_sessions, budgets, tasks };
    Assembled { router: Router::new(handlers, registry, forward, connect_ssh, issuer), exec }
}

/// The caller, as `authenticate` found out.
fn caller<T>(request: &Request<T>) -> Principal {
    Principal::of(request.extensions())
}

#[tonic::async_trait]
impl OpenShell for Handlers {
    async fn health(
        &self,
        _: Request<v1::HealthRequest>,
    ) -> Result<Response<v1::HealthResponse>, Status> {
        Ok(Response::new(self.shared.info.health()))
    }

    async fn get_gateway_info(
        &self,
        _: Request<v1::GetGatewayInfoRequest>,
    ) -> Result<Response<v1::GetGatewayInfoResponse>, Status> {
        Ok(Response::new(self.shared.info.gateway_info()))
    }

    async fn get_current_user(
        &self,
        request: Request<v1::GetCurrentUserRequest>,
    ) -> Result<Response<v1::GetCurrentUserResponse>, Status> {
        Ok(Response::new(identity_info::current_user(&caller(&request))?))
    }

    async fn create_sandbox(
        &self,
        request: Request<v1::CreateSandboxRequest>,
    ) -> Result<Response<v1::SandboxResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(
            sandboxes::create(&self.shared.lifecycle, &caller, request.into_inner()).await?,
        ))
    }

    async fn get_sandbox(
        &self,
        request: Request<v1::GetSandboxRequest>,
    ) -> Result<Response<v1::SandboxResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(
            sandboxes::get(&self.shared.lifecycle, &caller, request.into_inner()).await?,
        ))
    }

    async fn list_sandboxes(
        &self,
        request: Request<v1::ListSandboxesRequest>,
    ) -> Result<Response<v1::ListSandboxesResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(
            sandboxes::list(&self.shared.lifecycle, &caller, request.into_inner()).await?,
        ))
    }

    async fn stop_sandbox(
        &self,
        request: Request<v1::StopSandboxRequest>,
    ) -> Result<Response<v1::SandboxResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(
            sandboxes::stop(&self.shared.lifecycle, &caller, request.into_inner()).await?,
        ))
    }

    async fn start_sandbox(
        &self,
        request: Request<v1::StartSandboxRequest>,
    ) -> Result<Response<v1::SandboxResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(
            sandboxes::start(&self.shared.lifecycle, &caller, request.into_inner()).await?,
        ))
    }

    async fn delete_sandbox(
        &self,
        request: Request<v1::DeleteSandboxRequest>,
    ) -> Result<Response<v1::DeleteSandboxResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(
            sandboxes::delete(&self.shared.lifecycle, &caller, request.into_inner()).await?,
        ))
    }

    async fn watch_sandbox(
        &self,
        request: Request<v1::WatchSandboxRequest>,
    ) -> Result<Response<WatchEvents>, Status> {
        let caller = caller(&request);
        Ok(Response::new(
            watch::watch(&self.shared.lifecycle, &caller, request.into_inner()).await?,
        ))
    }

    async fn get_sandbox_logs(
        &self,
        request: Request<v1::GetSandboxLogsRequest>,
    ) -> Result<Response<v1::GetSandboxLogsResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(logs::get(&self.shared.lifecycle, &caller, request.into_inner()).await?))
    }

    async fn push_sandbox_logs(
        &self,
        request: Request<Streaming<v1::PushSandboxLogsRequest>>,
    ) -> Result<Response<v1::PushSandboxLogsResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(logs::push(&self.shared.lifecycle, &caller, request.into_inner()).await?))
    }

    async fn get_sandbox_config(
        &self,
        request: Request<GetSandboxConfigRequest>,
    ) -> Result<Response<GetSandboxConfigResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(config::get(&self.shared.lifecycle, &caller, request.into_inner()).await?))
    }

    async fn report_main_process_exit(
        &self,
        request: Request<v1::ReportMainProcessExitRequest>,
    ) -> Result<Response<v1::ReportMainProcessExitResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(
            main_process::report(&self.shared.lifecycle, &caller, request.into_inner()).await?,
        ))
    }

    async fn finalize_main_process_exit(
        &self,
        request: Request<v1::FinalizeMainProcessExitRequest>,
    ) -> Result<Response<v1::FinalizeMainProcessExitResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(
            main_process::finalize(&self.shared.lifecycle, &caller, request.into_inner()).await?,
        ))
    }

    async fn connect_supervisor(
        &self,
        request: Request<Streaming<v1::SupervisorMessage>>,
    ) -> Result<Response<BoxStream<v1::GatewayMessage>>, Status> {
        let session = self.shared.supervisors.connect(request).await?;
        Ok(session.map(|stream| Box::pin(stream) as BoxStream<_>))
    }

    async fn refresh_sandbox_token(
        &self,
        request: Request<v1::RefreshSandboxTokenRequest>,
    ) -> Result<Response<v1::RefreshSandboxTokenResponse>, Status> {
        let caller = caller(&request);
        let exists = async |id: &str| Ok(self.shared.lifecycle.by_id(id).await?.is_some());
        Ok(Response::new(self.shared.tokens.refresh(&caller, request.into_inner(), exists).await?))
    }

    async fn create_ssh_session(
        &self,
        request: Request<v1::CreateSshSessionRequest>,
    ) -> Result<Response<v1::CreateSshSessionResponse>, Status> {
        let (caller, reached) = (caller(&request), router::reached_by(request.extensions()));
        Ok(Response::new(
            self.shared.ssh_sessions.create(&caller, &reached, request.into_inner()).await?,
        ))
    }

    async fn revoke_ssh_session(
        &self,
        request: Request<v1::RevokeSshSessionRequest>,
    ) -> Result<Response<v1::RevokeSshSessionResponse>, Status> {
        let caller = caller(&request);
        Ok(Response::new(self.shared.ssh_sessions.revoke(&caller, request.into_inner()).await?))
    }

    async fn exec_sandbox(
        &self,
        request: Request<v1::ExecSandboxRequest>,
    ) -> Result<Response<ExecStream>, Status> {
        let caller = caller(&request);
        Ok(Response::new(self.shared.exec.run(caller, request.into_inner()).await?))
    }

    async fn exec_sandbox_interactive(
        &self,
        request: Request<Streaming<v1::ExecSandboxInput>>,
    ) -> Result<Response<ExecStream>, Status> {
        let caller = caller(&request);
        Ok(Response::new(self.shared.exec.interactive(caller, request.into_inner()).await?))
    }
}

#[cfg(test)]
mod tests {
    use postern_proto::authorization::{AuthMode, AuthorizationTable};

    use super::*;

    #[test]
    fn what_is_implemented_is_in_the_contract_and_in_order() {
        let table = AuthorizationTable::load().unwrap();
        for method in IMPLEMENTED {
            let rule = table.rule(&format!("/openshell.v1.OpenShell/{method}"));
            let rule = rule.unwrap_or_else(|| panic!("{method} is not in the contract"));
            // `authorize` lets admins through to methods of peers so that they read UNIMPLEMENTED there.
            assert_ne!(rule.mode, AuthMode::Peer, "{method} needs peer principals first");
        }
        assert!(IMPLEMENTED.is_sorted());
    }
}
