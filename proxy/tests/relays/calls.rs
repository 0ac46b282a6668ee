//! The call plane: every method answers, and only to whom it is for.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use postern::handlers::IMPLEMENTED;
use postern_proto::authorization::{AuthMode, AuthorizationTable};
use postern_proto::v1::{
    CreateSshSessionRequest, GetCurrentUserRequest, GetGatewayInfoRequest, HealthRequest,
    ListSandboxesRequest, RefreshSandboxTokenRequest,
};
use postern_relay::transport::Connection;
use tonic::body::Body;
use tonic::{Code, Status};
use tower_service::Service as _;

use super::gateway::{Gateway, Options, client, soon};

/// Calls a method with an empty message, and reads the status that it ends with.
async fn call(connection: &Connection, path: &str) -> Status {
    let request =
        Request::post(format!("{}{}", connection.origin().to_string().trim_end_matches('/'), path))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Body::new(Full::new(Bytes::from_static(&[0; 5]))))
            .unwrap();
    let response = soon(path, connection.clone().call(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    if let Some(status) = Status::from_header_map(response.headers()) {
        return status;
    }
    let mut body = response.into_body();
    while let Some(frame) = soon(path, body.frame()).await {
        match frame {
            Ok(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return Status::from_header_map(&trailers).expect("trailers with a status");
                }
            }
            Err(status) => return status,
        }
    }
    panic!("{path} ended without a status");
}

#[tokio::test]
async fn every_method_of_the_contract_answers_and_the_missing_ones_name_themselves() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let user = gateway.connect(None).await;
    let sandbox = gateway.connect(Some(&gateway.token(&id))).await;
    let table = AuthorizationTable::load().unwrap();
    let mut counts = BTreeMap::<bool, usize>::new();
    for (path, rule) in table.iter() {
        let connection = if rule.mode == AuthMode::Sandbox { &sandbox } else { &user };
        let status = call(connection, path).await;
        let name = path.rsplit('/').next().unwrap();
        let implemented =
            IMPLEMENTED.contains(&name) && path.starts_with("/openshell.v1.OpenShell/");
        *counts.entry(implemented).or_default() += 1;
        if implemented {
            let fault =
                [Code::Unimplemented, Code::Internal, Code::Unknown].contains(&status.code());
            assert!(!fault, "{path}: {status}");
        } else {
            assert_eq!(status.code(), Code::Unimplemented, "{path}: {status}");
            assert!(status.message().contains(name), "{path}: {status}");
        }
    }
    assert_eq!(counts[&true], IMPLEMENTED.len());
    assert_eq!(counts[&true] + counts[&false], table.iter().count());
    let unknown = call(&user, "/openshell.v1.OpenShell/Teleport").await;
    assert_eq!(unknown.code(), Code::Unimplemented);
    assert_eq!(call(&user, "/grpc.reflection.v1.Reflection/X").await.code(), Code::Unimplemented);
}

#[tokio::test]
async fn nobody_gets_anything_but_health() {
    let gateway = Gateway::with(Options { local_dev: false, ..Options::default() }).await;
    let nobody = gateway.connect(None).await;
    let table = AuthorizationTable::load().unwrap();
    for (path, rule) in table.iter() {
        let status = call(&nobody, path).await;
        if rule.mode == AuthMode::Unauthenticated {
            assert_eq!(status.code(), Code::Ok, "{path}");
        } else {
            assert_eq!(status.code(), Code::Unauthenticated, "{path}");
            assert!(!status.message().contains("token"), "nothing about why: {status}");
        }
    }
    assert!(!gateway.audited("AUTH").await.is_empty(), "refused callers are recorded");
}

#[tokio::test]
async fn a_bad_token_never_falls_back_to_a_weaker_identity() {
    // Everybody is the local developer here, but not who shows a bad token.
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let good = gateway.token(&id);
    let (body, signature) = good.rsplit_once('.').unwrap();
    let flipped: String = signature.chars().rev().collect();
    let other_issuer = Gateway::start().await.token(&id);
    for bad in ["nonsense".to_owned(), format!("{body}.{flipped}"), other_issuer] {
        let mut api = client(gateway.connect(Some(&bad)).await);
        let refused = api.list_sandboxes(ListSandboxesRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let refused =
            api.refresh_sandbox_token(RefreshSandboxTokenRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn users_and_sandboxes_do_not_take_each_others_calls() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let (user, sandbox) =
        (gateway.connect(None).await, gateway.connect(Some(&gateway.token(&id))).await);
    let table = AuthorizationTable::load().unwrap();
    for (path, rule) in table.iter() {
        let (connection, kind) = match rule.mode {
            AuthMode::Bearer | AuthMode::Operator | AuthMode::Peer => (&sandbox, "a sandbox"),
            AuthMode::Sandbox => (&user, "a user"),
            _ => continue,
        };
        let status = call(connection, path).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{kind} called {path}: {status}");
    }
}

#[tokio::test]
async fn the_gateway_and_the_caller_are_told_about() {
    let gateway = Gateway::start().await;
    let mut api = gateway.user().await;
    let health = api.health(HealthRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.status, 1);
    let info = api.get_gateway_info(GetGatewayInfoRequest::default()).await.unwrap().into_inner();
    assert_eq!(info.gateway_version, env!("CARGO_PKG_VERSION"));
    let me = api.get_current_user(GetCurrentUserRequest::default()).await.unwrap().into_inner();
    assert_eq!(me.subject, "unauthenticated-local-dev");
    gateway.sandbox("one").await;
    let request = CreateSshSessionRequest { sandbox: "one".to_owned(), ..Default::default() };
    let session = api.create_ssh_session(request).await.unwrap().into_inner();
    assert_eq!(session.gateway_host, "127.0.0.1");
    assert_eq!(session.gateway_port, u32::from(gateway.address.port()));
    assert_eq!(session.gateway_scheme, "http");
    assert!(session.expiration_time.is_some());
}

#[tokio::test]
async fn a_fresh_token_is_as_good_as_the_old_one() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut api = gateway.supervisor(&id).await;
    let fresh = api
        .refresh_sandbox_token(RefreshSandboxTokenRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut again = client(gateway.connect(Some(&fresh.token)).await);
    assert!(again.refresh_sandbox_token(RefreshSandboxTokenRequest::default()).await.is_ok());
}

async fn http(gateway: &Gateway, method: Method, path: &str) -> (StatusCode, Bytes) {
    let socket = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(socket);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, gateway.address.to_string())
        .body(Full::<Bytes>::default())
        .unwrap();
    let response = soon(path, sender.send_request(request)).await.unwrap();
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn http_serves_the_public_keys_and_nothing_else() {
    let gateway = Gateway::with(Options { local_dev: false, ..Options::default() }).await;
    let (status, keys) = http(&gateway, Method::GET, "/.well-known/jwks.json").await;
    assert_eq!(status, StatusCode::OK);
    let keys: serde_json::Value = serde_json::from_slice(&keys).unwrap();
    assert_eq!(keys["keys"][0]["crv"], "Ed25519");
    let (status, metadata) = http(&gateway, Method::GET, "/.well-known/openid-configuration").await;
    assert_eq!(status, StatusCode::OK);
    let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
    let jwks = format!("http://{}/.well-known/jwks.json", gateway.address);
    assert_eq!(metadata["jwks_uri"], jwks.as_str());
    assert_eq!(
        http(&gateway, Method::POST, "/.well-known/jwks.json").await.0,
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert_eq!(http(&gateway, Method::GET, "/connect/ssh").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(http(&gateway, Method::GET, "/admin").await.0, StatusCode::NOT_FOUND);
}
