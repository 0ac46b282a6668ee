use std::convert::Infallible;
use std::io;
use std::sync::mpsc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use serde_json::Value as Json;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::ocsf::object::{
    Actor, Device, DeviceKind, Product, Resource, Service as ApiService, User,
};
use crate::ocsf::{ApiAudit, AuditNote, Describe, Record, Source, Writer};
use crate::refuse::{self, Protocol};

struct Rig {
    recorder: Recorder,
    writer: Writer,
    lines: mpsc::Receiver<Json>,
}

impl Rig {
    fn new() -> Self {
        let (out, lines) = mpsc::channel();
        let source = Source::new(Product::default(), Device::new(DeviceKind::Server, "gateway"));
        let (recorder, writer) = Recorder::builder(source)
            .clock(|| 1_700_000_000_000)
            .sink(move |record: &Record<'_>| {
                let mut line = Vec::new();
                record.write_json(&mut line);
                out.send(serde_json::from_slice(&line)?).map_err(io::Error::other)
            })
            .start()
            .unwrap();
        Self { recorder, writer, lines }
    }

    fn layer<D: Describe>(&self, describe: D) -> OcsfLayer<ApiAudit<D>> {
        OcsfLayer::new(ApiAudit::new(describe, ApiService::new("gateway")), self.recorder.clone())
    }

    /// Every event, in order.
    fn finish(self) -> Vec<Json> {
        drop(self.writer.shutdown(Duration::from_secs(20)).unwrap());
        self.lines.try_iter().collect()
    }
}

fn grpc(path: &str) -> Request<()> {
    Request::builder()
        .method("POST")
        .uri(path)
        .header("content-type", "application/grpc")
        .header("x-request-id", "req-1")
        .body(())
        .unwrap()
}

fn trailers(status: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers
}

type Frames = Vec<Result<Frame<Bytes>, &'static str>>;

fn streaming(
    frames: Frames,
) -> Response<StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, &'static str>>>> {
    Response::new(StreamBody::new(futures_util::stream::iter(frames)))
}

#[tokio::test]
async fn a_call_is_told_with_the_status_of_its_trailers() {
    let rig = Rig::new();
    let service = rig.layer(()).layer(service_fn(|_: Request<()>| async {
        let data = Frame::data(Bytes::from_static(b"12345"));
        Ok::<_, Infallible>(streaming(vec![Ok(data), Ok(Frame::trailers(trailers("5")))]))
    }));
    let response = service.oneshot(grpc("/pkg.Sandboxes/GetSandbox")).await.unwrap();
    drop(response.into_body().collect().await.unwrap());
    let events = rig.finish();
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!(event["type_uid"], 600_302);
    assert_eq!(event["api"]["operation"], "GetSandbox");
    assert_eq!(event["api"]["service"]["name"], "pkg.Sandboxes");
    assert_eq!(event["api"]["response"]["code"], 5);
    assert_eq!(event["status_code"], "NOT_FOUND");
    assert_eq!(event["status"], "Failure");
    assert_eq!(event["http_response"]["body_length"], 5);
    assert_eq!(event["metadata"]["correlation_uid"], "req-1");
    assert_eq!(event["time"], 1_700_000_000_000u64);
}

#[tokio::test]
async fn a_body_that_is_empty_from_the_start_is_complete() {
    let rig = Rig::new();
    let service = rig.layer(()).layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    }));
    drop(service.oneshot(Request::get("/healthz").body(()).unwrap()).await.unwrap());
    let events = rig.finish();
    assert_eq!(
        (&events[0]["status"], &events[0]["api"]["operation"]),
        (&"Success".into(), &"GET /healthz".into())
    );
}

#[tokio::test]
async fn a_body_dropped_early_is_a_cancelled_call() {
    let rig = Rig::new();
    let service = rig.layer(()).layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"never read"))))
    }));
    drop(service.oneshot(grpc("/pkg.Sandboxes/WatchSandbox")).await.unwrap());
    let events = rig.finish();
    assert_eq!(events[0]["status_code"], "CANCELLED");
    assert_eq!(events[0].get("status_id"), None);
}

#[tokio::test]
async fn a_future_dropped_early_is_a_cancelled_call() {
    let rig = Rig::new();
    let service = rig.layer(()).layer(service_fn(|_: Request<()>| {
        std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>()
    }));
    let mut call = tokio_test_poll(service.oneshot(grpc("/pkg.Sandboxes/DeleteSandbox")));
    assert!(call.poll_once().await.is_none());
    drop(call);
    let events = rig.finish();
    assert_eq!((events.len(), &events[0]["status_code"]), (1, &"CANCELLED".into()));
}

/// A future that can be polled once and then dropped.
struct Once<F>(Pin<Box<F>>);

fn tokio_test_poll<F: Future>(future: F) -> Once<F> {
    Once(Box::pin(future))
}

impl<F: Future> Once<F> {
    async fn poll_once(&mut self) -> Option<F::Output> {
        std::future::poll_fn(|cx| {
            Poll::Ready(match self.0.as_mut().poll(cx) {
                Poll::Ready(output) => Some(output),
                Poll::Pending => None,
            })
        })
        .await
    }
}

#[tokio::test]
async fn an_inner_error_is_told_and_passed_on() {
    let rig = Rig::new();
    let service = rig
        .layer(())
        .layer(service_fn(|_: Request<()>| async { Err::<Response<Empty<Bytes>>, _>("inner") }));
    assert_eq!(service.oneshot(grpc("/pkg.Sandboxes/CreateSandbox")).await.map(drop), Err("inner"));
    let events = rig.finish();
    assert_eq!(
        (&events[0]["status"], &events[0]["status_code"]),
        (&"Failure".into(), &"UNAVAILABLE".into())
    );
}

#[tokio::test]
async fn a_body_that_breaks_off_is_told() {
    let rig = Rig::new();
    let service = rig.layer(()).layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(streaming(vec![Err("cut")]))
    }));
    let response = service.oneshot(grpc("/pkg.Sandboxes/ListSandboxes")).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(rig.finish()[0]["status_detail"], "the response broke off");
}

#[tokio::test]
async fn a_refused_authentication_is_a_failed_logon() {
    let rig = Rig::new();
    let service = rig.layer(()).layer(service_fn(|_: Request<()>| async {
        let refusal = Refusal::new("authenticate", Code::Unauthenticated, "not authenticated")
            .with_detail("token expired");
        Ok::<_, Infallible>(refuse::response::<Empty<Bytes>>(
            Protocol::Grpc,
            http::Version::HTTP_2,
            refusal,
        ))
    }));
    drop(service.oneshot(grpc("/pkg.Sandboxes/GetSandbox")).await.unwrap());
    let event = &rig.finish()[0];
    assert_eq!(event["type_uid"], 300_201);
    assert_eq!((&event["status"], &event["disposition"]), (&"Failure".into(), &"Blocked".into()));
    assert_eq!(event["status_detail"], "token expired", "the log may know why");
    assert_eq!(event["unmapped"]["operation"], "/pkg.Sandboxes/GetSandbox");
}

#[tokio::test]
async fn another_refusal_is_a_denied_call_of_a_known_actor() {
    let rig = Rig::new();
    let service = rig.layer(()).layer(service_fn(|request: Request<()>| async move {
        // What an authenticator and a handler further in would do.
        let note = request.extensions().get::<AuditNote>().unwrap();
        note.set_actor(Actor::user(User::named("alice")));
        note.add_resource(Resource::new("sb-1").kind("sandbox"));
        let refusal = Refusal::new("authorize", Code::PermissionDenied, "not allowed");
        Ok::<_, Infallible>(refuse::response::<Empty<Bytes>>(
            Protocol::Grpc,
            http::Version::HTTP_2,
            refusal,
        ))
    }));
    drop(service.oneshot(grpc("/pkg.Sandboxes/DeleteSandbox")).await.unwrap());
    let event = &rig.finish()[0];
    assert_eq!((&event["type_uid"], &event["severity"]), (&600_304.into(), &"Medium".into()));
    assert_eq!(
        (&event["action"], &event["unmapped"]["refused_by"]),
        (&"Denied".into(), &"authorize".into())
    );
    assert_eq!(event["actor"]["user"]["name"], "alice");
    assert_eq!(event["resources"][0]["uid"], "sb-1");
}

#[derive(Clone)]
struct Streams;

impl Describe for Streams {
    fn is_audited(&self, head: &request::Parts) -> bool {
        !head.uri.path().ends_with("Heartbeat")
    }

    fn is_stream(&self, _head: &request::Parts) -> bool {
        true
    }
}

#[tokio::test]
async fn a_stream_is_told_when_it_opens_and_when_it_ends() {
    let rig = Rig::new();
    let service = rig.layer(Streams).layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(streaming(vec![Ok(Frame::trailers(trailers("0")))]))
    }));
    let response = service.clone().oneshot(grpc("/pkg.Sandboxes/WatchSandbox")).await.unwrap();
    drop(response.into_body().collect().await.unwrap());
    let left_out = service.oneshot(grpc("/pkg.Sandboxes/Heartbeat")).await.unwrap();
    drop(left_out.into_body().collect().await.unwrap());
    let events = rig.finish();
    assert_eq!(events.len(), 2);
    assert_eq!(
        (&events[0]["message"], &events[1]["status_code"]),
        (&"stream opened".into(), &"OK".into())
    );
}

#[tokio::test]
async fn a_disabled_recorder_costs_no_note() {
    let layer = OcsfLayer::new(ApiAudit::new((), ApiService::new("gateway")), Recorder::disabled());
    let service = layer.layer(service_fn(|request: Request<()>| async move {
        assert!(request.extensions().get::<AuditNote>().is_none());
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    }));
    drop(service.oneshot(grpc("/pkg.Sandboxes/GetSandbox")).await.unwrap());
}
