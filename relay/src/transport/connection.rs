//! The HTTP/2 part: one connection, many streams.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::Body;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body as TonicBody;
use tower_service::Service;

use super::{H2Settings, Target, TokenSource, TransportError};
use crate::body::{BoxError, ByteBody, boxed};

/// One HTTP/2 connection; clones share it. It stays up while a clone or a stream is left, or
/// until [`Connection::close`].
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<TonicBody>,
    shared: Arc<Shared>,
}

struct Shared {
    scheme: Scheme,
    authority: Authority,
    token: Option<Arc<dyn TokenSource>>,
    closed: watch::Receiver<Option<Closed>>,
    kill: CancellationToken,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// What went wrong; `None` when either end closed it in good order.
    pub error: Option<String>,
}

/// The future of a request on a [`Connection`].
pub type ResponseFuture =
    Pin<Box<dyn Future<Output = Result<Response<TonicBody>, TransportError>> + Send>>;

impl Connection {
    /// Speaks HTTP/2 over any stream, as `origin` (the scheme and authority of requests) says.
    /// Of `target` only the HTTP/2 settings and the token are used.
    ///
    /// # Errors
    /// [`TransportError::Handshake`]; [`TransportError::InvalidUri`] for an origin without scheme
    /// or authority.
    pub async fn handshake<T>(
        stream: T,
        origin: &Uri,
        target: &Target,
    ) -> Result<Self, TransportError>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let invalid = || TransportError::InvalidUri { uri: origin.clone() };
        let scheme = origin.scheme().ok_or_else(invalid)?.clone();
        let authority = origin.authority().ok_or_else(invalid)?.clone();
        let kill = CancellationToken::new();
        let (sender, connection) = builder(&target.h2, kill.clone())
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| TransportError::Handshake { source })?;
        let (report, closed) = watch::channel(None);
        let killed = kill.clone();
        tokio::spawn(async move {
            let error = match killed.run_until_cancelled_owned(connection).await {
                Some(Ok(())) => None,
                Some(Err(error)) => Some(error.to_string()),
                None => Some("closed by this side".to_owned()),
            };
            if let Some(error) = &error {
                tracing::debug!(error, "connection to the gateway ended");
            }
            report.send_replace(Some(Closed { error }));
        });
        Ok(Self {
            sender,
            shared: Arc::new(Shared {
                scheme,
                authority,
                token: target.token.clone(),
                closed,
                kill,
            }),
        })
    }

    /// Scheme and authority, as generated clients want it (`with_origin`).
    pub fn origin(&self) -> Uri {
        self.uri(PathAndQuery::from_static("/"))
    }

    fn uri(&self, path: PathAndQuery) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.shared.scheme.clone());
        parts.authority = Some(self.shared.authority.clone());
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).expect("scheme, authority and path are all there")
    }

    /// Resolves when the connection has ended, also for a connection that already has.
    pub fn closed(&self) -> impl Future<Output = Closed> + Send + use<> {
        let mut closed = self.shared.closed.clone();
        async move {
            let ended = match closed.wait_for(Option::is_some).await {
                Ok(ended) => ended.clone(),
                Err(_) => None,
            };
            ended.unwrap_or_else(|| Closed { error: Some("closed by this side".to_owned()) })
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.shared.kill.is_cancelled()
    }

    /// Ends the connection at once; every stream on it fails. For a peer that no longer answers.
    pub fn close(&self) {
        self.shared.kill.cancel();
    }

    /// Starts a bidirectional gRPC call with already framed bytes and returns the response body,
    /// also framed. A failing `body` resets the stream; dropping it before its end does too.
    ///
    /// # Errors
    /// The status when the server answered without a stream (no such relay, not allowed), or
    /// `UNAVAILABLE` when the connection failed.
    pub async fn open_stream<B>(&self, path: &'static str, body: B) -> Result<ByteBody, Status>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut request = Request::post(self.uri(PathAndQuery::from_static(path)))
            .body(TonicBody::new(boxed(body)))
            .expect("method and URI are valid");
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        let response = self
            .clone()
            .call(request)
            .await
            .map_err(|error| Status::from_error(Box::new(error)))?;
        if let Some(status) = Status::from_header_map(response.headers())
            && status.code() != tonic::Code::Ok
        {
            return Err(status);
        }
        if response.status() != http::StatusCode::OK {
            return Err(Status::unavailable(format!(
                "gateway answered with HTTP status {}",
                response.status().as_u16()
            )));
        }
        Ok(boxed(response.into_body()))
    }
}

/// Runs hyper's tasks of one connection (the connection itself and request bodies that wait), all
/// of which end when the connection is killed.
#[derive(Clone)]
struct Tasks(CancellationToken);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(task));
    }
}

fn builder(settings: &H2Settings, kill: CancellationToken) -> Builder<Tasks> {
    let mut builder = Builder::new(Tasks(kill));
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .max_send_buf_size(settings.max_send_buffer)
        .max_header_list_size(settings.max_header_list)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout)
        .keep_alive_while_idle(true);
    if settings.adaptive_window {
        builder.adaptive_window(true);
    }
    builder
}

impl Service<Request<TonicBody>> for Connection {
    type Response = Response<TonicBody>;
    type Error = TransportError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.sender.poll_ready(cx).map_err(|_| TransportError::Closed)
    }

    fn call(&mut self, mut request: Request<TonicBody>) -> ResponseFuture {
        if request.uri().authority().is_none() {
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = self.uri(path.unwrap_or(PathAndQuery::from_static("/")));
        }
        if let Some(token) = &self.shared.token
            && let Some(value) = token.authorization()
        {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let sent = self.sender.send_request(request);
        // Kept until the response so that the last clone going away does not end the call.
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let _shared = shared;
            match sent.await {
                Ok(response) => Ok(response.map(TonicBody::new)),
                Err(source) => Err(TransportError::Request { source }),
            }
        })
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("authority", &self.shared.authority)
            .field("token", &self.shared.token)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
