//! Every layer under plain hyper, under axum and under tonic: real connections, real requests, no gateway.
//!
//! A layer that is not here, or does not fit one of the three, does not get in: `index.rs` compares the names.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::routing::any;
use bytes::Bytes;
use http::{Request, Response, Version, request::Parts};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use postern_layers::{
    authenticate::{Authenticate, AuthenticateLayer, Outcome},
    authorize::{Authorize, AuthorizeLayer, Denied},
    body_limit::{self, BodyLimitLayer},
    concurrency_cap::{self, ConcurrencyCapLayer},
    connection_cap::{self, ConnectionCapLayer, PeerAddr},
    deadline::{self, DeadlineLayer},
    h2_window,
    handshake_deadline::{self, Handshake, HandshakeDeadlineLayer, HoldHandshake},
    metrics::MetricsLayer,
    ocsf::{
        self, ApiAudit, OcsfLayer, Recorder,
        object::{Device, DeviceKind, Product},
    },
    rate_limit::{self, RateLimitLayer},
    refuse::Refusal,
    relay_caps::{self, HoldPermit, Permit, RelayCapsLayer},
    relay_metrics::RelayMetricsLayer,
    request_id::{self, RequestIdLayer, SeededRequestIds},
    select::KeyOf,
    session_wait::{self, SessionWaitLayer},
    tls::{Secure, TlsLayer},
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, duplex};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, ServerConfig},
    server::TlsStream,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const PATH: &str = "/test.Echo/Say";

// === what the layers ask for ===

#[derive(Clone)]
struct ByPath;

impl<B> KeyOf<Request<B>> for ByPath {
    type Key = String;

    fn key(&self, request: &Request<B>) -> Option<String> {
        Some(request.uri().path().to_owned())
    }
}

#[derive(Clone)]
struct Everybody;

impl Authenticate<&'static str> for Everybody {
    type Future = Ready<Outcome<&'static str>>;

    fn authenticate(&self, _: &Parts) -> Self::Future {
        ready(Outcome::Principal("ann"))
    }
}

impl<B> Authorize<Request<B>> for Everybody {
    type Future = Ready<Result<(), Denied>>;

    fn authorize(&self, _: &Request<B>) -> Self::Future {
        ready(Ok(()))
    }
}

/// A recorder whose events go nowhere; its thread ends with the last clone.
fn recorder() -> Recorder {
    let source = ocsf::Source::new(Product::new("test"), Device::new(DeviceKind::Server, "here"));
    Recorder::builder(source).sink(|_: &ocsf::Record<'_>| Ok(())).start().expect("a thread").0
}

// === one request over one connection ===

/// Makes one gRPC-shaped HTTP/2 request and returns the response, its body read to the end.
async fn ask(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Response<Bytes> {
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new());
    h2_window::Config::default().apply_to_client(&mut builder);
    let (mut client, connection) = builder.handshake(TokioIo::new(io)).await.expect("a connection");
    let driver = tokio::spawn(connection);
    let request = Request::post(format!("http://gateway.test{PATH}"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .body(Empty::<Bytes>::new())
        .expect("a request");
    let (head, body) = client.send_request(request).await.expect("a response").into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    drop(client);
    driver.abort();
    Response::from_parts(head, body)
}

fn is_fine(response: &Response<Bytes>, body: &str) {
    let status = response.headers().get("grpc-status");
    assert!(response.status() == 200 && status.is_none_or(|status| status == "0"), "{response:?}");
    assert_eq!(response.body(), body);
}

/// A gRPC service without generated code.
#[derive(Clone)]
struct Echo;

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<Request<tonic::body::Body>> for Echo {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
        ready(Ok(tonic::Status::ok("").into_http()))
    }
}

// === the call plane ===

macro_rules! call_plane {
    ($($name:ident: $layer:expr;)*) => {
        mod under_hyper {
            use super::*;

            $(#[tokio::test]
            async fn $name() {
                let (near, far) = duplex(65_536);
                let answer = service_fn(|_: Request<_>| ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("said")))));
                let service = TowerToHyperService::new(typed($layer.layer(answer)));
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.timer(TokioTimer::new());
                h2_window::Config::default().apply_to_server(&mut builder);
                let server = tokio::spawn(builder.serve_connection(TokioIo::new(far), service));
                is_fine(&ask(near).await, "said");
                server.abort();
            })*

            /// Says that the requests are hyper's.
            fn typed<S: Service<Request<Incoming>>>(service: S) -> S {
                service
            }
        }

        mod under_axum {
            use super::*;

            $(#[tokio::test]
            async fn $name() {
                let (near, far) = duplex(65_536);
                let router = axum::Router::new().route(PATH, any(|| async { "said" })).layer($layer);
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let server = tokio::spawn(builder.serve_connection(TokioIo::new(far), TowerToHyperService::new(router)));
                is_fine(&ask(near).await, "said");
                server.abort();
            })*
        }

        mod under_tonic {
            use super::*;

            $(#[tokio::test]
            async fn $name() {
                let (near, far) = duplex(65_536);
                let incoming = tokio_stream::once(Ok::<_, io::Error>(far));
                let server = tonic::transport::Server::builder().layer($layer).add_service(Echo);
                let server = tokio::spawn(server.serve_with_incoming(incoming));
                is_fine(&ask(near).await, "");
                server.abort();
            })*
        }
    };
}

call_plane! {
    authenticate: AuthenticateLayer::<_, &'static str>::new(Everybody);
    authorize: AuthorizeLayer::new(Everybody);
    body_limit: BodyLimitLayer::new(&body_limit::Config::default());
    concurrency_cap: ConcurrencyCapLayer::new(&concurrency_cap::Config::default(), ByPath);
    deadline: DeadlineLayer::new(&deadline::Config::default());
    metrics: MetricsLayer::new(());
    ocsf: OcsfLayer::new(ApiAudit::new((), ocsf::object::Service::new("test")), recorder());
    rate_limit: RateLimitLayer::new(&rate_limit::Config::default(), ByPath);
    request_id: RequestIdLayer::new(&request_id::Config::default(), SeededRequestIds::new(1));
}

// === the relay plane, behind a handler of each framework ===

#[derive(Clone, Copy)]
struct Target(u16);

#[derive(Default)]
struct Relay {
    permit: Option<Permit>,
}

impl HoldPermit for Relay {
    fn hold(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }
}

/// An opener with all layers of the relay plane in front, whose first attempt finds no session.
fn opener()
-> impl Service<Target, Response = Relay, Error = Refusal, Future: Send> + Clone + Send + Sync + 'static
{
    let attempts = Arc::new(std::sync::atomic::AtomicU32::new(0));
    ServiceBuilder::new()
        .layer(RelayMetricsLayer::new(()))
        .layer(RelayCapsLayer::new(
            &relay_caps::Config::default(),
            |target: &Target| Some(target.0),
            (),
        ))
        .layer(SessionWaitLayer::new(
            session_wait::Config::default(),
            |_: &Refusal| true,
            Duration::from_secs(5),
            (),
            (),
        ))
        .service(service_fn(move |_: Target| {
            let first = attempts.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            let no_session =
                Refusal::new("opener", postern_layers::refuse::Code::Unavailable, "no session");
            ready(if first { Err(no_session) } else { Ok(Relay::default()) })
        }))
}

async fn relayed() -> &'static str {
    let relay = opener().oneshot(Target(22)).await.expect("the second attempt finds a session");
    assert!(relay.permit.is_some());
    "relayed"
}

#[tokio::test(start_paused = true)]
async fn relay_plane_under_hyper() {
    let (near, far) = duplex(65_536);
    let handler = |_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(relayed().await)))
    };
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let server = tokio::spawn(
        builder.serve_connection(TokioIo::new(far), hyper::service::service_fn(handler)),
    );
    is_fine(&ask(near).await, "relayed");
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn relay_plane_under_axum() {
    let (near, far) = duplex(65_536);
    let router = axum::Router::new().route(PATH, any(relayed));
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let server =
        tokio::spawn(builder.serve_connection(TokioIo::new(far), TowerToHyperService::new(router)));
    is_fine(&ask(near).await, "relayed");
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn relay_plane_under_tonic() {
    let (near, far) = duplex(65_536);
    let relay_first = tower::layer::layer_fn(|inner: tonic::service::Routes| {
        service_fn(move |request: Request<tonic::body::Body>| {
            let mut inner = inner.clone();
            async move {
                relayed().await;
                inner.call(request).await
            }
        })
    });
    let server = tonic::transport::Server::builder().layer(relay_first).add_service(Echo);
    let server =
        tokio::spawn(server.serve_with_incoming(tokio_stream::once(Ok::<_, io::Error>(far))));
    is_fine(&ask(near).await, "");
    server.abort();
}

// === the connection plane, in front of each framework ===

struct Socket<Io> {
    io: Io,
    peer: SocketAddr,
    handshake: Handshake,
}

impl<Io> PeerAddr for Socket<Io> {
    fn peer_addr(&self) -> Option<std::net::IpAddr> {
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

/// Serves `router` behind every layer of the connection plane, and asks it something over TLS.
async fn ask_over_tls(router: axum::Router) -> Response<Bytes> {
    let made =
        rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).expect("a certificate");
    let cert = made.cert.der().clone();
    let key = made.signing_key.serialize_der().try_into().expect("a key");
    let config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert.clone()], key);
    let serve = service_fn(move |socket: Socket<TlsStream<DuplexStream>>| {
        let router = router.clone();
        async move {
            // The first request is the first sign of use.
            let handshake = socket.handshake.clone();
            let marked = service_fn(move |request: Request<Incoming>| {
                handshake.done();
                router.clone().oneshot(request)
            });
            let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            builder.http2().timer(TokioTimer::new());
            h2_window::Config::default().apply_to_auto(&mut builder);
            let connection =
                builder.serve_connection(TokioIo::new(socket.io), TowerToHyperService::new(marked));
            connection.into_owned().await.map_err(io::Error::other)
        }
    });
    let plane = ServiceBuilder::new()
        .layer(ConnectionCapLayer::new(&connection_cap::Config::default()))
        .layer(HandshakeDeadlineLayer::new(&handshake_deadline::Config::default()))
        .layer(TlsLayer::new(Arc::new(config.expect("a configuration"))))
        .service(serve);

    let (near, io) = duplex(65_536);
    let peer = SocketAddr::from(([10, 0, 0, 1], 1));
    let served = tokio::spawn(plane.oneshot(Socket { io, peer, handshake: Handshake::default() }));
    let mut roots = RootCertStore::empty();
    roots.add(cert).expect("a root");
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = "gateway.test".try_into().expect("a name");
    let response =
        ask(TlsConnector::from(Arc::new(client)).connect(name, near).await.expect("a handshake"))
            .await;
    served.abort();
    response
}

#[tokio::test]
async fn connection_plane_under_axum() {
    let router = axum::Router::new().route(PATH, any(|| async { "said" }));
    is_fine(&ask_over_tls(router).await, "said");
}

#[tokio::test]
async fn connection_plane_under_tonic() {
    is_fine(&ask_over_tls(tonic::service::Routes::new(Echo).into_axum_router()).await, "");
}

#[tokio::test]
async fn connection_plane_under_hyper() {
    // hyper serves the connection in all three; here nothing but a plain service stands behind it.
    let plain = service_fn(|_: Request<axum::body::Body>| {
        ready(Ok::<_, Infallible>(Response::new("said".to_owned())))
    });
    let router = axum::Router::new().fallback_service(plain);
    is_fine(&ask_over_tls(router).await, "said");
}
