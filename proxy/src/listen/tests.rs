use std::{path::Path, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_identity::{IssuedCertificate, LocalAuthority};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tower::{service_fn, util::BoxCloneSyncService};

use super::{tls::Material, *};
use crate::{
    config::{LayerConfigs, Stack},
    drain::Drain,
    stack::{Call, CallPlane},
};

/// Longer than anything here takes; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Answers with what the connection is known by; `/wait` answers when told to; `CONNECT` upgrades and resets.
fn calls(go: Arc<tokio::sync::Notify>) -> CallPlane {
    BoxCloneSyncService::new(service_fn(move |mut call: Call| {
        let go = go.clone();
        async move {
            let info = call.extensions().get::<ConnectInfo>().unwrap().clone();
            let certificate = info.tls.as_ref();
            let name = certificate.map_or("nobody", |c| c.common_name.as_str());
            let units = certificate.map(|c| c.organizational_units.join("+")).unwrap_or_default();
            let text = format!("{name} {units} tls={} {:?}", info.is_tls(), call.version());
            if call.uri().path() == "/wait" {
                go.notified().await;
            }
            if call.method() == http::Method::CONNECT {
                let upgrade = hyper::upgrade::on(&mut call);
                tokio::spawn(async move {
                    let upgraded = upgrade.await.unwrap();
                    go.notified().await;
                    reset(upgraded);
                });
                return Ok(Response::new(Body::empty()));
            }
            Ok(Response::new(Body::new(Full::from(text))))
        }
    }))
}

struct Server {
    address: SocketAddr,
    drain: Drain,
    go: Arc<tokio::sync::Notify>,
    serving: tokio::task::JoinHandle<()>,
    handles: ConnectionHandles,
}

fn serve_with(tls: Option<&Material>, values: &LayerConfigs) -> Server {
    let drain = Drain::new();
    let go = Arc::new(tokio::sync::Notify::new());
    let tls = tls.map(|material| material.load().unwrap());
    let (plane, handles) =
        connection_plane(&Stack::default(), values, tls, calls(go.clone()), drain.watch());
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(serve(listener, plane, drain.watch()));
    Server { address, drain, go, serving, handles }
}

/// An authority with a server, a user and a sandbox.
struct Pki {
    directory: tempfile::TempDir,
    authority: LocalAuthority,
    user: IssuedCertificate,
    material: Material,
}

fn pki(require_client_auth: bool) -> Pki {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let authority = LocalAuthority::open_or_create(directory.path(), now).unwrap();
    let server = authority.server(&["127.0.0.1".to_owned()], now).unwrap();
    let user = authority.local_user("ada", now).unwrap();
    let material = Material {
        certificate: server.certificate,
        key: server.key,
        client_ca: Some(authority.certificate_path()),
        require_client_auth,
    };
    Pki { directory, authority, user, material }
}

fn client_config(
    pki: &Pki,
    identity: Option<&IssuedCertificate>,
    alpn: &[u8],
) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pki.authority.certificate_pem().as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = vec![CertificateDer::from_pem_file(&issued.certificate).unwrap()];
            let key = PrivateKeyDer::from_pem_file(&issued.key).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

/// One GET over TLS; the text of the answer.
async fn get_tls(server: &Server, config: Arc<ClientConfig>, h2: bool) -> Result<String, String> {
    let socket = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream =
        TlsConnector::from(config).connect(name, socket).await.map_err(|e| e.to_string())?;
    let io = TokioIo::new(stream);
    let request = Request::get("https://127.0.0.1/").body(Empty::<Bytes>::new()).unwrap();
    let response = if h2 {
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        send.send_request(request).await
    } else {
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        send.send_request(request).await
    };
    let body = response.map_err(|e| e.to_string())?.into_body().collect().await.unwrap().to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_request_knows_who_is_at_the_other_end() {
    let pki = pki(false);
    let server = serve_with(Some(&pki.material), &LayerConfigs::default());
    let user = client_config(&pki, Some(&pki.user), b"h2");
    let text = soon("h2", get_tls(&server, user, true)).await.unwrap();
    assert_eq!(text, "ada openshell-user+openshell-admin tls=true HTTP/2.0");
    let user = client_config(&pki, Some(&pki.user), b"http/1.1");
    let text = soon("h1", get_tls(&server, user, false)).await.unwrap();
    assert_eq!(text, "ada openshell-user+openshell-admin tls=true HTTP/1.1");
    let text = soon("no certificate", get_tls(&server, client_config(&pki, None, b"h2"), true))
        .await
        .unwrap();
    assert_eq!(text, "nobody  tls=true HTTP/2.0");
}

#[tokio::test]
async fn a_required_certificate_is_required() {
    let pki = pki(true);
    let server = serve_with(Some(&pki.material), &LayerConfigs::default());
    let user = client_config(&pki, Some(&pki.user), b"h2");
    assert!(soon("with", get_tls(&server, user, true)).await.is_ok());
    // TLS 1.3 tells the client only with the first read, so any step may be the one that fails.
    assert!(
        soon("without", get_tls(&server, client_config(&pki, None, b"h2"), true)).await.is_err()
    );
    let stranger = self::pki(true);
    let config = client_config(&pki, Some(&stranger.user), b"h2");
    assert!(soon("another authority", get_tls(&server, config, true)).await.is_err());
    // Plain HTTP on the TLS port gets no answer.
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("plain", socket.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn new_connections_get_the_new_certificates() {
    let pki = pki(false);
    let server = serve_with(Some(&pki.material), &LayerConfigs::default());
    let other = self::pki(false);
    let config = client_config(&other, None, b"h2");
    assert!(soon("before", get_tls(&server, config.clone(), true)).await.is_err());
    server.handles.tls.as_ref().unwrap().set(other.material.load().unwrap());
    assert!(soon("after", get_tls(&server, config, true)).await.is_ok());
}

#[tokio::test]
async fn files_that_make_no_server_are_told_apart() {
    let mut pki = pki(true);
    let missing =
        Material { certificate: pki.directory.path().join("none.crt"), ..pki.material.clone() };
    assert!(matches!(missing.load(), Err(tls::TlsError::File { wanted: "certificate", .. })));
    let key_as_certificate =
        Material { certificate: pki.material.key.clone(), ..pki.material.clone() };
    assert!(matches!(
        key_as_certificate.load(),
        Err(tls::TlsError::File { wanted: "certificate", .. })
    ));
    let other_key = Material { key: pki.user.key.clone(), ..pki.material.clone() };
    assert!(matches!(other_key.load(), Err(tls::TlsError::Pair { .. })));
    std::fs::write(pki.directory.path().join("empty.crt"), "").unwrap();
    pki.material.client_ca = Some(pki.directory.path().join("empty.crt"));
    assert!(matches!(pki.material.load(), Err(tls::TlsError::File { .. })));
    assert!(Path::new(&pki.material.certificate).exists());
}

#[tokio::test]
async fn connections_over_the_cap_are_closed() {
    let mut values = LayerConfigs::default();
    values.connection_cap.total = 1;
    values.connection_cap.per_peer = 1;
    let server = serve_with(None, &values);
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    soon("first", first.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let mut second = TcpStream::connect(server.address).await.unwrap();
    let read = soon("second", second.read(&mut answer)).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn a_reset_is_not_an_end_of_file() {
    let server = serve_with(None, &LayerConfigs::default());
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(b"CONNECT /connect/ssh HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 512];
    let count = soon("200", client.read(&mut answer)).await.unwrap();
    assert!(
        answer[..count].starts_with(b"HTTP/1.1 200"),
        "{:?}",
        String::from_utf8_lossy(&answer[..count])
    );
    server.go.notify_one();
    let ended = soon("the reset", client.read(&mut answer)).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

async fn h2_client(
    server: &Server,
) -> (
    hyper::client::conn::http2::SendRequest<Empty<Bytes>>,
    tokio::task::JoinHandle<hyper::Result<()>>,
) {
    let socket = TcpStream::connect(server.address).await.unwrap();
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .unwrap();
    (send, tokio::spawn(connection))
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://127.0.0.1{path}")).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn a_drain_lets_calls_in_progress_finish() {
    let server = serve_with(None, &LayerConfigs::default());
    let (mut send, connection) = h2_client(&server).await;
    let waiting = tokio::spawn(send.send_request(get("/wait")));
    // The server has the request once it answers one that was sent after it.
    assert_eq!(soon("a call", send.send_request(get("/"))).await.unwrap().status(), StatusCode::OK);

    server.drain.start();
    // No new connection; the old one still takes calls.
    soon("no listener", async {
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(soon("a call while draining", send.send_request(get("/"))).await.is_ok());

    server.drain.leave();
    // The client is told to go away; what it asked for before is answered.
    soon("GOAWAY", async { while send.send_request(get("/")).await.is_ok() {} }).await;
    server.go.notify_one();
    assert_eq!(soon("the call", waiting).await.unwrap().unwrap().status(), StatusCode::OK);
    let _ = soon("the client's connection", connection).await.unwrap();
    soon("the server", server.serving).await.unwrap();
}

#[tokio::test]
async fn closing_ends_calls_in_progress() {
    let server = serve_with(None, &LayerConfigs::default());
    let (mut send, _connection) = h2_client(&server).await;
    let waiting = tokio::spawn(send.send_request(get("/wait")));
    assert!(soon("a call", send.send_request(get("/"))).await.is_ok());
    server.drain.start();
    server.drain.close();
    soon("the server", server.serving).await.unwrap();
    assert!(soon("the call", waiting).await.unwrap().is_err());
}
