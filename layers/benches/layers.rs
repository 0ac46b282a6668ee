//! What a layer costs per call: bare (the service inside alone), static (the layer around it) and boxed (that as a
//! boxed service with boxed body, as a stack that is put together from a file has it).
//!
//! The difference to *bare* is the layer's cost. Everything is ready at once and on one core: no runtime, no socket.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    hint::black_box,
    net::SocketAddr,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use http::{Request, Response, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use postern_layers::{
    authenticate::{AuthenticateLayer, Outcome, from_fn},
    authorize::AuthorizeLayer,
    body_limit::{self, BodyLimitLayer},
    concurrency_cap::{self, ConcurrencyCapLayer},
    connection_cap::{self, ConnectionCapLayer},
    deadline::{self, DeadlineLayer},
    handshake_deadline::{self, Handshake, HandshakeDeadlineLayer, HoldHandshake},
    metrics::MetricsLayer,
    ocsf::{
        self, ApiAudit, AuditRelay, OcsfLayer, OcsfRelayLayer, Recorder, RelayOutcome,
        object::{Device, DeviceKind, Product},
    },
    rate_limit::{self, Quota, RateLimitLayer},
    refuse::Refusal,
    relay_caps::{self, HoldPermit, Permit, RelayCapsLayer},
    relay_metrics::RelayMetricsLayer,
    request_id::{self, RequestIdLayer, SeededRequestIds},
    session_wait::{self, SessionWaitLayer},
};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

type Call = Request<Full<Bytes>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;
type BoxBody = UnsyncBoxBody<Bytes, BoxError>;

/// Answers at once; generic, because `body_limit` changes the request's body.
#[derive(Clone)]
struct Inner;

impl<B> Service<Request<B>> for Inner {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(Response::new(Full::new(Bytes::from_static(b"out")))))
    }
}

/// Opens at once.
#[derive(Clone)]
struct Opener;

#[derive(Default)]
struct Relay(Option<Permit>);

impl HoldPermit for Relay {
    fn hold(&mut self, permit: Permit) {
        self.0 = Some(permit);
    }
}

impl Service<u64> for Opener {
    type Response = Relay;
    type Error = Refusal;
    type Future = Ready<Result<Relay, Refusal>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: u64) -> Self::Future {
        ready(Ok(Relay::default()))
    }
}

/// Serves at once.
#[derive(Clone)]
struct Server;

struct Socket;

impl HoldHandshake for Socket {
    fn hold_handshake(&mut self, handshake: Handshake) {
        handshake.done();
    }
}

impl<C> Service<C> for Server {
    type Response = ();
    type Error = Refusal;
    type Future = Ready<Result<(), Refusal>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: C) -> Self::Future {
        ready(Ok(()))
    }
}

/// Runs a service that is ready at once.
fn run<S, R>(service: &mut S, request: R) -> S::Response
where
    S: Service<R>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut future = pin!(service.call(request));
    match future.as_mut().poll(&mut cx) {
        Poll::Ready(Ok(response)) => response,
        _ => panic!("the service is ready at once and does not fail"),
    }
}

fn request() -> Call {
    let mut request = Request::new(Full::new(Bytes::from_static(b"in")));
    *request.uri_mut() = http::Uri::from_static("/example.Echo/Say");
    let kind = http::HeaderValue::from_static("application/grpc");
    request.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    request
}

/// One call, its response body read to the end.
fn call<S, B>(service: &mut S)
where
    S: Service<Call, Response = Response<B>>,
    B: Body<Data = Bytes>,
{
    let mut body = pin!(run(service, request()).into_body());
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
        black_box(frame.is_ok());
    }
}

fn both<L, B>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, layer: L)
where
    L: Layer<Inner>,
    L::Service: Service<Call, Response = Response<B>, Error = Infallible, Future: Send>,
    L::Service: Clone + Send + Sync + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut service = layer.layer(Inner);
    group.bench_function(format!("{name}/static"), |bench| bench.iter(|| call(&mut service)));
    let boxed = service
        .map_response(|response| response.map(|body| body.map_err(Into::into).boxed_unsync()));
    let mut boxed: BoxCloneSyncService<Call, Response<BoxBody>, Infallible> =
        BoxCloneSyncService::new(boxed);
    group.bench_function(format!("{name}/boxed"), |bench| bench.iter(|| call(&mut boxed)));
}

fn recorder() -> Recorder {
    let source = ocsf::Source::new(Product::new("bench"), Device::new(DeviceKind::Server, "here"));
    Recorder::builder(source).sink(|_: &ocsf::Record<'_>| Ok(())).start().expect("a thread").0
}

fn call_plane(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("call");
    group.bench_function("bare", |bench| bench.iter(|| call(&mut Inner)));
    let boxed = ServiceExt::<Call>::map_response(Inner, |response: Response<Full<Bytes>>| {
        response.map(|body| body.map_err(|never| match never {}).boxed_unsync())
    });
    let mut boxed: BoxCloneSyncService<Call, Response<BoxBody>, Infallible> =
        BoxCloneSyncService::new(boxed);
    group.bench_function("bare/boxed", |bench| bench.iter(|| call(&mut boxed)));

    let key = |request: &Call| Some(request.uri().path().len());
    let judge = |_: &Parts| ready(Outcome::Principal(7u32));
    both(&mut group, "authenticate", AuthenticateLayer::<_, u32>::new(from_fn(judge)));
    both(&mut group, "authorize", AuthorizeLayer::new(|_: &Call| ready(Ok(()))));
    both(&mut group, "body_limit", BodyLimitLayer::new(&body_limit::Config::default()));
    both(
        &mut group,
        "concurrency_cap",
        ConcurrencyCapLayer::new(&concurrency_cap::Config::default(), key),
    );
    both(&mut group, "deadline", DeadlineLayer::new(&deadline::Config::default()));
    both(&mut group, "metrics", MetricsLayer::new(()));
    let audit = ApiAudit::new((), ocsf::object::Service::new("bench"));
    both(&mut group, "ocsf", OcsfLayer::new(audit, recorder()));
    // As many as the bench may make: what is measured is a call that passes.
    let endless = Quota { calls: u32::MAX, per: Duration::from_secs(1), burst: u32::MAX };
    let config = rate_limit::Config {
        per_key: Some(endless),
        global: Some(endless),
        ..rate_limit::Config::default()
    };
    both(&mut group, "rate_limit", RateLimitLayer::new(&config, key));
    let ids = SeededRequestIds::new(1);
    both(&mut group, "request_id", RequestIdLayer::new(&request_id::Config::default(), ids));
    group.finish();
}

/// Opens, and drops the relay.
fn opening<L>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, layer: L)
where
    L: Layer<Opener>,
    L::Service: Service<u64, Response = Relay, Error = Refusal, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let mut service = layer.layer(Opener);
    group.bench_function(format!("{name}/static"), |bench| {
        bench.iter(|| run(&mut service, black_box(7)).0.is_some())
    });
    let mut boxed = BoxCloneSyncService::new(service);
    group.bench_function(format!("{name}/boxed"), |bench| {
        bench.iter(|| run(&mut boxed, black_box(7)).0.is_some())
    });
}

struct Nothing;

impl<R, T, E> AuditRelay<R, T, E> for Nothing {
    type Opening = ();

    fn start(&self, _: &R) -> Option<()> {
        Some(())
    }

    fn ended(&self, (): (), _: RelayOutcome<'_, T, E>, _: Duration, _: i64) -> Option<ocsf::Event> {
        None
    }
}

fn relay_plane(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay");
    group.bench_function("bare", |bench| bench.iter(|| run(&mut Opener, black_box(7)).0.is_some()));
    let mut boxed = BoxCloneSyncService::new(Opener);
    group.bench_function("bare/boxed", |bench| {
        bench.iter(|| run(&mut boxed, black_box(7)).0.is_some())
    });
    opening(&mut group, "ocsf", OcsfRelayLayer::new(Nothing, recorder()));
    opening(&mut group, "relay_metrics", RelayMetricsLayer::new(()));
    let caps = relay_caps::Config {
        classes: [("ssh".to_owned(), 20)].into(),
        ..relay_caps::Config::default()
    };
    opening(
        &mut group,
        "relay_caps",
        RelayCapsLayer::new(&caps, |key: &u64| Some(*key), |_: &u64| Some("ssh")),
    );
    let wait = session_wait::Config::default();
    let retry = |_: &Refusal| true;
    opening(
        &mut group,
        "session_wait",
        SessionWaitLayer::new(wait, retry, Duration::from_secs(15), (), ()),
    );
    group.finish();
}

/// A stage of a stack that is put together from a file.
type Stage = BoxCloneSyncService<Call, Response<BoxBody>, Infallible>;

fn stage<S, B>(service: S) -> Stage
where
    S: Service<Call, Response = Response<B>, Error = Infallible, Future: Send>,
    S: Clone + Send + Sync + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    BoxCloneSyncService::new(service.map_response(|response: Response<B>| {
        response.map(|body| body.map_err(Into::into).boxed_unsync())
    }))
}

/// Whole planes, every layer boxed: without any layer, and with those that a gateway has by default.
fn whole_planes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plane");
    let mut empty = stage(Inner);
    group.bench_function("call/[]", |bench| bench.iter(|| call(&mut empty)));
    let key = |request: &Call| Some(request.uri().path().len());
    let judge = |_: &Parts| ready(Outcome::Principal(7u32));
    let endless = Quota { calls: u32::MAX, per: Duration::from_secs(1), burst: u32::MAX };
    let rate = rate_limit::Config { per_key: Some(endless), ..rate_limit::Config::default() };
    let audit = ApiAudit::new((), ocsf::object::Service::new("bench"));
    let plane = stage(DeadlineLayer::new(&deadline::Config::default()).layer(Inner));
    let plane = stage(OcsfLayer::new(audit, recorder()).layer(plane));
    let plane = stage(AuthorizeLayer::new(|_: &Call| ready(Ok(()))).layer(plane));
    let plane = stage(AuthenticateLayer::<_, u32>::new(from_fn(judge)).layer(plane));
    let plane = stage(RateLimitLayer::new(&rate, key).layer(plane));
    let plane = stage(MetricsLayer::new(()).layer(plane));
    let ids = SeededRequestIds::new(1);
    let mut all = stage(RequestIdLayer::new(&request_id::Config::default(), ids).layer(plane));
    group.bench_function("call/all 7", |bench| bench.iter(|| call(&mut all)));

    let mut empty: BoxCloneSyncService<u64, Relay, Refusal> = BoxCloneSyncService::new(Opener);
    group.bench_function("relay/[]", |bench| {
        bench.iter(|| run(&mut empty, black_box(7)).0.is_some())
    });
    let caps = relay_caps::Config {
        classes: [("ssh".to_owned(), 20)].into(),
        ..relay_caps::Config::default()
    };
    let caps = RelayCapsLayer::new(&caps, |key: &u64| Some(*key), |_: &u64| Some("ssh"));
    let retry = |_: &Refusal| true;
    let wait = session_wait::Config::default();
    let wait = SessionWaitLayer::new(wait, retry, Duration::from_secs(15), (), ());
    let plane = BoxCloneSyncService::new(wait.layer(Opener));
    let plane = BoxCloneSyncService::new(caps.layer(plane));
    let plane = BoxCloneSyncService::new(RelayMetricsLayer::new(()).layer(plane));
    let mut all = BoxCloneSyncService::new(OcsfRelayLayer::new(Nothing, recorder()).layer(plane));
    group.bench_function("relay/all 4", |bench| {
        bench.iter(|| run(&mut all, black_box(7)).0.is_some())
    });
    group.finish();
}

fn connection_plane(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("connection");
    group.bench_function("bare", |bench| bench.iter(|| run(&mut Server, black_box(Socket))));
    let peer = SocketAddr::from(([10, 0, 0, 1], 1));
    let mut capped = ConnectionCapLayer::new(&connection_cap::Config::default()).layer(Server);
    group.bench_function("connection_cap/static", |bench| {
        bench.iter(|| run(&mut capped, black_box(peer)))
    });
    let mut bounded =
        HandshakeDeadlineLayer::new(&handshake_deadline::Config::default()).layer(Server);
    group.bench_function("handshake_deadline/static", |bench| {
        bench.iter(|| run(&mut bounded, black_box(Socket)))
    });
    group.finish();
}

fn layers(criterion: &mut Criterion) {
    // For the timers of `deadline` and `handshake_deadline`, which are made and never fire.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    call_plane(criterion);
    relay_plane(criterion);
    whole_planes(criterion);
    connection_plane(criterion);
}

criterion_group!(benches, layers);
criterion_main!(benches);
