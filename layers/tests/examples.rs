//! Starts every example with every layer it knows and asks it something over a real socket.

use std::{io, net::SocketAddr, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore},
};

const CALL_PLANE: [&str; 8] = [
    "authenticate",
    "authorize",
    "body_limit",
    "concurrency_cap",
    "deadline",
    "metrics",
    "rate_limit",
    "request_id",
];

/// An example is a small program; one that has not said its address by now never will.
const START: Duration = Duration::from_secs(20);

struct Running {
    /// Killed when this is dropped.
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

/// Starts an example, or says why it cannot be and returns nothing.
async fn start(example: &str, layer: &str) -> Option<Running> {
    let own = std::env::current_exe().expect("a test knows where it is");
    let path: PathBuf = own.parent()?.parent()?.join("examples").join(example);
    if !path.exists() {
        eprintln!("SKIPPED: {example} is not built; run the tests without naming one of them");
        return None;
    }
    let mut child = Command::new(path)
        .args(["--layer", layer])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the example starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let line = timeout(START, lines.next_line()).await.expect("it says its address in time");
    let line = line.expect("it speaks UTF-8").expect("it says its address");
    let address =
        line.strip_prefix("listening on ").expect("the address").parse().expect("an address");
    Some(Running { _child: child, lines, address })
}

async fn ask(address: SocketAddr, path: &str) -> Response<Bytes> {
    let socket = TcpStream::connect(address).await.expect("a connection");
    let grpc = path.starts_with("/example.Echo");
    let request = Request::get(format!("http://{address}{path}"))
        .header("authorization", "Bearer letmein")
        .header("content-type", if grpc { "application/grpc" } else { "text/plain" })
        .body(Full::<Bytes>::from("in"))
        .expect("a request");
    let (mut client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(socket))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    let (head, body) = client.send_request(request).await.expect("a response").into_parts();
    Response::from_parts(head, body.collect().await.expect("a whole body").to_bytes())
}

#[tokio::test]
async fn axum_app() {
    for layer in CALL_PLANE.into_iter().chain(["ocsf"]) {
        let Some(app) = start("axum_app", layer).await else { return };
        let response = ask(app.address, "/hello").await;
        assert_eq!(response.status(), 200, "{layer}");
        let wanted = if layer == "authenticate" { "hello, letmein" } else { "hello, stranger" };
        assert!(response.body().starts_with(wanted.as_bytes()), "{layer}: {:?}", response.body());
        assert_eq!(response.headers().contains_key("x-request-id"), layer == "request_id");
        if layer == "deadline" {
            assert_eq!(ask(app.address, "/slow").await.status(), 504);
        }
        if layer == "authorize" {
            assert_eq!(ask(app.address, "/secret").await.status(), 403);
        }
    }
}

#[tokio::test]
async fn hyper_proxy() {
    for layer in CALL_PLANE.into_iter().chain(["h2_window"]) {
        let Some(proxy) = start("hyper_proxy", layer).await else { return };
        let response = ask(proxy.address, "/any").await;
        assert_eq!(
            (response.status().as_u16(), &response.body()[..]),
            (200, &b"hello from upstream\n"[..]),
            "{layer}"
        );
    }
}

#[tokio::test]
async fn tonic_server() {
    for layer in CALL_PLANE {
        let Some(server) = start("tonic_server", layer).await else { return };
        let response = ask(server.address, "/example.Echo/Say").await;
        assert_eq!(
            (response.status().as_u16(), &response.body()[..]),
            (200, &b"in"[..]),
            "{layer}: {response:?}"
        );
    }
}

async fn echoes(mut io: impl AsyncRead + AsyncWrite + Unpin, layer: &str) {
    io.write_all(b"ping").await.expect("it is written");
    let mut answer = [0; 4];
    io.read_exact(&mut answer).await.expect("it is read");
    assert_eq!(&answer, b"ping", "{layer}");
}

#[tokio::test]
async fn tcp_proxy() {
    for layer in
        ["connection_cap", "handshake_deadline", "relay_caps", "relay_metrics", "session_wait"]
    {
        let Some(proxy) = start("tcp_proxy", layer).await else { return };
        echoes(TcpStream::connect(proxy.address).await.expect("a connection"), layer).await;
    }
}

#[tokio::test]
async fn tcp_proxy_with_tls() {
    let Some(mut proxy) = start("tcp_proxy", "tls").await else { return };
    let mut pem = String::new();
    while !pem.contains("END CERTIFICATE") {
        pem += &proxy.lines.next_line().await.expect("it speaks UTF-8").expect("a certificate");
        pem.push('\n');
    }
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate"))
        .expect("a root");
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let socket = TcpStream::connect(proxy.address).await.expect("a connection");
    let name = "localhost".try_into().expect("a name");
    let io = TlsConnector::from(Arc::new(client)).connect(name, socket).await.expect("a handshake");
    echoes(io, "tls").await;
}

#[tokio::test]
async fn a_silent_client_is_dropped_by_the_deadline() {
    let Some(proxy) = start("tcp_proxy", "handshake_deadline").await else { return };
    let mut silent = TcpStream::connect(proxy.address).await.expect("a connection");
    let closed = timeout(START, silent.read(&mut [0; 1])).await.expect("it is dropped in time");
    assert!(
        matches!(closed, Ok(0))
            || closed.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    );
}
