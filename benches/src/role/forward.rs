//! A user's forward: each connection becomes a relay into a sandbox, as `postern forward` makes it.

use std::net::SocketAddr;

use clap::Args;
use postern_proto::v1;
use postern_proto::v1::tcp_forward_init::Target;
use postern_relay::bridge::{Bridge, first_message};
use postern_relay::transport::FORWARD_TCP_PATH;
use tokio::net::{TcpListener, TcpStream};

use super::{listen, until_stdin_ends};
use crate::access::AccessArgs;
use crate::client::Client;
use crate::error::BenchError;

/// A forward.
#[derive(Args, Debug)]
pub struct ForwardArgs {
    /// The gateway.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Into which sandbox.
    #[arg(long)]
    pub sandbox: String,
    /// To which port there.
    #[arg(long)]
    pub port: u16,
}

pub(super) async fn run(arguments: ForwardArgs) -> Result<(), BenchError> {
    let client = Client::connect(&arguments.access.access()?).await?;
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    until_stdin_ends(serve(client, listener, arguments.sandbox, arguments.port)).await
}

async fn serve(
    client: Client,
    listener: TcpListener,
    sandbox: String,
    port: u16,
) -> std::io::Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (client, sandbox) = (client.clone(), sandbox.clone());
        tokio::spawn(async move {
            if let Err(error) = carry(&client, &sandbox, port, socket).await {
                eprintln!("forward: {}", error.chain());
            }
        });
    }
}

async fn carry(
    client: &Client,
    sandbox: &str,
    port: u16,
    socket: TcpStream,
) -> Result<(), BenchError> {
    let token = client.ssh_token(sandbox).await?;
    let target = v1::TcpRelayTarget { host: "127.0.0.1".into(), port: port.into() };
    let init = v1::TcpForwardFrame {
        payload: Some(v1::tcp_forward_frame::Payload::Init(v1::TcpForwardInit {
            sandbox: sandbox.to_owned(),
            authorization_token: token,
            target: Some(Target::Tcp(target)),
            ..Default::default()
        })),
    };
    let (body, bridge) = Bridge::new(socket, first_message(&init));
    let response = client
        .connection()
        .open_stream(FORWARD_TCP_PATH, body)
        .await
        .map_err(BenchError::refused("open a relay"))?;
    // How it ended is seen by whoever holds the socket; what is left of the stream is reset, not waited for.
    drop(bridge.run(response).await);
    Ok(())
}
