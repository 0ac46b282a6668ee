//! The state both halves of a relay share, and the bodies that carry it.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tonic::{Code, Status};

use super::end::{EndKind, OnRelayEnd, RelayEnd, RelayInfo, Side};
use super::io::RelayIo;
use crate::body::{BoxError, ByteBody, boxed, poll_data};
use crate::frame::Scanner;

/// Longest reason kept, in bytes: reasons travel in a header and on the session, and a peer's
/// words must not grow either without bound.
const REASON_MAX: usize = 1024;

/// Direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Requester to sandbox.
    In = 0,
    /// Sandbox to requester.
    Out = 1,
}

impl Way {
    const fn source(self) -> Side {
        match self {
            Self::In => Side::Requester,
            Self::Out => Side::Supervisor,
        }
    }

    const fn sink(self) -> Side {
        match self {
            Self::In => Side::Supervisor,
            Self::Out => Side::Requester,
        }
    }
}

/// Where one direction's bytes come from.
enum Source {
    /// The requester has not attached its side yet.
    Awaited,
    /// Bytes, framed.
    Body(ByteBody),
    /// Finished or cut.
    Gone,
}

struct Lane {
    source: Mutex<Source>,
    /// Wakes whoever polls this direction when the source is attached or the relay is cut.
    waker: AtomicWaker,
    payload: AtomicU64,
}

impl Lane {
    fn new(source: Source) -> Self {
        Self { source: Mutex::new(source), waker: AtomicWaker::new(), payload: AtomicU64::new(0) }
    }

    fn drop_source(&self) {
        // The old source is dropped after the lock: its drop may wake other tasks.
        let gone = std::mem::replace(&mut *self.source.lock(), Source::Gone);
        drop(gone);
    }
}

/// Why a relay was cut short.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    pub(super) by: Side,
    pub(super) code: Code,
    pub(super) reason: String,
}

/// What must happen once when a relay has ended, besides what requesters asked for.
pub(crate) trait RelayHooks: Send + Sync + 'static {
    /// `tell_supervisor` is set when the supervisor does not know yet.
    fn ended(&self, end: &RelayEnd, tell_supervisor: bool);
}

#[derive(Default)]
struct Ledger {
    observers: Vec<Box<dyn OnRelayEnd>>,
    held: Vec<Box<dyn Any + Send>>,
    finished: [bool; 2],
    first: Option<Side>,
    delivered: bool,
}

pub(super) struct Shared {
    pub(super) info: RelayInfo,
    pub(super) max_frame: usize,
    lanes: [Lane; 2],
    cut: OnceLock<Cut>,
    ledger: Mutex<Ledger>,
    hooks: Arc<dyn RelayHooks>,
}

impl Shared {
    fn lane(&self, way: Way) -> &Lane {
        &self.lanes[way as usize]
    }

    pub(super) fn cut_cause(&self) -> Option<&Cut> {
        self.cut.get()
    }

    pub(super) fn payload(&self, way: Way) -> u64 {
        self.lane(way).payload.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, way: Way, bytes: usize) {
        self.lane(way).payload.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn attach(&self, way: Way, body: ByteBody) {
        let lane = self.lane(way);
        let mut source = lane.source.lock();
        // A relay that was cut while nobody was attached stays cut.
        if matches!(*source, Source::Awaited) {
            *source = Source::Body(body);
        }
        drop(source);
        lane.waker.wake();
    }

    /// The next framed chunk of a direction; `Err` is a cut, `None` end of file.
    pub(super) fn poll_source(
        &self,
        way: Way,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, ()>>> {
        let lane = self.lane(way);
        lane.waker.register(cx.waker());
        if self.cut.get().is_some() {
            return Poll::Ready(Some(Err(())));
        }
        let polled = match &mut *lane.source.lock() {
            Source::Awaited => Poll::Pending,
            Source::Body(body) => poll_data(body, cx),
            // Cut between the look above and the lock.
            Source::Gone => return Poll::Ready(Some(Err(()))),
        };
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Ok(data))) => Poll::Ready(Some(Ok(data))),
            Poll::Ready(Some(Err(error))) => {
                self.source_failed(way, &error);
                Poll::Ready(Some(Err(())))
            }
        }
    }

    fn source_failed(&self, way: Way, error: &BoxError) {
        let by = way.source();
        tracing::debug!(
            channel_id = %self.info.channel_id, sandbox_id = %self.info.sandbox_id,
            side = by.as_str(), error = %error, "relay source failed"
        );
        let reason = format!("relay was reset by its {}", by.as_str());
        self.cut(by, Code::Unavailable, reason);
    }

    /// One direction reached end of file.
    pub(super) fn finished(&self, way: Way) {
        self.lane(way).drop_source();
        let mut ledger = self.ledger.lock();
        ledger.finished[way as usize] = true;
        ledger.first.get_or_insert(way.source());
        let both = ledger.finished == [true; 2];
        drop(ledger);
        if both {
            self.deliver();
        }
    }

    /// Ends both directions. Only the first cut counts, and none after a clean end.
    pub(super) fn cut(&self, by: Side, code: Code, mut reason: String) -> bool {
        if self.ledger.lock().delivered {
            return false;
        }
        let end = reason.floor_char_boundary(REASON_MAX);
        reason.truncate(end);
        if self.cut.set(Cut { by, code, reason }).is_err() {
            return false;
        }
        for lane in &self.lanes {
            lane.drop_source();
            lane.waker.wake();
        }
        self.deliver();
        true
    }

    fn deliver(&self) {
        let mut ledger = self.ledger.lock();
        if std::mem::replace(&mut ledger.delivered, true) {
            return;
        }
        let observers = std::mem::take(&mut ledger.observers);
        let held = std::mem::take(&mut ledger.held);
        let first = ledger.first;
        drop(ledger);
        let (ended_by, kind) = match self.cut.get() {
            Some(cut) => (cut.by, EndKind::Reset { code: cut.code, reason: cut.reason.clone() }),
            None => (first.unwrap_or(Side::Gateway), EndKind::Clean),
        };
        let tell_supervisor = kind != EndKind::Clean && ended_by != Side::Supervisor;
        let end = RelayEnd {
            info: self.info.clone(),
            duration: self.info.opened_at.elapsed(),
            bytes_to_sandbox: self.payload(Way::In),
            bytes_from_sandbox: self.payload(Way::Out),
            ended_by,
            kind,
        };
        self.hooks.ended(&end, tell_supervisor);
        for observer in observers {
            observer.on_relay_end(&end);
        }
        drop(held);
    }

    fn is_ended(&self) -> bool {
        self.ledger.lock().delivered
    }
}

/// Makes a relay around the supervisor's body: its response body and the requester's handle.
pub(crate) fn join(
    info: RelayInfo,
    supervisor_body: ByteBody,
    max_frame: usize,
    hooks: Arc<dyn RelayHooks>,
) -> (SplicedBody, OpenedRelay, AbortHandle) {
    let shared = Arc::new(Shared {
        info,
        max_frame,
        lanes: [Lane::new(Source::Awaited), Lane::new(Source::Body(supervisor_body))],
        cut: OnceLock::new(),
        ledger: Mutex::new(Ledger::default()),
        hooks,
    });
    let abort = AbortHandle(Arc::downgrade(&shared));
    let to_supervisor = SplicedBody::new(Arc::clone(&shared), Way::In);
    let opened = OpenedRelay { shared: Some(shared) };
    (to_supervisor, opened, abort)
}

/// One direction of a spliced relay as a gRPC response body.
///
/// Yields the framed bytes of the other call as they come, then trailers with a `grpc-status`.
/// Never fails at the body level. Dropping it before its trailers means that whoever was being
/// written to is gone: the relay is cut.
pub struct SplicedBody {
    shared: Arc<Shared>,
    way: Way,
    scanner: Scanner,
    done: bool,
}

impl SplicedBody {
    fn new(shared: Arc<Shared>, way: Way) -> Self {
        let scanner = Scanner::new(shared.max_frame);
        Self { shared, way, scanner, done: false }
    }

    /// The body in a gRPC response: status 200, `application/grpc`.
    pub fn into_response(self) -> http::Response<Self> {
        let mut response = http::Response::new(self);
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
        response
    }

    /// Cuts the relay because its bytes break the framing.
    fn malformed(&self, error: &crate::frame::FrameError) {
        let reason = format!("{} sent a bad frame: {error}", self.way.source().as_str());
        self.shared.cut(Side::Gateway, Code::InvalidArgument, reason);
    }

    fn ending(&mut self) -> HeaderMap {
        self.done = true;
        let status = match self.shared.cut_cause() {
            Some(cut) => Status::new(cut.code, cut.reason.clone()),
            None => Status::new(Code::Ok, ""),
        };
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // The reason does not fit a header; the code always does.
            trailers.clear();
            trailers.insert("grpc-status", http::HeaderValue::from(status.code() as i32));
        }
        trailers
    }
}

impl Body for SplicedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let frame = match std::task::ready!(self.shared.poll_source(self.way, cx)) {
            Some(Ok(data)) => match self.scanner.scan(&data) {
                Ok(payload) => {
                    self.shared.count(self.way, payload);
                    Frame::data(data)
                }
                Err(error) => {
                    self.malformed(&error);
                    Frame::trailers(self.ending())
                }
            },
            Some(Err(())) => Frame::trailers(self.ending()),
            None => {
                match self.scanner.finish() {
                    Ok(()) => self.shared.finished(self.way),
                    Err(error) => self.malformed(&error),
                }
                Frame::trailers(self.ending())
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}

impl Drop for SplicedBody {
    fn drop(&mut self) {
        if !self.done {
            let sink = self.way.sink();
            // A requester that left has cancelled; a supervisor that is lost may come back, and its requester may
            // try again, whichever of its two streams was seen to break first.
            let code = match sink {
                Side::Requester => Code::Cancelled,
                Side::Supervisor | Side::Gateway => Code::Unavailable,
            };
            let reason = format!("{} went away", sink.as_str());
            self.shared.cut(sink, code, reason);
        }
    }
}

impl fmt::Debug for SplicedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplicedBody")
            .field("channel_id", &self.shared.info.channel_id)
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

/// A relay that its supervisor has claimed, waiting for the requester's side.
///
/// Dropping it cuts the relay: the supervisor sees `CANCELLED`, its target a reset.
pub struct OpenedRelay {
    /// `None` once attached.
    shared: Option<Arc<Shared>>,
}

const ATTACHED: &str = "an opened relay is attached at most once, by value";

impl OpenedRelay {
    fn shared(&self) -> &Arc<Shared> {
        self.shared.as_ref().expect(ATTACHED)
    }

    fn take(mut self) -> Arc<Shared> {
        self.shared.take().expect(ATTACHED)
    }

    /// What the relay is.
    pub fn info(&self) -> &RelayInfo {
        &self.shared().info
    }

    /// A handle that cuts the relay.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle(Arc::downgrade(self.shared()))
    }

    /// Keeps `thing` (a permit of a layer) until exactly the end of the relay. On a relay that
    /// has ended already it is dropped at once.
    pub fn hold(&mut self, thing: impl Any + Send) {
        let mut ledger = self.shared().ledger.lock();
        if !ledger.delivered {
            ledger.held.push(Box::new(thing));
        }
    }

    /// Has `observer` told about the end of this relay, once. On a relay that has ended already
    /// it is not called any more.
    pub fn on_end(&mut self, observer: impl OnRelayEnd) {
        let mut ledger = self.shared().ledger.lock();
        if !ledger.delivered {
            ledger.observers.push(Box::new(observer));
        }
    }

    /// Attaches a requester that speaks framed bytes (`ForwardTcp`): `body` is the rest of its
    /// request after the init message; the result is the body of its response.
    pub fn splice<B>(self, body: B) -> SplicedBody
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let shared = self.take();
        shared.attach(Way::In, boxed(body));
        SplicedBody::new(shared, Way::Out)
    }

    /// Attaches a requester inside this process that wants a byte stream.
    pub fn into_io(self) -> RelayIo {
        let shared = self.take();
        let (io, source) = RelayIo::new(Arc::clone(&shared));
        shared.attach(Way::In, boxed(source));
        io
    }
}

impl Drop for OpenedRelay {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            let reason = "requester went away".to_owned();
            shared.cut(Side::Requester, Code::Cancelled, reason);
        }
    }
}

impl fmt::Debug for OpenedRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedRelay").field("info", self.info()).finish_non_exhaustive()
    }
}

/// Cuts a relay from outside, for instance when the token it was opened with is revoked.
///
/// Does not keep the relay alive and may outlive it.
#[derive(Clone)]
pub struct AbortHandle(Weak<Shared>);

impl AbortHandle {
    /// Ends both directions with this reason and code at both ends. Returns whether this call did
    /// it; a relay that has ended already is left alone.
    ///
    /// A peer that does not read sees it when it reads again; the bytes that were still to come
    /// are dropped at once, and everything held by the relay is released at once.
    pub fn abort(&self, reason: impl Into<String>, code: Code) -> bool {
        self.abort_as(Side::Gateway, reason.into(), code)
    }

    pub(crate) fn abort_as(&self, side: Side, reason: String, code: Code) -> bool {
        self.0.upgrade().is_some_and(|shared| shared.cut(side, code, reason))
    }

    /// Whether the relay has ended.
    pub fn is_ended(&self) -> bool {
        self.0.upgrade().is_none_or(|shared| shared.is_ended())
    }

    /// What the relay is, and its payload bytes into and out of the sandbox so far.
    pub(crate) fn account(&self) -> Option<(RelayInfo, u64, u64)> {
        let shared = self.0.upgrade()?;
        Some((shared.info.clone(), shared.payload(Way::In), shared.payload(Way::Out)))
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("ended", &self.is_ended()).finish()
    }
}
