//! The fixed inner end of the connection plane: HTTP/1.1 and HTTP/2 on one connection, each request to the call plane.

use std::{
    convert::Infallible,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use postern_layers::h2_window;
use tonic::body::Body;
use tower::ServiceExt as _;
use tower_service::Service;

use super::{Connection, ConnectionError};
use crate::{
    drain::{Phase, Watch},
    stack::CallPlane,
};

/// Most bytes of the head of an HTTP/1.1 request, and of what is read ahead. The head of a gRPC-less caller is far
/// smaller; HTTP/2 has `max_header_list`.
const H1_BUFFER: usize = 64 * 1024;

/// Most headers of an HTTP/1.1 request.
const H1_HEADERS: usize = 100;

/// How long an HTTP/1.1 peer may take for the head of a request, and so how long it may stay idle between two.
const H1_HEAD_TIME: Duration = Duration::from_secs(30);

/// Serves one connection after another. Clones share everything.
#[derive(Clone)]
pub struct ServeHttp {
    plane: CallPlane,
    builder: Arc<Builder<TokioExecutor>>,
    drain: Watch,
}

impl std::fmt::Debug for ServeHttp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeHttp").finish_non_exhaustive()
    }
}

impl ServeHttp {
    /// Serves requests by `plane`, with HTTP/2 as `h2` says (hyper's own values without).
    #[must_use]
    pub fn new(plane: CallPlane, h2: Option<&h2_window::Config>, drain: Watch) -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(H1_HEAD_TIME)
            .max_headers(H1_HEADERS)
            .max_buf_size(H1_BUFFER);
        builder.http2().timer(TokioTimer::new()).enable_connect_protocol();
        if let Some(h2) = h2 {
            h2.apply_to_auto(&mut builder);
        }
        Self { plane, builder: Arc::new(builder), drain }
    }

    async fn serve(self, connection: Connection) -> Result<(), ConnectionError> {
        let Self { plane, builder, mut drain } = self;
        let (io, info, handshake) = connection.into_parts();
        let service = service_fn(move |mut request: Request<Incoming>| {
            handshake.done();
            request.extensions_mut().insert(info.clone());
            let plane = plane.clone();
            async move {
                let response: Result<Response<Body>, Infallible> =
                    plane.oneshot(request.map(Body::new)).await;
                response
            }
        });
        let mut served = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
        let mut seen = Phase::Open;
        loop {
            tokio::select! {
                ended = served.as_mut() => return ended.map_err(ConnectionError::Http),
                phase = drain.beyond(seen) => seen = phase,
            }
            match seen {
                Phase::Open | Phase::Draining => {}
                // GOAWAY, or the end after the response in progress.
                Phase::Leaving => served.as_mut().graceful_shutdown(),
                Phase::Closing => return Ok(()),
            }
        }
    }
}

impl Service<Connection> for ServeHttp {
    type Response = ();
    type Error = ConnectionError;
    type Future = Pin<Box<dyn Future<Output = Result<(), ConnectionError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, connection: Connection) -> Self::Future {
        Box::pin(self.clone().serve(connection))
    }
}
