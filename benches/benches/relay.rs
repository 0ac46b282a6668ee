//! What the parts of the relay path cost by themselves: no socket, no HTTP/2, one core.
//!
//! `codec/*` and `splice/step` are per chunk: divide by the size for the cost of a byte. `splice/step` minus
//! `codec/scan` is what joining two bodies costs beside looking at the frames. `registry/*` are whole operations,
//! alone and among ten thousand other sandboxes.

use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut as _, Bytes};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use http_body::{Body, Frame};
use postern_proto::v1::SessionAccepted;
use postern_proto::v1::gateway_message::Payload;
use postern_relay::frame::{Decoder, Encoder, HEADROOM, MAX_MESSAGE, Scanner, header};
use postern_relay::registry::{
    ClaimTicket, Claimant, Config, OpenRelay, Registration, Registry, SessionPeer, Target,
};
use postern_relay::splice::OpenedRelay;

/// A keystroke, an echo, an HTTP/2 default frame, one socket read, the largest chunk that pays.
const SIZES: [usize; 5] = [1, 32, 16 << 10, 64 << 10, 256 << 10];

fn framed(payload: usize) -> Bytes {
    let (bytes, length) = header(payload);
    let mut frame = bytes[HEADROOM - length..].to_vec();
    frame.resize(length + payload, 7);
    frame.into()
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for size in SIZES {
        let frame = framed(size);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::new("scan", size), &frame, |bencher, frame| {
            let mut scanner = Scanner::new(MAX_MESSAGE);
            bencher.iter(|| scanner.scan(black_box(frame)));
        });
        group.bench_with_input(BenchmarkId::new("decode", size), &frame, |bencher, frame| {
            let mut decoder = Decoder::new(MAX_MESSAGE);
            bencher.iter(|| {
                decoder.feed(frame.clone());
                while let Ok(Some(payload)) = decoder.next_payload() {
                    black_box(payload);
                }
            });
        });
        let payload = vec![7; size];
        // The copy stands for the read of the socket, which writes the payload once too.
        group.bench_with_input(BenchmarkId::new("encode", size), &payload, |bencher, payload| {
            let mut encoder = Encoder::new(size);
            bencher.iter(|| {
                encoder.unfilled().put_slice(payload);
                black_box(encoder.take_frame())
            });
        });
    }
    group.finish();
}

/// A body that always has the same next chunk.
struct Endless(Bytes);

impl Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(Ok(Frame::data(self.0.clone()))))
    }
}

fn register(registry: &Registry, sandbox: &str) -> Registration {
    let peer = SessionPeer {
        sandbox_id: sandbox.into(),
        instance_id: "instance".into(),
        speaks_postern: true,
    };
    registry
        .register(peer, |id| SessionAccepted { session_id: id.to_string(), ..Default::default() })
        .expect("the registry is open")
}

/// Asks for a relay and claims it, as requester, session loop and supervisor would.
fn open_and_claim(
    registry: &Registry,
    registration: &mut Registration,
    sandbox: &str,
    body: Endless,
) -> (OpenedRelay, ClaimTicket) {
    let request =
        OpenRelay { sandbox_id: sandbox.into(), target: Target::Ssh, service_id: "".into() };
    let mut open = Box::pin(registry.open(request));
    let mut context = Context::from_waker(Waker::noop());
    assert!(open.poll_unpin(&mut context).is_pending(), "nobody has claimed it yet");
    let channel = loop {
        let message = registration.outbound.try_recv().expect("the open was sent");
        if let Some(Payload::RelayOpen(open)) = message.payload {
            break open.channel_id;
        }
    };
    let claimant = Claimant::Sandbox(sandbox.into());
    let ticket = registry.claim(&channel, &claimant, body).expect("is pending");
    let Poll::Ready(Ok(opened)) = open.poll_unpin(&mut context) else {
        panic!("claimed but not open");
    };
    (opened, ticket)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn splice(criterion: &mut Criterion) {
    let runtime = runtime();
    // Opening looks at the clock and sets a timer.
    let _entered = runtime.enter();
    let mut group = criterion.benchmark_group("splice");
    for size in SIZES {
        let registry = Registry::new(Config::default());
        let mut registration = register(&registry, "box");
        let source = Endless(framed(size));
        let (opened, _ticket) =
            open_and_claim(&registry, &mut registration, "box", Endless(framed(size)));
        let mut body = opened.splice(source);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("step", size), |bencher| {
            let mut context = Context::from_waker(Waker::noop());
            bencher.iter(|| black_box(Pin::new(&mut body).poll_frame(&mut context)).is_ready());
        });
    }
    group.finish();
}

fn registry(criterion: &mut Criterion) {
    let runtime = runtime();
    let _entered = runtime.enter();
    let mut group = criterion.benchmark_group("registry");
    for others in [0_u32, 10_000] {
        let registry = Registry::new(Config::default());
        let _held: Vec<_> =
            (0..others).map(|n| register(&registry, &format!("other-{n}"))).collect();
        group.bench_function(BenchmarkId::new("register+remove", others), |bencher| {
            bencher.iter(|| {
                let registration = register(&registry, "box");
                registry.remove_if_current("box", registration.session_id)
            });
        });
        let mut registration = register(&registry, "box");
        let chunk = framed(1);
        group.bench_function(BenchmarkId::new("open+claim+end", others), |bencher| {
            bencher.iter(|| {
                let body = Endless(chunk.clone());
                let pair = open_and_claim(&registry, &mut registration, "box", body);
                drop(pair);
                // The end is told to the supervisor; its queue must not fill up.
                while registration.outbound.try_recv().is_ok() {}
            });
        });
        group.bench_function(BenchmarkId::new("current", others), |bencher| {
            bencher.iter(|| registry.current(black_box("box")));
        });
    }
    group.finish();
}

criterion_group!(benches, codec, splice, registry);
criterion_main!(benches);
