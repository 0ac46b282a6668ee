//! A tonic server with one layer of this crate in front.
//!
//! ```console
//! $ cargo run --example tonic_server --features full -- --layer authenticate
//! listening on 127.0.0.1:43211
//! $ grpcurl -plaintext -H 'authorization: Bearer letmein' ... 127.0.0.1:43211 example.Echo/Say
//! ```
//!
//! The service answers any call with the message it got, so it needs no generated code.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response, request::Parts};
use http_body_util::{BodyExt, Full};
use postern_layers::{
    authenticate::{AuthenticateLayer, Outcome, from_fn},
    authorize::{AuthorizeLayer, Denied},
    body_limit::{self, BodyLimitLayer},
    concurrency_cap::{self, ConcurrencyCapLayer},
    deadline::{self, DeadlineLayer},
    metrics::MetricsLayer,
    rate_limit::{self, RateLimitLayer},
    request_id::{self, RequestIdLayer, SeededRequestIds},
};
use tokio::net::TcpListener;
use tonic::{body::Body, server::NamedService, transport::Server};
use tower::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "example.Echo";
}

impl Service<Request<Body>> for Echo {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move {
            let Ok(message) = request.into_body().collect().await else {
                return Ok(
                    tonic::Status::resource_exhausted("the message cannot be read").into_http()
                );
            };
            let done = HeaderMap::from_iter([(
                "grpc-status".parse().expect("a name"),
                HeaderValue::from(0),
            )]);
            let body = Full::new(message.to_bytes()).with_trailers(ready(Some(Ok(done))));
            let mut response = Response::new(Body::new(body));
            let kind = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
            Ok(response)
        })
    }
}

/// The service and the method, for limits that are kept per method.
fn by_method(request: &Request<Body>) -> Option<String> {
    Some(request.uri().path().to_owned())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = std::env::args().skip_while(|arg| arg != "--layer").skip(1);
    let name = args.next().ok_or("say which layer: --layer authenticate")?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);

    // Each arm is what one would write in a program that always has this layer.
    macro_rules! serve_behind {
        ($layer:expr) => {
            Server::builder().layer($layer).add_service(Echo).serve_with_incoming(incoming).await?
        };
    }
    match name.as_str() {
        "authenticate" => {
            let token = |head: &Parts| {
                let found =
                    head.headers.get("authorization").map(|value| value == "Bearer letmein");
                ready(match found {
                    None => Outcome::NotMine,
                    Some(true) => Outcome::Principal("ann"),
                    Some(false) => Outcome::Rejected("an unknown token".into()),
                })
            };
            serve_behind!(AuthenticateLayer::<_, &'static str>::new(from_fn(token)));
        }
        "authorize" => {
            let only_say = |request: &Request<Body>| {
                let open = request.uri().path().ends_with("/Say");
                ready(if open { Ok(()) } else { Err(Denied::new("only Say may be called")) })
            };
            serve_behind!(AuthorizeLayer::new(only_say));
        }
        "body_limit" => serve_behind!(BodyLimitLayer::new(&body_limit::Config { max: 1024 })),
        "concurrency_cap" => {
            serve_behind!(ConcurrencyCapLayer::new(&concurrency_cap::Config::default(), by_method));
        }
        "deadline" => {
            let config = deadline::Config { total: Duration::from_secs(5) };
            serve_behind!(DeadlineLayer::new(&config));
        }
        "metrics" => serve_behind!(MetricsLayer::new(())),
        "rate_limit" => {
            serve_behind!(RateLimitLayer::new(&rate_limit::Config::default(), by_method))
        }
        "request_id" => {
            let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
            serve_behind!(RequestIdLayer::new(
                &request_id::Config::default(),
                SeededRequestIds::new(seed)
            ));
        }
        _ => return Err(format!("no layer of the call plane is called {name}").into()),
    }
    Ok(())
}
