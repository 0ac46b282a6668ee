//! The trait itself.

use async_trait::async_trait;

use crate::compute::{DriverSandbox, GatewayListenerRequirement, GetCapabilitiesResponse};
use crate::{DriverError, SandboxToken, WatchStream};

/// Which sandbox is meant: its id, and its name as a hint for runtimes that index by name.
///
/// When both are given the id decides. When the id is empty the name does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SandboxRef {
    /// The gateway's id of the sandbox.
    pub id: String,
    /// The name users gave it; may be empty.
    pub name: String,
}

impl SandboxRef {
    /// Names a sandbox by id and name.
    pub fn new(id: impl Into<String>, name: impl Into<String>) -> Self {
        Self { id: id.into(), name: name.into() }
    }

    /// The id, or the name when no id was given. For texts of errors and logs.
    #[must_use]
    pub fn label(&self) -> &str {
        if self.id.is_empty() { &self.name } else { &self.id }
    }
}

impl From<&DriverSandbox> for SandboxRef {
    fn from(sandbox: &DriverSandbox) -> Self {
        Self::new(&*sandbox.id, &*sandbox.name)
    }
}

/// Makes sandboxes exist on one runtime. Semantics follow the OpenShell driver contract.
///
/// # Rules for every method
/// - Idempotent where stated, safe to call at the same time for the same sandbox, and safe to
///   cancel: a dropped future leaves either the old state or a state that the same call completes.
/// - A sandbox belongs to the runtime, not to the driver value: dropping the driver or killing the
///   gateway changes no sandbox, and a new driver over the same runtime finds them all again.
/// - The sandbox token never appears in an answer, an event, an error or a log line.
/// - Ready=True in a status means that the runtime did its part. Whether the sandbox is Ready for
///   users is the gateway's decision, because only the gateway sees the supervisor's session.
#[async_trait]
pub trait ComputeDriver: Send + Sync + 'static {
    /// Who this driver is. Called once, when the gateway starts.
    ///
    /// `default_image` fills `template.image` of a create that has none. With
    /// `gateway_manages_lifecycle` the gateway starts sandboxes when it starts and stops them when
    /// it stops; without it sandboxes outlive the gateway.
    ///
    /// # Errors
    /// `Unavailable` when the runtime does not answer.
    async fn capabilities(&self) -> Result<GetCapabilitiesResponse, DriverError>;

    /// Addresses on which the gateway must listen so that sandboxes of this runtime reach it.
    ///
    /// # Errors
    /// `Unavailable` when the runtime does not answer. The default asks for nothing.
    async fn listener_requirements(&self) -> Result<Vec<GatewayListenerRequirement>, DriverError> {
        Ok(Vec::new())
    }

    /// Checks a create before the gateway stores anything. Changes nothing.
    ///
    /// # Errors
    /// `InvalidArgument` or `FailedPrecondition`; both reach the user as they are.
    async fn validate_create(&self, sandbox: &DriverSandbox) -> Result<(), DriverError>;

    /// Asks the runtime for a sandbox. Returns once that was accepted; progress comes by
    /// [`watch`](Self::watch).
    ///
    /// # Errors
    /// `AlreadyExists` when the id is taken (the sandbox there is unchanged), else as
    /// [`validate_create`](Self::validate_create), `Unavailable` or `Internal`. After an error
    /// other than `AlreadyExists` nothing of the sandbox is left behind.
    async fn create(&self, sandbox: DriverSandbox) -> Result<(), DriverError>;

    /// The sandbox with its current status and without its token.
    ///
    /// # Errors
    /// `NotFound`, or `Unavailable` when the runtime does not answer.
    async fn get(&self, sandbox: &SandboxRef) -> Result<DriverSandbox, DriverError>;

    /// Every sandbox this driver owns, in no particular order.
    ///
    /// # Errors
    /// `Unavailable` when the runtime does not answer; never a partial list.
    async fn list(&self) -> Result<Vec<DriverSandbox>, DriverError>;

    /// Ends the sandbox's processes and keeps its state. Idempotent: stopping a stopped sandbox
    /// succeeds. Afterwards its status says Suspended=True.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Internal`.
    async fn stop(&self, sandbox: &SandboxRef) -> Result<(), DriverError>;

    /// Runs a stopped (or failed) sandbox again on the state it had. Idempotent: starting a
    /// running sandbox succeeds and disturbs nothing.
    ///
    /// `token` replaces the credential that the sandbox got when it was made, which may have
    /// expired while it was stopped. Without one the stored credential is used again. External
    /// drivers of the contract have no field for it and ignore it.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Internal`.
    async fn start(
        &self,
        sandbox: &SandboxRef,
        token: Option<SandboxToken>,
    ) -> Result<(), DriverError>;

    /// Ends the sandbox and removes its state. `false` when there was nothing to delete.
    ///
    /// # Errors
    /// `Unavailable` or `Internal`; calling again continues where it stopped.
    async fn delete(&self, sandbox: &SandboxRef) -> Result<bool, DriverError>;

    /// A snapshot of every sandbox first, then every change until the receiver drops the stream.
    ///
    /// A snapshot of a sandbox replaces all that was known of it. The stream is bounded: a
    /// receiver that falls behind gets snapshots and deletions that bring it up to date, and may
    /// miss platform events. It ends when the runtime is lost; the gateway then watches again.
    ///
    /// # Errors
    /// `Unavailable` when the runtime does not answer.
    async fn watch(&self) -> Result<WatchStream, DriverError>;

    /// Prepares the runtime for sandboxes of a workspace (a namespace on Kubernetes). Idempotent.
    ///
    /// # Errors
    /// `Unimplemented` is tolerated. The default has nothing to prepare.
    async fn ensure_workspace(&self, workspace: &str) -> Result<(), DriverError> {
        let _ = workspace;
        Ok(())
    }

    /// Undoes [`ensure_workspace`](Self::ensure_workspace). Idempotent.
    ///
    /// # Errors
    /// `Unimplemented` is tolerated. The default has nothing to undo.
    async fn delete_workspace(&self, workspace: &str) -> Result<(), DriverError> {
        let _ = workspace;
        Ok(())
    }
}
