//! One suite over every layer that is a service. `h2_window` describes a connection and calls nothing, so it has
//! no contract of this kind; its own tests and `reuse.rs` cover it.

use std::{
    future::{Ready, ready},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body_util::Full;
use postern_layers::{
    authenticate::{AuthenticateLayer, Outcome, from_fn},
    authorize::{AuthorizeLayer, Denied},
    body_limit::{self, BodyLimitLayer},
    concurrency_cap::{self, ConcurrencyCapLayer},
    connection_cap::{self, ConnectionCapLayer},
    deadline::{self, DeadlineLayer},
    handshake_deadline::{self, Handshake, HandshakeDeadlineLayer, HoldHandshake},
    metrics::{End, MetricsLayer, Observe, ObserveCall},
    ocsf::{
        self, Audit, AuditRelay, OcsfLayer, OcsfRelayLayer, Recorder, RelayOutcome, Writer,
        object::{Device, DeviceKind, Product},
    },
    rate_limit::{self, RateLimitLayer},
    relay_caps::{self, HoldPermit, Permit, RelayCapsLayer},
    relay_metrics::{ObserveRelay, RelayEnd, RelayMetricsLayer},
    request_id::{self, RequestIdLayer, SeededRequestIds},
    session_wait::{self, SessionWaitLayer},
    testing::{ProbeError, contract},
    tls::TlsLayer,
};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{DuplexStream, duplex};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

fn request() -> Request<Full<Bytes>> {
    Request::new(Full::from("in"))
}

fn answer() -> Response<Full<Bytes>> {
    Response::new(Full::from("out"))
}

fn nothing() -> u32 {
    0
}

#[tokio::test]
async fn request_id() {
    let layer = RequestIdLayer::new(&request_id::Config::default(), SeededRequestIds::new(1));
    contract(layer, request, answer, nothing).await;
}

#[tokio::test]
async fn authenticate_at_once() {
    let judge = |_: &Parts| ready(Outcome::Principal(7u32));
    contract(AuthenticateLayer::<_, u32>::new(from_fn(judge)), request, answer, nothing).await;
}

#[tokio::test]
async fn authenticate_with_a_wait() {
    let judge = |_: &Parts| async {
        tokio::task::yield_now().await;
        Outcome::Principal(7u32)
    };
    contract(AuthenticateLayer::<_, u32>::new(from_fn(judge)), request, answer, nothing).await;
}

#[tokio::test]
async fn authenticate_exempt() {
    let judge = |_: &Parts| ready(Outcome::<u32>::Rejected("never asked".into()));
    let layer = AuthenticateLayer::<_, u32>::new(from_fn(judge)).exempt(|_: &Parts| true);
    contract(layer, request, answer, nothing).await;
}

#[tokio::test]
async fn authorize_at_once() {
    let decide = |_: &Request<Full<Bytes>>| -> Ready<Result<(), Denied>> { ready(Ok(())) };
    contract(AuthorizeLayer::new(decide), request, answer, nothing).await;
}

#[tokio::test]
async fn authorize_with_a_wait() {
    let decide = |_: &Request<Full<Bytes>>| async {
        tokio::task::yield_now().await;
        Ok(())
    };
    contract(AuthorizeLayer::new(decide), request, answer, nothing).await;
}

#[tokio::test]
async fn rate_limit() {
    let key = |_: &Request<Full<Bytes>>| Some(1u8);
    contract(RateLimitLayer::new(&rate_limit::Config::default(), key), request, answer, nothing)
        .await;
}

#[tokio::test]
async fn deadline() {
    contract(DeadlineLayer::new(&deadline::Config::default()), request, answer, nothing).await;
}

#[tokio::test]
async fn concurrency_cap() {
    let key = |_: &Request<Full<Bytes>>| Some(1u8);
    let layer = ConcurrencyCapLayer::new(&concurrency_cap::Config { total: 2, per_key: 2 }, key);
    let handle = layer.handle();
    contract(layer, request, answer, move || handle.counts().0).await;
}

#[tokio::test]
async fn body_limit() {
    contract(BodyLimitLayer::new(&body_limit::Config::default()), request, answer, nothing).await;
}

/// Counts what has started and not ended.
#[derive(Clone, Default)]
struct InFlight(Arc<AtomicU32>);

impl Observe for InFlight {
    type Call = Self;

    fn started(&self, _: &Parts) -> Self {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.clone()
    }
}

impl ObserveCall for InFlight {
    fn ended(self, _: End) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<R, T, E> ObserveRelay<R, T, E> for InFlight {
    type Opening = ();

    fn started(&self, _: &R) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn ended(&self, (): (), _: RelayEnd<'_, T, E>, _: Duration) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn metrics() {
    let in_flight = InFlight::default();
    let held = in_flight.0.clone();
    contract(MetricsLayer::new(in_flight), request, answer, move || held.load(Ordering::SeqCst))
        .await;
}

impl Audit for InFlight {
    type Call = ();

    fn start(&self, _: &mut Parts) -> Option<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Some(())
    }

    fn ended(&self, (): (), _: ocsf::Outcome, _: i64) -> Option<ocsf::Draft> {
        self.0.fetch_sub(1, Ordering::SeqCst);
        None
    }
}

impl<R, T, E> AuditRelay<R, T, E> for InFlight {
    type Opening = ();

    fn start(&self, _: &R) -> Option<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Some(())
    }

    fn ended(&self, (): (), _: RelayOutcome<'_, T, E>, _: Duration, _: i64) -> Option<ocsf::Event> {
        self.0.fetch_sub(1, Ordering::SeqCst);
        None
    }
}

/// A recorder whose events go nowhere.
fn recorder() -> (Recorder, Writer) {
    let source = ocsf::Source::new(Product::new("test"), Device::new(DeviceKind::Server, "here"));
    Recorder::builder(source).sink(|_: &ocsf::Record<'_>| Ok(())).start().expect("a thread")
}

#[tokio::test]
async fn ocsf_on_the_call_plane() {
    let (in_flight, (recorder, _writer)) = (InFlight::default(), recorder());
    let held = in_flight.0.clone();
    contract(OcsfLayer::new(in_flight, recorder), request, answer, move || {
        held.load(Ordering::SeqCst)
    })
    .await;
}

#[tokio::test]
async fn ocsf_on_the_relay_plane() {
    let (in_flight, (recorder, _writer)) = (InFlight::default(), recorder());
    let held = in_flight.0.clone();
    let layer = OcsfRelayLayer::new(in_flight, recorder);
    contract(layer, || 7u8, Relay::default, move || held.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn relay_metrics() {
    let in_flight = InFlight::default();
    let held = in_flight.0.clone();
    contract(
        RelayMetricsLayer::new(in_flight),
        || 7u8,
        Relay::default,
        move || held.load(Ordering::SeqCst),
    )
    .await;
}

#[derive(Default)]
struct Relay {
    permit: Option<Permit>,
}

impl HoldPermit for Relay {
    fn hold(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }
}

#[tokio::test]
async fn relay_caps() {
    let config = relay_caps::Config {
        pending: 2,
        pending_per_key: 2,
        live: 2,
        ..relay_caps::Config::default()
    };
    let layer = RelayCapsLayer::new(&config, |key: &u8| Some(*key), |_: &u8| Some("ssh"));
    let handle = layer.handle();
    let held = move || handle.counts().pending + handle.counts().live;
    contract(layer, || 7u8, Relay::default, held).await;
}

#[tokio::test]
async fn session_wait() {
    // Nothing of what the suite scripts is worth a wait; waits are tested in the layer's own tests.
    let retry = |error: &ProbeError| *error != ProbeError::Scripted;
    let layer = SessionWaitLayer::new(
        session_wait::Config::default(),
        retry,
        Duration::from_secs(1),
        (),
        (),
    );
    contract(layer, || 7u8, || (), nothing).await;
}

#[tokio::test]
async fn connection_cap() {
    let layer = ConnectionCapLayer::new(&connection_cap::Config { total: 2, per_peer: 2 });
    let handle = layer.handle();
    contract(layer, || SocketAddr::from(([10, 0, 0, 1], 1)), || (), move || handle.counts().0)
        .await;
}

struct Socket;

impl HoldHandshake for Socket {
    fn hold_handshake(&mut self, handshake: Handshake) {
        handshake.done();
    }
}

#[tokio::test]
async fn handshake_deadline() {
    let layer = HandshakeDeadlineLayer::new(&handshake_deadline::Config::default());
    contract(layer, || Socket, || (), nothing).await;
}

#[tokio::test]
async fn tls() {
    let made =
        rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).expect("a certificate");
    let cert = made.cert.der().clone();
    let key = made.signing_key.serialize_der().try_into().expect("a key");
    let config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert.clone()], key);
    let mut roots = RootCertStore::empty();
    roots.add(cert).expect("a root");
    let client =
        Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    // Each request is a connection whose far end makes its handshake in a task of its own.
    let connect = move || -> (DuplexStream, SocketAddr) {
        let (near, far) = duplex(16_384);
        let name = "gateway.test".try_into().expect("a name");
        let handshake = tokio_rustls::TlsConnector::from(Arc::clone(&client)).connect(name, near);
        tokio::spawn(async move {
            // Kept open: a peer that hangs up at once is a transport error at the other end.
            let stream = handshake.await;
            std::future::pending::<()>().await;
            drop(stream);
        });
        (far, SocketAddr::from(([10, 0, 0, 1], 1)))
    };
    contract(TlsLayer::new(Arc::new(config.expect("a configuration"))), connect, || (), nothing)
        .await;
}
