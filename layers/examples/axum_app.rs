//! An axum application with one layer of this crate in front.
//!
//! ```console
//! $ cargo run --example axum_app --features full -- --layer rate_limit
//! listening on 127.0.0.1:43211
//! $ curl -i http://127.0.0.1:43211/hello
//! ```

use std::{
    future::{Ready, ready},
    time::Duration,
};

use axum::{Extension, Router, body::Body, extract::Request, routing::get};
use http::request::Parts;
use postern_layers::{
    authenticate::{Authenticate, AuthenticateLayer, Outcome},
    authorize::{AuthorizeLayer, Denied},
    body_limit::{self, BodyLimitLayer},
    concurrency_cap::{self, ConcurrencyCapLayer},
    deadline::{self, DeadlineLayer},
    metrics::{End, MetricsLayer, Observe, ObserveCall},
    ocsf::{
        ApiAudit, OcsfLayer, Record, Recorder, Source,
        object::{Device, DeviceKind, Product, Service},
    },
    rate_limit::{self, Quota, RateLimitLayer},
    request_id::{self, RequestId, RequestIdLayer, SeededRequestIds},
};

/// Who is calling; `/hello` says it if `authenticate` is in front.
#[derive(Clone)]
struct User(String);

/// Takes `authorization: Bearer <name>` for the name. A real one checks a signature.
struct BearerName;

impl Authenticate<User> for BearerName {
    type Future = Ready<Outcome<User>>;

    fn authenticate(&self, head: &Parts) -> Self::Future {
        let value =
            head.headers.get("authorization").map(|value| value.to_str().unwrap_or_default());
        ready(match value.map(|value| value.strip_prefix("Bearer ")) {
            None => Outcome::NotMine,
            Some(Some(name)) if !name.is_empty() => Outcome::Principal(User(name.to_owned())),
            Some(_) => Outcome::Rejected("not a bearer token".into()),
        })
    }
}

/// Prints how each call ended.
struct Print;

struct Line(String);

impl Observe for Print {
    type Call = Line;

    fn started(&self, head: &Parts) -> Line {
        Line(format!("{} {}", head.method, head.uri))
    }
}

impl ObserveCall for Line {
    fn ended(self, end: End) {
        println!(
            "{}: {:?} {:?} after {:?}, {} bytes",
            self.0, end.how, end.status, end.total, end.response_bytes
        );
    }
}

/// The client, for limits that are kept per client. A real one asks for the peer address.
fn by_agent(request: &Request) -> Option<String> {
    Some(request.headers().get("user-agent")?.to_str().ok()?.to_owned())
}

/// `router` with the layer called `name` in front of every route.
fn layered(router: Router, name: &str) -> Option<Router> {
    let total = Duration::from_secs(2);
    let quota = Quota { calls: 1, per: Duration::from_secs(1), burst: 3 };
    Some(match name {
        "authenticate" => router.layer(
            AuthenticateLayer::<_, User>::new(BearerName)
                .exempt(|head: &Parts| head.uri.path() == "/health"),
        ),
        "authorize" => router.layer(AuthorizeLayer::new(|request: &Request| {
            let open = request.uri().path() != "/secret";
            ready(if open { Ok(()) } else { Err(Denied::new("/secret is nobody's")) })
        })),
        "body_limit" => router.layer(BodyLimitLayer::new(&body_limit::Config { max: 1024 })),
        "concurrency_cap" => router.layer(ConcurrencyCapLayer::new(
            &concurrency_cap::Config { total: 8, per_key: 2 },
            by_agent,
        )),
        "deadline" => router.layer(DeadlineLayer::new(&deadline::Config { total })),
        "metrics" => router.layer(MetricsLayer::new(Print)),
        "ocsf" => {
            router.layer(OcsfLayer::new(ApiAudit::new((), Service::new("axum_app")), recorder()))
        }
        "rate_limit" => {
            let config =
                rate_limit::Config { per_key: Some(quota), ..rate_limit::Config::default() };
            router.layer(RateLimitLayer::new(&config, by_agent))
        }
        "request_id" => router.layer(RequestIdLayer::new(
            &request_id::Config::default(),
            SeededRequestIds::new(seed()),
        )),
        _ => return None,
    })
}

/// Prints each event in its one-line form.
fn recorder() -> Recorder {
    let source =
        Source::new(Product::new("axum_app"), Device::new(DeviceKind::Server, "localhost"));
    let print = |record: &Record<'_>| {
        let mut line = String::new();
        record.write_short(&mut line);
        println!("{line}");
        Ok(())
    };
    let (recorder, _writer) =
        Recorder::builder(source).sink(print).start().expect("the system has a thread to give");
    recorder
}

/// The one draw of chance at start-up, out of what std seeds its maps with.
fn seed() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)
}

async fn hello(user: Option<Extension<User>>, id: Option<Extension<RequestId>>) -> String {
    let name = user.map_or_else(|| "stranger".to_owned(), |Extension(User(name))| name);
    let call = id.map_or_else(String::new, |Extension(id)| format!(" (call {id})"));
    format!("hello, {name}{call}\n")
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_secs(60)).await;
    "at last\n"
}

async fn length(body: Body) -> Result<String, http::StatusCode> {
    let bytes =
        axum::body::to_bytes(body, usize::MAX).await.map_err(|_| http::StatusCode::BAD_REQUEST)?;
    Ok(format!("{} bytes\n", bytes.len()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip_while(|arg| arg != "--layer").skip(1);
    let name = args.next().ok_or("say which layer: --layer rate_limit")?;
    let router = Router::new()
        .route("/hello", get(hello))
        .route("/slow", get(slow))
        .route("/length", axum::routing::post(length))
        .route("/secret", get(|| async { "never seen behind authorize\n" }))
        .route("/health", get(|| async { "well\n" }));
    let router = layered(router, &name)
        .ok_or_else(|| format!("no layer of the call plane is called {name}"))?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (socket, _) = listener.accept().await?;
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let executor = hyper_util::rt::TokioExecutor::new();
            let builder = hyper_util::server::conn::auto::Builder::new(executor);
            if let Err(error) =
                builder.serve_connection(hyper_util::rt::TokioIo::new(socket), service).await
            {
                eprintln!("a connection ended: {error}");
            }
        });
    }
}
