//! The inner end of the call plane: which request goes where.
//!
//! gRPC by its content type, everything else is HTTP. The two relay calls are taken out before the gRPC codecs: their
//! bodies are spliced, not decoded. A method of the contract that this gateway does not have answers `UNIMPLEMENTED`
//! and names itself.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Method, Request, Response, StatusCode, header};
use postern_identity::SandboxTokenIssuer;
use postern_layers::refuse::Protocol;
use postern_proto::v1::open_shell_server::OpenShellServer;
use postern_relay::registry::Registry;
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

use super::connect_ssh::ConnectSsh;
use super::forward::Forward;
use super::ssh_sessions::Address;
use super::{Handlers, IMPLEMENTED, relay_stream};
use crate::authorize::{CONNECT_SSH_PATH, JWKS_PATH, OPENID_PATH, is_connect_ssh};
use crate::listen::ConnectInfo;

/// Largest message that the gRPC codecs decode. Clients of the contract send at most 4 MiB by default; larger input
/// goes over a stream or a relay.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

const SERVICE: &str = "/openshell.v1.OpenShell/";
const RELAY_STREAM: &str = "/openshell.v1.OpenShell/RelayStream";
const FORWARD_TCP: &str = "/openshell.v1.OpenShell/ForwardTcp";

/// Routes requests. Cloning shares everything.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
    grpc: OpenShellServer<Handlers>,
}

struct Shared {
    registry: Registry,
    forward: Forward,
    connect_ssh: ConnectSsh,
    issuer: Arc<SandboxTokenIssuer>,
}

/// A response on its way.
pub type RouterFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

// === impl Router ===

impl Router {
    /// Routes to these.
    #[must_use]
    pub fn new(
        handlers: Handlers,
        registry: Registry,
        forward: Forward,
        connect_ssh: ConnectSsh,
        issuer: Arc<SandboxTokenIssuer>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared { registry, forward, connect_ssh, issuer }),
            grpc: OpenShellServer::new(handlers).max_decoding_message_size(MAX_MESSAGE),
        }
    }
}

impl Service<Request<Body>> for Router {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = RouterFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> RouterFuture {
        let shared = Arc::clone(&self.shared);
        if Protocol::of(request.headers()) != Protocol::Grpc {
            return Box::pin(async move { Ok(shared.http(request).await) });
        }
        match request.uri().path() {
            RELAY_STREAM => {
                Box::pin(async move { Ok(relay_stream::serve(&shared.registry, request).await) })
            }
            FORWARD_TCP => Box::pin(async move { Ok(shared.forward.serve(request).await) }),
            path if is_implemented(path) => {
                let reached = reached(&request);
                request.extensions_mut().insert(reached);
                self.grpc.call(request)
            }
            path => {
                let response = unimplemented(path);
                Box::pin(async move { Ok(response) })
            }
        }
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    async fn http(&self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path();
        if path == CONNECT_SSH_PATH || is_connect_ssh(request.method(), path) {
            return self.connect_ssh.serve(request).await;
        }
        let document = match path {
            JWKS_PATH => self.issuer.jwks(),
            OPENID_PATH => {
                let Address { scheme, host, port } = reached(&request);
                // An IPv6 address stands in brackets in a URL.
                let host = if host.contains(':') { format!("[{host}]") } else { host };
                self.issuer.openid_metadata(&format!("{scheme}://{host}:{port}"))
            }
            _ => return plain(StatusCode::NOT_FOUND),
        };
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED);
        }
        let mut response =
            Response::new(Body::new(http_body_util::Full::from(document.to_string())));
        let json = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }
}

fn is_implemented(path: &str) -> bool {
    path.strip_prefix(SERVICE).is_some_and(|method| IMPLEMENTED.contains(&method))
}

fn unimplemented(path: &str) -> Response<Body> {
    // A path comes from the caller and goes back in a header: only what a method can be called, and not for ever.
    let name: String = path
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._/".contains(*c))
        .take(200)
        .collect();
    Status::unimplemented(format!(
        "{} is not implemented by this gateway",
        name.trim_start_matches('/')
    ))
    .into_http()
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// How the caller reached the gateway, as the router noted it in the extensions of a request.
pub(super) fn reached_by(extensions: &tonic::Extensions) -> Address {
    extensions.get().cloned().unwrap_or_else(Address::unknown)
}

fn reached(request: &Request<Body>) -> Address {
    let info = request.extensions().get::<ConnectInfo>();
    let local = info.map_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), |info| info.local);
    let tls = info.is_some_and(ConnectInfo::is_tls);
    Address::of_request(request.uri(), request.headers(), local, tls)
}
