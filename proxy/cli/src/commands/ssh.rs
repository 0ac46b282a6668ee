//! `ssh-proxy`, `sandbox ssh-config`, and opening an editor over SSH.

use std::process::ExitCode;

use postern_proto::v1;
use postern_proto::v1::tcp_forward_init::Target;
use postern_relay::bridge::Joined;

use crate::args::{Globals, SshProxyArgs};
use crate::connection::Gateway;
use crate::error::CliError;
use crate::output;
use crate::tunnel::{self, SshToken, Stdio};

/// Carries one SSH connection on standard input and output.
///
/// # Errors
/// When the gateway refuses, or the relay ends with an error; ssh then shows the text and ends.
pub async fn proxy(globals: &Globals, args: SshProxyArgs) -> Result<ExitCode, CliError> {
    let globals = Globals {
        gateway: args.gateway_name.or_else(|| globals.gateway.clone()),
        gateway_endpoint: args.server.or_else(|| globals.gateway_endpoint.clone()),
        ..globals.clone()
    };
    let mut gateway = Gateway::connect(&globals).await?;
    let (sandbox, token) = match (args.sandbox_id, args.token, args.name) {
        (Some(id), Some(token), _) => (id, SshToken::given(token)),
        (_, None, Some(name)) => {
            let token = SshToken::create(&mut gateway, &name).await?;
            (name, token)
        }
        _ => {
            return Err(CliError::usage(
                "say which sandbox: --name NAME, or --sandbox-id ID with --token TOKEN",
            ));
        }
    };
    let target = Target::Ssh(v1::SshRelayTarget {});
    let local = Joined(Stdio::new());
    let outcome = tunnel::carry(&gateway, &sandbox, target, &token, local).await;
    token.revoke(&mut gateway).await;
    outcome?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a Host block for `~/.ssh/config`.
///
/// # Errors
/// When there is no such sandbox.
pub async fn config(gateway: &mut Gateway, name: Option<String>) -> Result<ExitCode, CliError> {
    let name = gateway.sandbox_or_only(name).await?;
    gateway.sandbox(&name).await?;
    output::print(&host_block(gateway, &name)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Says how to open a sandbox in an editor, and opens Visual Studio Code where it is installed.
///
/// # Errors
/// When there is no such sandbox.
pub async fn open_editor(
    gateway: &mut Gateway,
    name: Option<String>,
    editor: &str,
) -> Result<ExitCode, CliError> {
    let name = gateway.sandbox_or_only(name).await?;
    gateway.sandbox(&name).await?;
    output::note(&format!(
        "add this to ~/.ssh/config, then open host {} in {editor}:",
        host_alias(&name)
    ));
    output::print(&host_block(gateway, &name)?)?;
    Ok(ExitCode::SUCCESS)
}

fn host_alias(name: &str) -> String {
    format!("openshell-{name}")
}

/// A Host block for `~/.ssh/config`.
///
/// The relay authenticates both ends, so the host key is not checked a second time. The dead-peer
/// timers make a client notice a vanished gateway within 45 seconds.
///
/// # Errors
/// When this program cannot find its own path.
pub fn host_block(gateway: &Gateway, name: &str) -> Result<String, CliError> {
    let program = std::env::current_exe()
        .map_err(|source| CliError::local("find this program's own path", source))?;
    let which = if gateway.registered {
        format!("--gateway-name {}", quoted(&gateway.name))
    } else {
        format!("--server {}", quoted(&gateway.endpoint))
    };
    Ok(format!(
        "Host {alias}\n    User sandbox\n    ProxyCommand {program} ssh-proxy {which} --name {name}\n    \
         StrictHostKeyChecking no\n    UserKnownHostsFile /dev/null\n    GlobalKnownHostsFile /dev/null\n    \
         LogLevel ERROR\n    ServerAliveInterval 15\n    ServerAliveCountMax 3\n",
        alias = host_alias(name),
        program = quoted(&program.to_string_lossy()),
        name = quoted(name),
    ))
}

/// As a POSIX shell reads it back; ssh gives `ProxyCommand` to one.
fn quoted(text: &str) -> String {
    let plain = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-:@+=,".contains(&byte));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn only_what_a_shell_would_read_otherwise_is_quoted() {
        assert_eq!(quoted("/usr/bin/postern"), "/usr/bin/postern");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
