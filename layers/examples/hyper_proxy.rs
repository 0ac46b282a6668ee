//! A reverse proxy on plain hyper with one layer of this crate in front.
//!
//! ```console
//! $ cargo run --example hyper_proxy --features full -- --layer deadline --upstream 127.0.0.1:9000
//! listening on 127.0.0.1:43211
//! ```
//!
//! Without `--upstream` it brings its own, which says hello.

use std::{
    convert::Infallible,
    future::{Future, ready},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, request::Parts};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::body::{Body, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use postern_layers::{
    authenticate::{AuthenticateLayer, Outcome, from_fn},
    authorize::{AuthorizeLayer, Denied},
    body_limit::{self, BodyLimitLayer},
    concurrency_cap::{self, ConcurrencyCapLayer},
    deadline::{self, DeadlineLayer},
    h2_window,
    metrics::MetricsLayer,
    rate_limit::{self, RateLimitLayer},
    request_id::{self, RequestIdLayer, SeededRequestIds},
};
use tokio::net::TcpListener;
use tower::{Layer, Service, layer::util::Identity};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type BoxBody = UnsyncBoxBody<Bytes, BoxError>;

/// Sends every request to the upstream and the response back; both bodies stream.
#[derive(Clone)]
struct Proxy {
    upstream: SocketAddr,
    client: Client<HttpConnector, BoxBody>,
}

impl<B> Service<Request<B>> for Proxy
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<BoxBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { upstream, client } = self.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
            head.version = http::Version::HTTP_11;
            let response = match format!("http://{upstream}{path}").parse::<Uri>() {
                Ok(uri) => {
                    head.uri = uri;
                    let body = body.map_err(Into::into).boxed_unsync();
                    client.request(Request::from_parts(head, body)).await.ok()
                }
                Err(_) => None,
            };
            Ok(match response {
                Some(response) => response.map(|body| body.map_err(Into::into).boxed_unsync()),
                None => {
                    let mut response = Response::new(BoxBody::default());
                    *response.status_mut() = StatusCode::BAD_GATEWAY;
                    response
                }
            })
        })
    }
}

/// Serves `proxy` behind `layer` for ever.
async fn serve<L, B>(listener: TcpListener, proxy: Proxy, layer: L) -> Result<(), BoxError>
where
    L: Layer<Proxy>,
    L::Service:
        Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>,
    L::Service: Clone + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let service = layer.layer(proxy);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().timer(TokioTimer::new());
    h2_window::Config::default().apply_to_auto(&mut builder);
    loop {
        let (socket, _) = listener.accept().await?;
        let connection = builder
            .serve_connection(TokioIo::new(socket), TowerToHyperService::new(service.clone()));
        let connection = connection.into_owned();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("a connection ended: {error}");
            }
        });
    }
}

async fn serve_behind(name: &str, listener: TcpListener, proxy: Proxy) -> Result<(), BoxError> {
    let by_host = |request: &Request<Incoming>| {
        Some(request.headers().get("host")?.to_str().ok()?.to_owned())
    };
    let token = |head: &Parts| {
        let found = head.headers.get("authorization").map(|value| value == "Bearer letmein");
        ready(match found {
            None => Outcome::NotMine,
            Some(true) => Outcome::Principal("ann"),
            Some(false) => Outcome::Rejected("an unknown token".into()),
        })
    };
    let readers_only = |request: &Request<Incoming>| {
        let reads = request.method().is_safe();
        ready(if reads { Ok(()) } else { Err(Denied::new("this proxy only reads")) })
    };
    match name {
        "authenticate" => {
            serve(listener, proxy, AuthenticateLayer::<_, &'static str>::new(from_fn(token))).await
        }
        "authorize" => serve(listener, proxy, AuthorizeLayer::new(readers_only)).await,
        "body_limit" => {
            serve(listener, proxy, BodyLimitLayer::new(&body_limit::Config::default())).await
        }
        "concurrency_cap" => {
            serve(
                listener,
                proxy,
                ConcurrencyCapLayer::new(&concurrency_cap::Config::default(), by_host),
            )
            .await
        }
        "deadline" => {
            let config = deadline::Config { total: Duration::from_secs(5) };
            serve(listener, proxy, DeadlineLayer::new(&config)).await
        }
        // The windows are set for every connection, see `serve`; nothing stands in front.
        "h2_window" => serve(listener, proxy, Identity::new()).await,
        "metrics" => serve(listener, proxy, MetricsLayer::new(())).await,
        "rate_limit" => {
            serve(listener, proxy, RateLimitLayer::new(&rate_limit::Config::default(), by_host))
                .await
        }
        "request_id" => {
            let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
            let layer =
                RequestIdLayer::new(&request_id::Config::default(), SeededRequestIds::new(seed));
            serve(listener, proxy, layer).await
        }
        _ => Err(format!("no layer of the call plane is called {name}").into()),
    }
}

/// An upstream that says hello.
async fn hello_upstream() -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = axum::Router::new().fallback(|| async { "hello from upstream\n" });
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    Ok(address)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let args: Vec<_> = std::env::args().collect();
    let value = |name: &str| args.iter().skip_while(|arg| *arg != name).nth(1);
    let layer = value("--layer").ok_or("say which layer: --layer deadline")?;
    let upstream = match value("--upstream") {
        Some(address) => address.parse()?,
        None => hello_upstream().await?,
    };
    let client = Client::builder(TokioExecutor::new()).build_http();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    serve_behind(layer, listener, Proxy { upstream, client }).await
}
