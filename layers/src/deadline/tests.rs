use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::BodyExt;
use tower::{ServiceExt, service_fn};

use super::*;

/// A body that yields `first` and then nothing more, for ever; by default it is at its end.
#[derive(Default)]
struct Stuck(Option<&'static str>, bool);

impl Body for Stuck {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(text) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(text.as_bytes()))))),
            None if self.1 => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none() && !self.1
    }
}

const TOTAL: Duration = Duration::from_secs(30);

fn request(headers: &[(&'static str, &'static str)]) -> Request<()> {
    let mut request = Request::new(());
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// Answers after `head` with a body that gets stuck.
async fn ask(request: Request<()>, head: Duration) -> Response<DeadlineBody<Stuck>> {
    let inner = service_fn(move |_: Request<()>| async move {
        tokio::time::sleep(head).await;
        Ok::<_, Infallible>(Response::new(Stuck(Some("four"), true)))
    });
    let layer = DeadlineLayer::new(&Config::default())
        .exempt(|head: &http::request::Parts| head.uri.path() == "/watch");
    layer.layer(inner).oneshot(request).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_late_is_answered_for() {
    let start = Instant::now();
    let response = ask(request(&[]), TOTAL * 2).await;
    assert_eq!(response.status(), 504);
    assert!(response.extensions().get::<Refusal>().unwrap().reason().contains("30s"));
    assert!(start.elapsed() < TOTAL + Duration::from_millis(5));
    let grpc = ask(request(&[("content-type", "application/grpc")]), TOTAL * 2).await;
    assert_eq!(
        (grpc.status().as_u16(), grpc.headers()["grpc-status"].to_str().unwrap()),
        (200, "4")
    );
    assert!(grpc.body().is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn a_grpc_body_that_is_late_ends_with_trailers() {
    let start = Instant::now();
    let response =
        ask(request(&[("content-type", "application/grpc")]), Duration::from_secs(10)).await;
    assert_eq!(response.status(), 200);
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "4");
    assert_eq!(collected.to_bytes(), "four");
    assert!(
        (TOTAL..TOTAL + Duration::from_millis(5)).contains(&start.elapsed()),
        "head and body share the time"
    );
}

#[tokio::test(start_paused = true)]
async fn an_http_body_that_is_late_is_cut_off() {
    let error = ask(request(&[]), Duration::ZERO).await.into_body().collect().await.err().unwrap();
    assert_eq!(error.downcast_ref::<DeadlineExceeded>(), Some(&DeadlineExceeded { total: TOTAL }));
}

#[tokio::test(start_paused = true)]
async fn the_caller_may_shorten_the_time_and_not_lengthen_it() {
    for (timeout, wanted) in
        [("1S", Duration::from_secs(1)), ("2H", TOTAL), ("nonsense", TOTAL), ("999999999m", TOTAL)]
    {
        let start = Instant::now();
        let headers = [("content-type", "application/grpc"), ("grpc-timeout", timeout)];
        assert_eq!(ask(request(&headers), TOTAL * 2).await.headers()["grpc-status"], "4");
        let range = wanted..wanted + Duration::from_millis(5);
        assert!(range.contains(&start.elapsed()), "{timeout}: {:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_exempt_call_has_only_the_callers_limit() {
    let mut watch = request(&[]);
    *watch.uri_mut() = "/watch".parse().unwrap();
    assert_eq!(ask(watch, TOTAL * 2).await.status(), 200);
    let mut bounded = request(&[("grpc-timeout", "1S")]);
    *bounded.uri_mut() = "/watch".parse().unwrap();
    assert_eq!(ask(bounded, TOTAL * 2).await.status(), 504);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_ready_with_the_timer_wins() {
    let inner = service_fn(|_: Request<()>| async {
        tokio::time::sleep(TOTAL).await;
        Ok::<_, Infallible>(Response::new(Stuck::default()))
    });
    let call = DeadlineLayer::new(&Config::default()).layer(inner).oneshot(request(&[]));
    tokio::pin!(call);
    // The first poll starts both timers; then both are made to fire before the second.
    assert!(futures_util::poll!(call.as_mut()).is_pending());
    tokio::time::advance(TOTAL * 2).await;
    let Poll::Ready(Ok(response)) = futures_util::poll!(call) else { panic!("both are ready") };
    assert_eq!(response.status(), 200);
}

#[test]
fn timeouts_of_grpc_are_read() {
    let read = |text: &'static str| callers_timeout(request(&[("grpc-timeout", text)]).headers());
    assert_eq!(read("5M"), Some(Duration::from_secs(300)));
    assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    assert_eq!(read("250u"), Some(Duration::from_micros(250)));
    for faulty in ["", "5", "S", "-5S", "5s", "123456789S", "5\u{e9}"] {
        assert_eq!(read(faulty).filter(|_| faulty != "S"), None, "{faulty:?}");
    }
    assert_eq!(read("S"), None);
}
