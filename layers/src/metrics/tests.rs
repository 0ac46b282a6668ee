use std::{collections::VecDeque, future::pending, sync::Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};

use super::*;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<End>>>, Arc<Mutex<u32>>);

impl Observe for Log {
    type Call = Self;

    fn started(&self, _: &Parts) -> Self {
        *self.1.lock().unwrap() += 1;
        self.clone()
    }
}

impl ObserveCall for Log {
    fn ended(self, end: End) {
        self.0.lock().unwrap().push(end);
    }
}

impl Log {
    fn only(&self) -> End {
        let ends = self.0.lock().unwrap();
        assert_eq!((ends.len(), *self.1.lock().unwrap()), (1, 1), "one start, one end");
        ends[0]
    }
}

type Frames = VecDeque<Result<Frame<Bytes>, &'static str>>;

/// Yields the frames and then the end.
struct Script(Frames);

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(self.0.pop_front())
    }
}

fn data(text: &'static str) -> Result<Frame<Bytes>, &'static str> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(code))])
}

async fn ask(
    log: &Log,
    frames: Vec<Result<Frame<Bytes>, &'static str>>,
) -> Response<MeteredBody<Script, Log>> {
    let frames = Arc::new(Mutex::new(Some(frames)));
    let inner = service_fn(move |_: Request<()>| {
        let frames = frames.lock().unwrap().take().expect("one call");
        async { Ok::<_, ()>(Response::new(Script(frames.into()))) }
    });
    MetricsLayer::new(log.clone()).layer(inner).oneshot(Request::new(())).await.unwrap()
}

#[tokio::test]
async fn the_grpc_status_is_read_from_the_trailers() {
    let log = Log::default();
    let response =
        ask(&log, vec![data("four"), data("by"), Ok(Frame::trailers(status("8")))]).await;
    assert!(log.0.lock().unwrap().is_empty(), "the call lasts as long as its body");
    response.into_body().collect().await.unwrap();
    let end = log.only();
    assert_eq!(
        (end.how, end.grpc, end.response_bytes),
        (How::Complete, Some(Code::ResourceExhausted), 6)
    );
    assert_eq!(end.status, Some(StatusCode::OK));
}

#[tokio::test]
async fn the_grpc_status_of_trailers_only_is_in_the_head() {
    let log = Log::default();
    let inner = service_fn(|_: Request<()>| async {
        let mut response = Response::new(http_body_util::Empty::<Bytes>::new());
        *response.headers_mut() = status("16");
        Ok::<_, ()>(response)
    });
    drop(MetricsLayer::new(log.clone()).layer(inner).oneshot(Request::new(())).await.unwrap());
    let end = log.only();
    assert_eq!(
        (end.how, end.grpc),
        (How::Complete, Some(Code::Unauthenticated)),
        "an empty body is complete"
    );
}

#[tokio::test]
async fn a_body_that_fails_or_is_dropped_is_told_apart() {
    let log = Log::default();
    assert!(ask(&log, vec![data("x"), Err("reset")]).await.into_body().collect().await.is_err());
    assert_eq!(log.only().how, How::BodyFailed);

    let log = Log::default();
    let mut body = ask(&log, vec![data("x"), data("y")]).await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert_eq!((log.only().how, log.only().response_bytes), (How::Cancelled, 1));
}

#[tokio::test]
async fn a_failed_and_a_dropped_call_end_too() {
    let log = Log::default();
    let inner = service_fn(|_: Request<()>| async { Err::<Response<Script>, _>("gone") });
    assert_eq!(
        MetricsLayer::new(log.clone()).layer(inner).oneshot(Request::new(())).await.err(),
        Some("gone")
    );
    assert_eq!(log.only().how, How::Failed);

    let log = Log::default();
    let inner = service_fn(|_: Request<()>| pending::<Result<Response<Script>, ()>>());
    drop(MetricsLayer::new(log.clone()).layer(inner).call(Request::new(())));
    assert_eq!((log.only().how, log.only().status), (How::Cancelled, None));
}

#[tokio::test(start_paused = true)]
async fn the_time_is_that_of_the_whole_call() {
    let log = Log::default();
    let response = ask(&log, vec![data("x")]).await;
    tokio::time::advance(Duration::from_secs(3)).await;
    response.into_body().collect().await.unwrap();
    assert_eq!(log.only().total, Duration::from_secs(3));
}
