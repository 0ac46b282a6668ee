//! A connection to the gateway that the user means.

use std::sync::Arc;

use http::Uri;
use postern_proto::datamodel::{WorkspaceSelector, workspace_selector};
use postern_proto::v1;
use postern_proto::v1::open_shell_client::OpenShellClient;
use postern_relay::transport::{self, Connection, Target};

use crate::args::Globals;
use crate::error::CliError;
use crate::registration::Registrations;
use crate::tls;

/// Largest answer taken, in bytes: a page of 500 sandboxes with their environments fits.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// A connected gateway. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Generated client over [`Gateway::connection`].
    pub client: OpenShellClient<Connection>,
    /// The one HTTP/2 connection; relays are streams on it too.
    pub connection: Connection,
    /// Name of the registration, or the URL.
    pub name: String,
    /// URL.
    pub endpoint: String,
    /// Workspace that was asked for; the gateway's default when absent.
    pub workspace: Option<String>,
    /// Whether the gateway is registered, or was given by URL.
    pub registered: bool,
}

impl Gateway {
    /// Connects to the gateway that the flags, the environment, or the active registration name.
    ///
    /// # Errors
    /// When there is none, it cannot be reached, or its certificates cannot be used.
    pub async fn connect(globals: &Globals) -> Result<Self, CliError> {
        Self::connect_in(&Registrations::from_environment()?, globals).await
    }

    /// As [`Gateway::connect`], with registrations of the caller's choice.
    ///
    /// # Errors
    /// As [`Gateway::connect`].
    pub async fn connect_in(
        registrations: &Registrations,
        globals: &Globals,
    ) -> Result<Self, CliError> {
        let (name, endpoint, registered) = match &globals.gateway_endpoint {
            Some(endpoint) => (endpoint.clone(), endpoint.clone(), false),
            None => {
                let name = globals.gateway.clone().map_or_else(|| registrations.active(), Ok)?;
                let metadata = registrations.load(&name)?;
                (name, metadata.gateway_endpoint, true)
            }
        };
        let uri: Uri = endpoint.parse().map_err(|_| CliError::BadEndpoint {
            endpoint: endpoint.clone(),
            why: "write https://host:port",
        })?;
        let mut target = Target::new(uri.clone());
        if uri.scheme_str() == Some("https") {
            let certificates = if registered {
                registrations.mutual_tls(&name)?
            } else {
                certificates_for(registrations, globals, &endpoint)?
            };
            let config = tls::client(&name, certificates, globals.gateway_insecure)?;
            target.tls = Some(Arc::new(config));
        }
        Self::over(&target, name, endpoint, globals.workspace.clone(), registered).await
    }

    async fn over(
        target: &Target,
        name: String,
        endpoint: String,
        workspace: Option<String>,
        registered: bool,
    ) -> Result<Self, CliError> {
        let connection = transport::connect(target)
            .await
            .map_err(|source| CliError::Unreachable { endpoint: endpoint.clone(), source })?;
        let client = OpenShellClient::with_origin(connection.clone(), connection.origin())
            .max_decoding_message_size(MAX_ANSWER);
        Ok(Self { client, connection, name, endpoint, workspace, registered })
    }

    /// The workspace in the contract's form.
    #[must_use]
    pub fn scope(&self) -> Option<WorkspaceSelector> {
        self.workspace.clone().map(|name| WorkspaceSelector {
            selection: Some(workspace_selector::Selection::Workspace(name)),
        })
    }

    /// One sandbox.
    ///
    /// # Errors
    /// When there is no such sandbox.
    pub async fn sandbox(&mut self, name: &str) -> Result<v1::Sandbox, CliError> {
        let request =
            v1::GetSandboxRequest { workspace_scope: self.scope(), name: name.to_owned() };
        let answer =
            self.client.get_sandbox(request).await.map_err(|status| {
                CliError::refused(format!("cannot get sandbox {name}"), status)
            })?;
        Ok(answer.into_inner().sandbox.unwrap_or_default())
    }

    /// The named sandbox, or the only one there is.
    ///
    /// # Errors
    /// When none is named and there is not exactly one.
    pub async fn sandbox_or_only(&mut self, name: Option<String>) -> Result<String, CliError> {
        if let Some(name) = name {
            return Ok(name);
        }
        let request = v1::ListSandboxesRequest {
            workspace_scope: self.scope(),
            page_size: 2,
            ..v1::ListSandboxesRequest::default()
        };
        let found = self
            .client
            .list_sandboxes(request)
            .await
            .map_err(|status| CliError::refused("cannot list sandboxes", status))?
            .into_inner()
            .sandboxes;
        match <[v1::Sandbox; 1]>::try_from(found) {
            Ok([only]) => Ok(only.metadata.unwrap_or_default().name),
            Err(found) if found.is_empty() => {
                Err(CliError::usage("there is no sandbox; make one with `postern sandbox create`"))
            }
            Err(_) => Err(CliError::usage(
                "there are several sandboxes; say which one (`postern sandbox list`)",
            )),
        }
    }
}

/// A URL that is also registered is reached with the registration's certificates.
fn certificates_for(
    registrations: &Registrations,
    globals: &Globals,
    endpoint: &str,
) -> Result<tls::Certificates, CliError> {
    let wanted = endpoint.trim_end_matches('/');
    let known = match &globals.gateway {
        Some(name) => Some(name.clone()),
        None => registrations
            .list()?
            .into_iter()
            .find(|gateway| gateway.gateway_endpoint.trim_end_matches('/') == wanted)
            .map(|gateway| gateway.name),
    };
    Ok(match known {
        Some(name) => registrations.mutual_tls(&name)?,
        None => (None, None),
    })
}
