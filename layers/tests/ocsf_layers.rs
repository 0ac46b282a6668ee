//! The two ocsf layers keep the contract of all layers, and work under hyper, axum and tonic.

#![cfg(all(feature = "ocsf", feature = "testing"))]
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, request};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use postern_layers::ocsf::object::{Device, DeviceKind, Product, Service as ApiService};
use postern_layers::ocsf::{
    ApiAudit, Audit, AuditRelay, Draft, Event, OcsfLayer, OcsfRelayLayer, Outcome, Record,
    Recorder, RelayOutcome, Source, Writer,
};
use postern_layers::refuse::{self, Code, Protocol, Refusal};
use postern_layers::testing::contract;
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tower::{ServiceBuilder, service_fn};
use tower_layer::Layer;

/// Counts what has started and not ended.
#[derive(Clone, Default)]
struct Open(Arc<AtomicU32>);

impl Open {
    fn held(&self) -> impl Fn() -> u32 + use<> {
        let open = self.clone();
        move || open.0.load(Ordering::SeqCst)
    }
}

impl Audit for Open {
    type Call = ();

    fn start(&self, _: &mut request::Parts) -> Option<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Some(())
    }

    fn ended(&self, (): (), _: Outcome, _: i64) -> Option<Draft> {
        self.0.fetch_sub(1, Ordering::SeqCst);
        None
    }
}

impl<R, T, E> AuditRelay<R, T, E> for Open {
    type Opening = ();

    fn start(&self, _: &R) -> Option<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Some(())
    }

    fn ended(&self, (): (), _: RelayOutcome<'_, T, E>, _: Duration, _: i64) -> Option<Event> {
        self.0.fetch_sub(1, Ordering::SeqCst);
        None
    }
}

fn source() -> Source {
    Source::new(Product::default(), Device::new(DeviceKind::Server, "gateway"))
}

/// A recorder whose short lines can be read.
fn recorder() -> (Recorder, Writer, mpsc::Receiver<String>) {
    let (out, lines) = mpsc::channel();
    let (recorder, writer) = Recorder::builder(source())
        .sink(move |record: &Record<'_>| {
            let mut line = String::new();
            record.write_short(&mut line);
            out.send(line).map_err(std::io::Error::other)
        })
        .start()
        .unwrap();
    (recorder, writer, lines)
}

#[tokio::test]
async fn the_call_layer_keeps_the_contract() {
    let (recorder, _writer, _lines) = recorder();
    let open = Open::default();
    let held = open.held();
    let request = || Request::new(Full::<Bytes>::from("in"));
    let answer = || Response::new(Full::<Bytes>::from("out"));
    contract(OcsfLayer::new(open, recorder), request, answer, held).await;
}

#[tokio::test]
async fn the_relay_layer_keeps_the_contract() {
    let (recorder, _writer, _lines) = recorder();
    let open = Open::default();
    let held = open.held();
    contract(OcsfRelayLayer::new(open, recorder), || 7u8, || "relay", held).await;
}

/// Makes one gRPC-shaped HTTP/2 request and reads the answer to its end.
async fn ask(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut client, connection) = builder.handshake(TokioIo::new(io)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = Request::post("http://gateway.test/test.Echo/GetEcho")
        .header("content-type", "application/grpc")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    drop(response.into_body().collect().await.unwrap());
    drop(client);
    driver.abort();
}

fn audit(recorder: &Recorder) -> OcsfLayer<ApiAudit<()>> {
    OcsfLayer::new(ApiAudit::new((), ApiService::new("gateway")), recorder.clone())
}

fn only_line(writer: Writer, lines: &mpsc::Receiver<String>) -> String {
    let counts = writer.shutdown(Duration::from_secs(20)).unwrap();
    assert_eq!(counts.accepted, 1);
    lines.try_recv().unwrap()
}

#[tokio::test]
async fn under_hyper_a_refusal_of_a_layer_further_in_is_told() {
    let (recorder, writer, lines) = recorder();
    let (near, far) = duplex(65_536);
    let refuse = service_fn(|_: Request<hyper::body::Incoming>| async {
        let refusal = Refusal::new("rate_limit", Code::ResourceExhausted, "too many calls");
        Ok::<_, Infallible>(refuse::response::<Empty<Bytes>>(
            Protocol::Grpc,
            http::Version::HTTP_2,
            refusal,
        ))
    });
    let service = TowerToHyperService::new(audit(&recorder).layer(refuse));
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let server = tokio::spawn(builder.serve_connection(TokioIo::new(far), service));
    ask(near).await;
    server.abort();
    assert_eq!(
        only_line(writer, &lines),
        "API:READ [LOW] DENIED FAILURE unknown test.Echo/GetEcho [code:RESOURCE_EXHAUSTED] [refused_by:rate_limit] \
         [reason:too many calls]"
    );
}

#[tokio::test]
async fn under_axum_a_plain_answer_is_told() {
    let (recorder, writer, lines) = recorder();
    let (near, far) = duplex(65_536);
    let answer = axum::routing::any(|| async { "said" });
    let router = axum::Router::new().route("/test.Echo/GetEcho", answer).layer(audit(&recorder));
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let server =
        tokio::spawn(builder.serve_connection(TokioIo::new(far), TowerToHyperService::new(router)));
    ask(near).await;
    server.abort();
    assert_eq!(only_line(writer, &lines), "API:READ [INFO] SUCCESS unknown test.Echo/GetEcho");
}

/// A gRPC service without generated code.
#[derive(Clone)]
struct Echo;

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl tower::Service<Request<tonic::body::Body>> for Echo {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
        std::future::ready(Ok(tonic::Status::not_found("no such echo").into_http()))
    }
}

#[tokio::test]
async fn under_tonic_a_status_is_told() {
    let (recorder, writer, lines) = recorder();
    let (near, far) = duplex(65_536);
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(far));
    let server = tonic::transport::Server::builder().layer(audit(&recorder)).add_service(Echo);
    let server = tokio::spawn(server.serve_with_incoming(incoming));
    ask(near).await;
    server.abort();
    assert_eq!(
        only_line(writer, &lines),
        "API:READ [LOW] FAILURE unknown test.Echo/GetEcho [code:NOT_FOUND]"
    );
}

/// The configured stack of a gateway boxes its layers; these must be `Clone + Send + Sync` for that.
#[test]
fn both_layers_can_be_boxed() {
    let (recorder, _writer, _lines) = recorder();
    let call =
        ServiceBuilder::new().layer(audit(&recorder)).service(service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }));
    drop(tower::util::BoxCloneSyncService::new(call));
    let relay = OcsfRelayLayer::new(Open::default(), recorder)
        .layer(service_fn(|_: u8| async { Ok::<_, Infallible>("relay") }));
    drop(tower::util::BoxCloneSyncService::new(relay));
}
