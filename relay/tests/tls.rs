//! The transport over TLS: names, roots and protocol are checked, tokens are sent.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_relay::transport::{self, SharedToken, Target, TransportError};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Status};

struct Server {
    address: SocketAddr,
    certificate: CertificateDer<'static>,
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Answers every call with a status that repeats the authorization header.
async fn server(names: &[&str], alpn: &[&[u8]]) -> Server {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let signed = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = signed.cert.der().clone();
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request: http::Request<Incoming>| async move {
                    let header = request.headers().get(http::header::AUTHORIZATION);
                    let text = header.map_or("none", |value| value.to_str().unwrap());
                    let status = Status::failed_precondition(text);
                    Ok::<_, Infallible>(status.into_http::<Empty<Bytes>>())
                });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Server { address, certificate }
}

fn target(server: &Server, host: &str) -> Target {
    let mut roots = RootCertStore::empty();
    roots.add(server.certificate.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let uri = format!("https://{host}:{}", server.address.port()).parse().unwrap();
    Target { tls: Some(Arc::new(config)), ..Target::new(uri) }
}

#[tokio::test]
async fn requests_carry_the_newest_token() {
    let server = server(&["127.0.0.1"], &[b"h2"]).await;
    let token = SharedToken::new("first").unwrap();
    let target = Target { token: Some(Arc::new(token.clone())), ..target(&server, "127.0.0.1") };
    let connection = transport::connect(&target).await.unwrap();
    for expected in ["Bearer first", "Bearer second", "none"] {
        let body = Empty::<Bytes>::new();
        let status = connection.open_stream("/x", body).await.err().unwrap();
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, expected));
        if expected == "Bearer first" {
            token.set("second").unwrap();
            assert!(token.set("bad\ntoken").is_err(), "and the old one stays");
        } else {
            token.clear();
        }
    }
    token.set("swordfish").unwrap();
    let shown = format!("{connection:?} {target:?} {token:?}");
    assert!(shown.contains("(masked)") && !shown.contains("swordfish"), "{shown}");
}

#[tokio::test]
async fn the_server_must_be_the_one_that_is_named() {
    let server = server(&["gateway.internal"], &[b"h2"]).await;
    let wrong = target(&server, "127.0.0.1");
    let error = transport::connect(&wrong).await.unwrap_err();
    assert!(matches!(error, TransportError::Tls { .. }), "{error:?}");
    let name = ServerName::try_from("gateway.internal").unwrap();
    let right = Target { server_name: Some(name), ..wrong };
    transport::connect(&right).await.unwrap();
}

#[tokio::test]
async fn a_server_of_another_root_or_protocol_is_refused() {
    let one = server(&["127.0.0.1"], &[b"h2"]).await;
    let other = server(&["127.0.0.1"], &[]).await;
    let stranger = Server { address: other.address, certificate: one.certificate.clone() };
    let error = transport::connect(&target(&stranger, "127.0.0.1")).await.unwrap_err();
    assert!(matches!(error, TransportError::Tls { .. }), "{error:?}");
    let error = transport::connect(&target(&other, "127.0.0.1")).await.unwrap_err();
    assert!(matches!(error, TransportError::NotHttp2 { .. }), "{error:?}");
}

#[tokio::test]
async fn targets_that_cannot_work_say_what_is_missing() {
    let connect = |uri: &str| {
        let target = Target::new(uri.parse().unwrap());
        async move { transport::connect(&target).await.unwrap_err() }
    };
    assert!(matches!(connect("https://host:1").await, TransportError::TlsNotConfigured { .. }));
    assert!(matches!(connect("ftp://host:1").await, TransportError::InvalidUri { .. }));
    assert!(matches!(connect("/path").await, TransportError::InvalidUri { .. }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = connect(&format!("http://{address}")).await;
    assert!(matches!(error, TransportError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn a_peer_that_never_answers_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = server(&["127.0.0.1"], &[b"h2"]).await;
    let silent =
        Server { address: listener.local_addr().unwrap(), certificate: server.certificate.clone() };
    let target =
        Target { connect_timeout: Duration::from_millis(200), ..target(&silent, "127.0.0.1") };
    let error = transport::connect(&target).await.unwrap_err();
    assert!(matches!(error, TransportError::Timeout { .. }), "{error:?}");
}
