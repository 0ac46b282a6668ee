//! The grammar of the command line, as `openshell` clients know it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Flags that every command takes.
#[derive(Args, Clone, Debug, Default)]
pub struct Globals {
    /// Registered gateway to talk to; the active one when absent.
    #[arg(short, long, global = true, env = "OPENSHELL_GATEWAY", value_name = "NAME")]
    pub gateway: Option<String>,
    /// Talk to this URL instead of a registered gateway.
    #[arg(long, global = true, env = "OPENSHELL_GATEWAY_ENDPOINT", value_name = "URL")]
    pub gateway_endpoint: Option<String>,
    /// Do not check the gateway's certificate. For experiments only.
    #[arg(long, global = true)]
    pub gateway_insecure: bool,
    /// Workspace of the sandboxes.
    #[arg(long, global = true, env = "OPENSHELL_WORKSPACE", value_name = "NAME")]
    pub workspace: Option<String>,
    /// Say more; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For machines.
    Json,
}

/// Commands that talk to a gateway.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Is the gateway there, and who am I to it?
    Status {
        /// Output form.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Who the gateway takes me for.
    Whoami {
        /// Output form.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Make, use and remove sandboxes.
    #[command(subcommand)]
    Sandbox(SandboxCommand),
    /// Carry local TCP ports into a sandbox.
    #[command(subcommand)]
    Forward(ForwardCommand),
    /// What a sandbox logged.
    Logs(LogsArgs),
    /// Carry an SSH connection on standard input and output, for ssh's `ProxyCommand`.
    SshProxy(SshProxyArgs),
}

/// Registrations of gateways, and what a gateway says of itself.
#[derive(Subcommand, Clone, Debug)]
pub enum GatewayCommand {
    /// Register a gateway by its URL.
    Add(GatewayAddArgs),
    /// Forget a gateway.
    Remove {
        /// Registration; the active one when absent.
        name: Option<String>,
    },
    /// Make a registered gateway the active one; without a name, print the active one.
    Select {
        /// Registration.
        name: Option<String>,
    },
    /// Registered gateways.
    List {
        /// Output form.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// What the gateway says of itself. Needs the platform admin role.
    Info {
        /// Output form.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// What to register.
#[derive(Args, Clone, Debug)]
pub struct GatewayAddArgs {
    /// URL, `https://host:port` or `http://host:port`.
    pub endpoint: String,
    /// Name of the registration; made from the host when absent.
    #[arg(long)]
    pub name: Option<String>,
    /// Accepted for compatibility: a gateway on this machine.
    #[arg(long)]
    pub local: bool,
    /// Folder with `ca.crt`, `tls.crt` and `tls.key` for mutual TLS; copied.
    #[arg(long, value_name = "DIR")]
    pub mtls_dir: Option<PathBuf>,
}

/// What can be done with sandboxes.
#[derive(Subcommand, Clone, Debug)]
pub enum SandboxCommand {
    /// Make a sandbox, wait until it is ready, and run a command or a shell in it.
    Create(Box<CreateArgs>),
    /// One sandbox.
    Get {
        /// Sandbox; the only one there is when absent.
        name: Option<String>,
        /// Output form.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// All sandboxes.
    List(ListArgs),
    /// Remove sandboxes.
    Delete {
        /// Sandboxes.
        names: Vec<String>,
        /// Every sandbox of the workspace.
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// End a sandbox's processes and keep its files.
    Stop {
        /// Sandbox; the only one there is when absent.
        name: Option<String>,
    },
    /// Start a stopped sandbox.
    Start {
        /// Sandbox; the only one there is when absent.
        name: Option<String>,
    },
    /// Run a command; its exit code becomes this command's.
    Exec(ExecArgs),
    /// An interactive shell.
    Connect {
        /// Sandbox; the only one there is when absent.
        name: Option<String>,
        /// Print how to open the sandbox in this editor over SSH.
        #[arg(long)]
        editor: Option<String>,
    },
    /// Copy a file or folder into a sandbox.
    Upload {
        /// Sandbox.
        name: String,
        /// Local file or folder.
        local_path: PathBuf,
        /// Folder in the sandbox; the home folder when absent.
        dest: Option<String>,
        /// Copy files that .gitignore names, too.
        #[arg(long)]
        no_git_ignore: bool,
    },
    /// Copy a file or folder out of a sandbox.
    Download {
        /// Sandbox.
        name: String,
        /// File or folder in the sandbox.
        sandbox_path: String,
        /// Local folder; the current one when absent.
        dest: Option<PathBuf>,
    },
    /// Print a Host block for ~/.ssh/config.
    SshConfig {
        /// Sandbox; the only one there is when absent.
        name: Option<String>,
    },
}

/// How to make a sandbox.
#[derive(Args, Clone, Debug, Default)]
pub struct CreateArgs {
    /// Name; made up when absent.
    #[arg(long)]
    pub name: Option<String>,
    /// Image, for drivers that run images.
    #[arg(long)]
    pub from: Option<String>,
    /// Remove the sandbox when the command ends.
    #[arg(long)]
    pub no_keep: bool,
    /// Label, `key=value`; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub labels: Vec<(String, String)>,
    /// Variable of the sandbox's environment; may be repeated.
    #[arg(long = "env", value_name = "KEY=VALUE", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Forward this port while the command runs.
    #[arg(long, value_name = "PORT")]
    pub forward: Option<u16>,
    /// Copy this file or folder in first.
    #[arg(long, value_name = "PATH")]
    pub upload: Option<PathBuf>,
    /// With --upload: copy files that .gitignore names, too.
    #[arg(long)]
    pub no_git_ignore: bool,
    /// Give the command a terminal.
    #[arg(long, conflicts_with = "no_tty")]
    pub tty: bool,
    /// Give the command no terminal.
    #[arg(long)]
    pub no_tty: bool,
    /// Return when the sandbox is ready, without a shell.
    #[arg(long)]
    pub detach: bool,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Command to run once the sandbox is ready; a shell when this is a terminal.
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// What to list.
#[derive(Args, Clone, Debug, Default)]
pub struct ListArgs {
    /// At most this many.
    #[arg(long)]
    pub limit: Option<usize>,
    /// Pass over this many first.
    #[arg(long, default_value_t = 0)]
    pub offset: usize,
    /// Only ids, a line each.
    #[arg(long)]
    pub ids: bool,
    /// Only names, a line each.
    #[arg(long, conflicts_with = "ids")]
    pub names: bool,
    /// Labels to match, such as `team=red,tier!=test`.
    #[arg(long)]
    pub selector: Option<String>,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Of every workspace.
    #[arg(long)]
    pub all_workspaces: bool,
}

/// What to run.
#[derive(Args, Clone, Debug, Default)]
pub struct ExecArgs {
    /// Sandbox; the only one there is when absent.
    #[arg(short, long)]
    pub name: Option<String>,
    /// Folder to run in.
    #[arg(long)]
    pub workdir: Option<String>,
    /// End the command after this many seconds, with exit code 124.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Give the command a terminal.
    #[arg(long, conflicts_with = "no_tty")]
    pub tty: bool,
    /// Give the command no terminal.
    #[arg(long)]
    pub no_tty: bool,
    /// Variable of the command's environment; may be repeated.
    #[arg(long = "env", value_name = "KEY=VALUE", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Ports carried into a sandbox.
#[derive(Subcommand, Clone, Debug)]
pub enum ForwardCommand {
    /// Carry a local port to the same port in a sandbox.
    Start {
        /// Port, or `local:remote`.
        port: String,
        /// Sandbox; the only one there is when absent.
        name: Option<String>,
        /// Go on in the background.
        #[arg(short = 'd', long)]
        background: bool,
    },
    /// End a background forward.
    Stop {
        /// Local port.
        port: u16,
        /// Sandbox; any when absent.
        name: Option<String>,
    },
    /// Background forwards.
    List,
    /// Carry a local address to one target in a sandbox.
    Service {
        /// Sandbox; the only one there is when absent.
        name: Option<String>,
        /// Port in the sandbox.
        #[arg(long)]
        target_port: u16,
        /// Loopback host in the sandbox.
        #[arg(long, default_value = "127.0.0.1")]
        target_host: String,
        /// Local `address:port`; 127.0.0.1 and a free port when absent.
        #[arg(long)]
        local: Option<String>,
    },
}

/// Which log lines.
#[derive(Args, Clone, Debug)]
pub struct LogsArgs {
    /// Sandbox; the only one there is when absent.
    pub name: Option<String>,
    /// Go on as new lines come.
    #[arg(long)]
    pub tail: bool,
    /// Only lines of the last such span, as `90s`, `5m`, `2h`.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub since: Option<std::time::Duration>,
    /// `gateway`, `sandbox` or `all`; may be repeated.
    #[arg(long)]
    pub source: Vec<String>,
    /// Lowest level: error, warn, info, debug, trace.
    #[arg(long, default_value = "")]
    pub level: String,
    /// At most this many lines of the past.
    #[arg(short = 'n', long, default_value_t = 200)]
    pub lines: u32,
}

/// Which sandbox, by which credentials.
#[derive(Args, Clone, Debug)]
pub struct SshProxyArgs {
    /// Sandbox by id; with --token and --server.
    #[arg(long)]
    pub sandbox_id: Option<String>,
    /// Token of an SSH session.
    #[arg(long, env = "OPENSHELL_SSH_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Gateway URL.
    #[arg(long)]
    pub server: Option<String>,
    /// Registered gateway.
    #[arg(long)]
    pub gateway_name: Option<String>,
    /// Sandbox by name.
    #[arg(long)]
    pub name: Option<String>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}
