//! A TCP proxy with one layer of the connection plane in front of its clients, or of the relay plane in front of
//! its upstream.
//!
//! ```console
//! $ cargo run --example tcp_proxy --features full -- --layer session_wait --upstream 127.0.0.1:9000
//! listening on 127.0.0.1:43211
//! ```
//!
//! Without `--upstream` it brings its own, which sends every byte back. With `--layer tls` it makes a certificate
//! for `localhost` and prints it.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use postern_layers::{
    connection_cap::{self, ConnectionCapLayer, PeerAddr},
    handshake_deadline::{self, Handshake, HandshakeDeadlineLayer, HoldHandshake},
    relay_caps::{self, HoldPermit, Permit, RelayCapsLayer},
    relay_metrics::{ObserveRelay, RelayEnd, RelayMetricsLayer},
    session_wait::{self, SessionWaitLayer},
    tls::{Secure, TlsLayer},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{rustls::ServerConfig, server::TlsStream};
use tower::{
    Layer, Service, ServiceExt, layer::util::Identity, service_fn, util::BoxCloneSyncService,
};

/// A client's connection.
struct Socket<Io> {
    io: Io,
    peer: SocketAddr,
    handshake: Handshake,
}

impl<Io> PeerAddr for Socket<Io> {
    fn peer_addr(&self) -> Option<IpAddr> {
        Some(self.peer.ip())
    }
}

impl<Io> HoldHandshake for Socket<Io> {
    fn hold_handshake(&mut self, handshake: Handshake) {
        self.handshake = handshake;
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Secure for Socket<Io> {
    type Io = Io;
    type Rest = (SocketAddr, Handshake);
    type Secured = Socket<TlsStream<Io>>;

    fn split(self) -> (Io, Self::Rest) {
        (self.io, (self.peer, self.handshake))
    }

    fn join(io: TlsStream<Io>, (peer, handshake): Self::Rest) -> Self::Secured {
        Socket { io, peer, handshake }
    }
}

/// A connection to the upstream: what the relay plane opens.
struct Upstream {
    io: TcpStream,
    /// Its place under the caps, given back when it is dropped.
    permit: Option<Permit>,
}

impl HoldPermit for Upstream {
    fn hold(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }
}

type Opener = BoxCloneSyncService<SocketAddr, Upstream, io::Error>;

/// Prints how the opening of each upstream connection ended.
struct Print;

impl<R, T, E: std::fmt::Display> ObserveRelay<R, T, E> for Print {
    type Opening = ();

    fn started(&self, _: &R) {}

    fn ended(&self, (): (), end: RelayEnd<'_, T, E>, after: Duration) {
        match end {
            RelayEnd::Opened(_) => println!("opened after {after:?}"),
            RelayEnd::Failed(error) => println!("failed after {after:?}: {error}"),
            _ => println!("given up after {after:?}"),
        }
    }
}

/// Dials the upstream behind the layer called `name`, if that is one of the relay plane.
fn opener(name: &str) -> Opener {
    let dial = service_fn(|address: SocketAddr| async move {
        Ok::<_, io::Error>(Upstream { io: TcpStream::connect(address).await?, permit: None })
    });
    match name {
        "relay_caps" => {
            let config =
                relay_caps::Config { live: 8, live_per_key: 4, ..relay_caps::Config::default() };
            Opener::new(RelayCapsLayer::new(&config, |to: &SocketAddr| Some(*to), ()).layer(dial))
        }
        "relay_metrics" => Opener::new(RelayMetricsLayer::new(Print).layer(dial)),
        "session_wait" => {
            // An upstream that is not there yet is waited for.
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
            let config = session_wait::Config::default();
            Opener::new(
                SessionWaitLayer::new(config, refused, Duration::from_secs(10), (), ()).layer(dial),
            )
        }
        _ => Opener::new(dial),
    }
}

/// Joins a client with its upstream.
#[derive(Clone)]
struct Proxy {
    upstream: SocketAddr,
    opener: Opener,
}

impl<Io> Service<Socket<Io>> for Proxy
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Response = ();
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut client: Socket<Io>) -> Self::Future {
        let Self { upstream, opener } = self.clone();
        Box::pin(async move {
            // The first bytes are the first sign of use; nothing is dialled before.
            let mut first = [0; 1024];
            let length = client.io.read(&mut first).await?;
            client.handshake.done();
            let mut upstream = opener.oneshot(upstream).await?;
            upstream.io.write_all(&first[..length]).await?;
            copy_bidirectional(&mut client.io, &mut upstream.io).await?;
            Ok(())
        })
    }
}

async fn serve<L>(listener: TcpListener, proxy: Proxy, layer: L) -> io::Result<()>
where
    L: Layer<Proxy>,
    L::Service: Service<Socket<TcpStream>, Response = (), Error = io::Error, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let service = layer.layer(proxy);
    loop {
        let (io, peer) = listener.accept().await?;
        let service = service.clone();
        tokio::spawn(async move {
            if let Err(error) =
                service.oneshot(Socket { io, peer, handshake: Handshake::default() }).await
            {
                eprintln!("the connection of {peer} ended: {error}");
            }
        });
    }
}

/// A configuration with a fresh certificate for `localhost`, which is printed.
fn tls() -> Result<Arc<ServerConfig>, Box<dyn std::error::Error>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    println!("{}", made.cert.pem());
    let key = made.signing_key.serialize_der().try_into()?;
    let config = ServerConfig::builder().with_no_client_auth();
    Ok(Arc::new(config.with_single_cert(vec![made.cert.der().clone()], key)?))
}

/// An upstream that sends every byte back.
async fn echo_upstream() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    Ok(address)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().collect();
    let value = |name: &str| args.iter().skip_while(|arg| *arg != name).nth(1);
    let name = value("--layer").ok_or("say which layer: --layer connection_cap")?.as_str();
    let upstream = match value("--upstream") {
        Some(address) => address.parse()?,
        None => echo_upstream().await?,
    };
    let proxy = Proxy { upstream, opener: opener(name) };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    match name {
        "connection_cap" => {
            let config = connection_cap::Config { total: 8, per_peer: 4 };
            serve(listener, proxy, ConnectionCapLayer::new(&config)).await?;
        }
        "handshake_deadline" => {
            let config = handshake_deadline::Config { total: Duration::from_secs(2) };
            serve(listener, proxy, HandshakeDeadlineLayer::new(&config)).await?;
        }
        "tls" => serve(listener, proxy, TlsLayer::new(tls()?)).await?,
        "relay_caps" | "relay_metrics" | "session_wait" => {
            serve(listener, proxy, Identity::new()).await?
        }
        _ => {
            return Err(
                format!("no layer of the connection or relay plane is called {name}").into()
            );
        }
    }
    Ok(())
}
