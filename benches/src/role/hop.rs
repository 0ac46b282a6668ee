//! Bare hops: the limit that relays are compared with. They copy bytes between two sockets and do nothing else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use postern_layers::units::parse_size;
use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{listen, until_stdin_ends};
use crate::access::{certificates, client_tls, private_key};
use crate::error::BenchError;

/// A hop.
#[derive(Args, Debug)]
pub struct HopArgs {
    /// Where connections go.
    #[arg(long)]
    pub to: SocketAddr,
    /// Bytes copied at once.
    #[arg(long, default_value = "256KiB", value_parser = buffer)]
    pub buffer: usize,
    /// Take TLS, with server.crt and server.key of this folder.
    #[arg(long, value_name = "DIR")]
    pub tls_in: Option<PathBuf>,
    /// Speak TLS, with ca.crt, tls.crt and tls.key of this folder.
    #[arg(long, value_name = "DIR")]
    pub tls_out: Option<PathBuf>,
}

fn buffer(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    usize::try_from(bytes).map_err(|error| error.to_string())
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

#[derive(Clone)]
struct Hop {
    to: SocketAddr,
    buffer: usize,
    tls_in: Option<TlsAcceptor>,
    tls_out: Option<TlsConnector>,
}

pub(super) async fn run(arguments: HopArgs) -> Result<(), BenchError> {
    let hop = Hop {
        to: arguments.to,
        buffer: arguments.buffer,
        tls_in: arguments.tls_in.as_deref().map(acceptor).transpose()?,
        tls_out: arguments.tls_out.as_deref().map(client_tls).transpose()?.map(Into::into),
    };
    let listener = listen(([127, 0, 0, 1], 0).into()).await?;
    until_stdin_ends(hop.serve(listener)).await
}

fn acceptor(folder: &Path) -> Result<TlsAcceptor, BenchError> {
    let chain = certificates(&folder.join("server.crt"))?;
    let path = folder.join("server.key");
    let key = private_key(&path)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| BenchError::Credential { path, why: error.to_string() })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Hop {
    async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        loop {
            let (socket, _) = listener.accept().await?;
            let hop = self.clone();
            // A connection that fails is its peers' to notice.
            tokio::spawn(async move { hop.carry(socket).await });
        }
    }

    async fn carry(self, socket: TcpStream) -> std::io::Result<()> {
        socket.set_nodelay(true)?;
        let next = TcpStream::connect(self.to).await?;
        next.set_nodelay(true)?;
        let mut near: Box<dyn Stream> = match self.tls_in {
            Some(tls) => Box::new(tls.accept(socket).await?),
            None => Box::new(socket),
        };
        let mut far: Box<dyn Stream> = match self.tls_out {
            Some(tls) => {
                let name = ServerName::IpAddress(self.to.ip().into());
                Box::new(tls.connect(name, next).await?)
            }
            None => Box::new(next),
        };
        copy_bidirectional_with_sizes(&mut near, &mut far, self.buffer, self.buffer).await?;
        Ok(())
    }
}
