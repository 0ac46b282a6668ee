use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use http::HeaderMap;

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct User(String);

/// Judges `header: <kind> <name>`; the name `bad` is rejected, `away` is unavailable.
#[derive(Clone)]
struct Kind(&'static str, Arc<AtomicU32>);

impl Kind {
    fn new(kind: &'static str) -> Self {
        Self(kind, Arc::default())
    }
}

impl Authenticate<User> for Kind {
    type Future = Ready<Outcome<User>>;

    fn authenticate(&self, head: &Parts) -> Self::Future {
        self.1.fetch_add(1, Ordering::Relaxed);
        let value = head.headers.get(self.0).and_then(|value| value.to_str().ok());
        ready(match value {
            None => Outcome::NotMine,
            Some("bad") => Outcome::Rejected("the signature is wrong".into()),
            Some("away") => Outcome::Unavailable("the database is gone".into()),
            Some(name) => Outcome::Principal(User(format!("{}:{name}", self.0))),
        })
    }
}

/// Answers with the principal it sees, in a header.
#[derive(Clone, Debug)]
struct Inner;

impl Service<Request<()>> for Inner {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let mut response = Response::new(());
        if let Some(User(name)) = request.extensions().get() {
            response.headers_mut().insert("user", name.parse().unwrap());
        }
        ready(Ok(response))
    }
}

fn request(headers: &[(&'static str, &'static str)]) -> Request<()> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, HeaderValue::from_static(value));
    }
    let mut request = Request::new(());
    *request.headers_mut() = map;
    request
}

async fn ask<A: Authenticate<User>>(
    authenticator: A,
    headers: &[(&'static str, &'static str)],
) -> Response<()> {
    let layer: AuthenticateLayer<A, User> = AuthenticateLayer::new(authenticator);
    layer.layer(Inner).call(request(headers)).await.unwrap()
}

#[tokio::test]
async fn the_first_that_knows_the_credential_decides() {
    let chain = || Kind::new("token").or(Kind::new("cert"));
    assert_eq!(
        ask(chain(), &[("token", "ann"), ("cert", "bob")]).await.headers()["user"],
        "token:ann"
    );
    assert_eq!(ask(chain(), &[("cert", "bob")]).await.headers()["user"], "cert:bob");
}

#[tokio::test]
async fn a_bad_credential_never_falls_back() {
    let response =
        ask(Kind::new("token").or(Kind::new("cert")), &[("token", "bad"), ("cert", "bob")]).await;
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    let refusal = response.extensions().get::<Refusal>().unwrap();
    assert_eq!(
        (refusal.reason(), refusal.detail()),
        ("unauthenticated", Some("the signature is wrong"))
    );
    assert!(!format!("{:?}", response.headers()).contains("signature"));
}

#[tokio::test]
async fn grpc_callers_get_trailers_and_the_same_text_for_every_cause() {
    let mut messages = Vec::new();
    for headers in [
        &[("content-type", "application/grpc")][..],
        &[("content-type", "application/grpc"), ("token", "bad")],
    ] {
        let response = ask(Kind::new("token"), headers).await;
        assert_eq!(response.headers()["grpc-status"], "16");
        messages.push(response.headers()["grpc-message"].clone());
    }
    assert_eq!(messages[0], messages[1]);
}

#[tokio::test]
async fn a_judge_that_is_away_is_not_a_bad_credential() {
    let response = ask(Kind::new("token"), &[("token", "away")]).await;
    assert_eq!(response.status(), 503);
}

#[tokio::test]
async fn anonymous_and_exempt_are_asked() {
    let layer = AuthenticateLayer::<_, User>::new(Kind::new("token"))
        .anonymous(|_: &Parts| Some(User("nobody".into())))
        .exempt(|head: &Parts| head.uri.path() == "/health");
    let mut service = layer.layer(Inner);
    assert_eq!(service.call(request(&[])).await.unwrap().headers()["user"], "nobody");
    assert_eq!(service.call(request(&[("token", "bad")])).await.unwrap().status(), 401);
    let mut exempt = request(&[("token", "bad")]);
    *exempt.uri_mut() = "/health".parse().unwrap();
    let response = service.call(exempt).await.unwrap();
    assert!(response.status() == 200 && !response.headers().contains_key("user"));
}

type Seen = std::sync::Mutex<Vec<(bool, String)>>;

#[derive(Clone, Default)]
struct Audit(Arc<Seen>);

impl OnAuthenticate<User> for Audit {
    fn accepted(&self, _: &Parts, principal: &User) {
        self.0.lock().unwrap().push((true, principal.0.clone()));
    }

    fn refused(&self, _: &Parts, refusal: &Refusal) {
        self.0.lock().unwrap().push((false, refusal.detail().unwrap_or_default().to_owned()));
    }
}

#[tokio::test]
async fn the_observer_sees_both_decisions() {
    let audit = Audit::default();
    let layer = AuthenticateLayer::<_, User>::new(Kind::new("token")).observe(audit.clone());
    let mut service = layer.layer(Inner);
    service.call(request(&[("token", "ann")])).await.unwrap();
    service.call(request(&[])).await.unwrap();
    let seen = audit.0.lock().unwrap().clone();
    assert_eq!(seen, [(true, "token:ann".to_owned()), (false, "no credential".to_owned())]);
}

fn cached(config: Config, kind: &Kind) -> Cached<Kind, User, impl CredentialOf + Clone + use<>> {
    Cached::by(config, kind.clone(), |head: &Parts| {
        Some(head.headers.get("token")?.as_bytes().to_vec())
    })
}

async fn judge<A: Authenticate<User>>(authenticator: &A, token: &'static str) -> Outcome<User> {
    let (head, ()) = request(&[("token", token)]).into_parts();
    authenticator.authenticate(&head).await
}

#[tokio::test(start_paused = true)]
async fn a_good_judgement_is_remembered_for_its_time() {
    let kind = Kind::new("token");
    let cached = cached(Config::default(), &kind);
    for _ in 0..3 {
        assert_eq!(judge(&cached, "ann").await, Outcome::Principal(User("token:ann".into())));
    }
    assert_eq!(kind.1.load(Ordering::Relaxed), 1);
    tokio::time::advance(Duration::from_secs(6)).await;
    judge(&cached, "ann").await;
    assert_eq!(kind.1.load(Ordering::Relaxed), 2, "it is asked again when the time is over");
}

#[tokio::test(start_paused = true)]
async fn a_bad_judgement_is_not_remembered() {
    let kind = Kind::new("token");
    let cached = cached(Config::default(), &kind);
    judge(&cached, "bad").await;
    judge(&cached, "bad").await;
    assert_eq!((kind.1.load(Ordering::Relaxed), cached.handle().len()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_bounded_and_can_be_told_to_forget() {
    let kind = Kind::new("token");
    let cached = cached(Config { entries: 2, ..Config::default() }, &kind);
    let handle = cached.handle();
    for token in ["ann", "bob", "cat", "dan"] {
        judge(&cached, token).await;
        assert!(handle.len() <= 2);
    }
    handle.invalidate(b"dan");
    assert_eq!(handle.len(), 1);
    handle.invalidate_where(|_| true);
    assert!(handle.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_judgement_begun_before_an_invalidation_is_not_kept() {
    let kind = Kind::new("token");
    let cached = cached(Config::default(), &kind);
    let (head, ()) = request(&[("token", "ann")]).into_parts();
    let under_way = cached.authenticate(&head);
    cached.handle().invalidate(b"ann");
    assert_eq!(under_way.await, Outcome::Principal(User("token:ann".into())));
    assert!(cached.handle().is_empty());
}
