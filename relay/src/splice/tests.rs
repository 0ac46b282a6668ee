use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use super::*;
use crate::frame::MAX_MESSAGE;
use crate::registry::{ChannelId, SeededIds, Target};
use crate::testing::{PipeSender, assert_code, framed, next_data, pipe, read_all};

/// Records how the relay ended and whether the supervisor had to be told.
#[derive(Default)]
struct Ends(Mutex<Vec<(RelayEnd, bool)>>);

impl RelayHooks for Ends {
    fn ended(&self, end: &RelayEnd, tell_supervisor: bool) {
        self.0.lock().push((end.clone(), tell_supervisor));
    }
}

struct Bench {
    /// Writes what the supervisor sends.
    supervisor: PipeSender,
    to_supervisor: SplicedBody,
    opened: OpenedRelay,
    abort: AbortHandle,
    ends: Arc<Ends>,
}

fn bench() -> Bench {
    let ends = Arc::new(Ends::default());
    let (supervisor, body) = pipe();
    let info = RelayInfo {
        channel_id: ChannelId::make(&SeededIds::new(1)),
        sandbox_id: "a".into(),
        target: Target::Ssh,
        service_id: "".into(),
        opened_at: tokio::time::Instant::now(),
    };
    let hooks = Arc::clone(&ends) as Arc<dyn RelayHooks>;
    let (to_supervisor, opened, abort) = join(info, crate::body::boxed(body), MAX_MESSAGE, hooks);
    Bench { supervisor, to_supervisor, opened, abort, ends }
}

impl Ends {
    fn only(&self) -> (RelayEnd, bool) {
        let ends = self.0.lock();
        assert_eq!(ends.len(), 1, "{ends:?}");
        ends[0].clone()
    }
}

#[tokio::test]
async fn bytes_pass_untouched_and_without_copies() {
    let Bench { supervisor, mut to_supervisor, opened, ends, .. } = bench();
    let (client, body) = pipe();
    let mut to_client = opened.splice(body);
    let sent = framed(b"hello");
    client.send(Ok(sent.clone())).await.unwrap();
    let got = next_data(&mut to_supervisor).await;
    assert_eq!((got.as_ptr(), &got), (sent.as_ptr(), &sent));
    let sent = framed(b"world");
    supervisor.send(Ok(sent.clone())).await.unwrap();
    let got = next_data(&mut to_client).await;
    assert_eq!((got.as_ptr(), &got), (sent.as_ptr(), &sent));
    assert!(ends.0.lock().is_empty());
}

#[tokio::test]
async fn half_close_each_way_leaves_the_other_going() {
    for client_first in [true, false] {
        let Bench { supervisor, to_supervisor, opened, ends, .. } = bench();
        let (client, body) = pipe();
        let to_client = opened.splice(body);
        let (first, second, first_out, second_out) = if client_first {
            (client, supervisor, to_supervisor, to_client)
        } else {
            (supervisor, client, to_client, to_supervisor)
        };
        drop(first);
        let (_, status) = read_all(first_out).await;
        assert_code(&status, Code::Ok);
        second.send(Ok(framed(b"still here"))).await.unwrap();
        drop(second);
        let (bytes, status) = read_all(second_out).await;
        assert_code(&status, Code::Ok);
        assert_eq!(bytes, framed(b"still here"));
        let (end, tell) = ends.only();
        assert_eq!(end.kind, EndKind::Clean);
        assert_eq!(end.ended_by, if client_first { Side::Requester } else { Side::Supervisor });
        assert!(!tell);
    }
}

#[tokio::test]
async fn a_reset_on_either_side_is_an_error_at_both_and_never_end_of_file() {
    for client_fails in [true, false] {
        let Bench { supervisor, to_supervisor, opened, ends, .. } = bench();
        let (client, body) = pipe();
        let to_client = opened.splice(body);
        let failing = if client_fails { &client } else { &supervisor };
        failing.send(Err("connection reset".into())).await.unwrap();
        // Both directions are polled by tasks of their own, as servers do.
        let to_client = tokio::spawn(read_all(to_client));
        let to_supervisor = tokio::spawn(read_all(to_supervisor));
        for body in [to_client, to_supervisor] {
            let (_, status) = body.await.unwrap();
            assert_code(&status, Code::Unavailable);
        }
        let (end, tell) = ends.only();
        let by = if client_fails { Side::Requester } else { Side::Supervisor };
        assert_eq!((end.ended_by, tell), (by, client_fails));
    }
}

#[tokio::test]
async fn a_malformed_frame_ends_the_relay_with_invalid_argument() {
    let Bench { supervisor, to_supervisor, opened, ends, .. } = bench();
    let (client, body) = pipe();
    let to_client = opened.splice(body);
    client.send(Ok(b"\x00\x00\x00\x00\x03\x0a\x01\x00".to_vec().into())).await.unwrap();
    let (bytes, status) = read_all(to_supervisor).await;
    assert_code(&status, Code::InvalidArgument);
    assert!(bytes.is_empty(), "nothing malformed is passed on");
    let (_, status) = read_all(to_client).await;
    assert_code(&status, Code::InvalidArgument);
    assert!(status.message().contains("requester sent a bad frame"), "{}", status.message());
    assert!(ends.only().1, "the supervisor is told");
    drop(supervisor);
}

#[tokio::test]
async fn a_stream_cut_inside_a_frame_is_malformed() {
    let Bench { supervisor, to_supervisor, opened, .. } = bench();
    let (_client, body) = pipe();
    let to_client = opened.splice(body);
    supervisor.send(Ok(framed(b"hello").slice(..8))).await.unwrap();
    drop(supervisor);
    let (_, status) = read_all(to_client).await;
    assert_code(&status, Code::InvalidArgument);
    let (_, status) = read_all(to_supervisor).await;
    assert_code(&status, Code::InvalidArgument);
}

#[tokio::test]
async fn abort_cuts_both_sources_at_once_and_only_once() {
    let Bench { to_supervisor, opened, abort, ends, .. } = bench();
    let (_client, body) = pipe();
    let drops = body.drops();
    let to_client = opened.splice(body);
    assert!(!abort.is_ended());
    assert!(abort.abort("token revoked", Code::PermissionDenied));
    // Nobody polled; the source and what it held are gone all the same.
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    assert_eq!(ends.only().0.ended_by, Side::Gateway);
    assert!(!abort.abort("again", Code::Aborted) && abort.is_ended());
    for body in [to_client, to_supervisor] {
        let (_, status) = read_all(body).await;
        assert_code(&status, Code::PermissionDenied);
        assert_eq!(status.message(), "token revoked");
    }
    assert_eq!(ends.0.lock().len(), 1);
}

#[tokio::test]
async fn abort_wakes_pollers_that_wait() {
    let Bench { to_supervisor, opened, abort, supervisor: _supervisor, .. } = bench();
    let (_client, body) = pipe();
    let to_client = tokio::spawn(read_all(opened.splice(body)));
    let to_supervisor = tokio::spawn(read_all(to_supervisor));
    tokio::task::yield_now().await;
    abort.abort("drained", Code::Unavailable);
    for body in [to_client, to_supervisor] {
        let (_, status) = body.await.unwrap();
        assert_code(&status, Code::Unavailable);
    }
}

#[tokio::test]
async fn abort_after_a_clean_end_changes_nothing() {
    let Bench { supervisor, to_supervisor, opened, abort, ends } = bench();
    let (client, body) = pipe();
    let to_client = opened.splice(body);
    drop((client, supervisor));
    read_all(to_client).await;
    read_all(to_supervisor).await;
    assert!(!abort.abort("late", Code::Aborted));
    assert_eq!(ends.only().0.kind, EndKind::Clean);
}

#[tokio::test]
async fn an_opened_relay_that_is_dropped_tells_the_supervisor() {
    let Bench { to_supervisor, opened, ends, .. } = bench();
    drop(opened);
    let (_, status) = read_all(to_supervisor).await;
    assert_code(&status, Code::Cancelled);
    assert!(ends.only().1);
}

#[tokio::test]
async fn either_body_dropped_early_cuts_the_relay() {
    let Bench { to_supervisor, opened, ends, .. } = bench();
    let (_client, body) = pipe();
    let to_client = opened.splice(body);
    drop(to_supervisor);
    let (_, status) = read_all(to_client).await;
    assert_code(&status, Code::Unavailable);
    let (end, tell) = ends.only();
    assert_eq!((end.ended_by, tell), (Side::Supervisor, false));
}

#[tokio::test]
async fn reasons_are_cut_to_a_bounded_length_between_characters() {
    let Bench { to_supervisor, abort, opened, .. } = bench();
    abort.abort("é".repeat(5000), Code::Aborted);
    let (_, status) = read_all(to_supervisor).await;
    assert_eq!(status.message().len(), 1024);
    drop(opened);
}

#[tokio::test]
async fn io_reads_and_writes_the_relay() {
    let Bench { supervisor, mut to_supervisor, opened, ends, .. } = bench();
    let mut io = opened.into_io();
    supervisor.send(Ok([framed(b"one "), framed(b"two")].concat().into())).await.unwrap();
    let mut got = [0; 7];
    io.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"one two");
    io.write_all(b"a").await.unwrap();
    io.write_all(b"bc").await.unwrap();
    // Writes that waited leave in one frame.
    assert_eq!(next_data(&mut to_supervisor).await, framed(b"abc"));
    io.shutdown().await.unwrap();
    assert!(io.write_all(b"x").await.is_err());
    let (_, status) = read_all(to_supervisor).await;
    assert_code(&status, Code::Ok);
    // Half closed: reading goes on.
    supervisor.send(Ok(framed(b"tail"))).await.unwrap();
    drop(supervisor);
    let mut rest = Vec::new();
    io.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"tail");
    let (end, _) = ends.only();
    assert_eq!((end.bytes_to_sandbox, end.bytes_from_sandbox), (3, 11));
    assert_eq!(end.kind, EndKind::Clean);
}

#[tokio::test]
async fn io_gives_owned_bytes_without_copying() {
    let Bench { supervisor, opened, to_supervisor, .. } = bench();
    let mut io = opened.into_io();
    let sent = framed(b"payload");
    let at = sent.as_ptr() as usize + sent.len() - 7;
    supervisor.send(Ok(sent)).await.unwrap();
    let got = std::future::poll_fn(|cx| io.poll_read_bytes(cx)).await.unwrap().unwrap();
    assert_eq!((got.as_ptr() as usize, got.as_ref()), (at, b"payload".as_slice()));
    drop(to_supervisor);
}

#[tokio::test]
async fn a_writer_stalls_when_the_supervisor_does_not_read() {
    let Bench { mut to_supervisor, opened, supervisor: _supervisor, .. } = bench();
    let mut io = opened.into_io();
    let mut taken = 0;
    let chunk = [0; 8192];
    loop {
        let write = io.write(&chunk);
        match futures_util::poll!(Box::pin(write)) {
            std::task::Poll::Ready(n) => taken += n.unwrap(),
            std::task::Poll::Pending => break,
        }
    }
    assert_eq!(taken, WRITE_BUFFER, "bytes held for a reader that does not read");
    // And goes on as soon as it reads.
    let writer = tokio::spawn(async move {
        io.write_all(&[1; 8192]).await.unwrap();
        io
    });
    let frame = next_data(&mut to_supervisor).await;
    assert!(frame.len() >= WRITE_BUFFER);
    let io = writer.await.unwrap();
    drop(io);
}

#[tokio::test]
async fn a_cut_fails_waiting_reads_and_writes_with_its_reason() {
    let Bench { opened, abort, supervisor: _supervisor, to_supervisor: _to, .. } = bench();
    let io = opened.into_io();
    let (mut reader, mut writer) = tokio::io::split(io);
    let reading = tokio::spawn(async move { reader.read_u8().await.unwrap_err() });
    let writing = tokio::spawn(async move {
        loop {
            if let Err(error) = writer.write_all(&[0; 65536]).await {
                return error;
            }
        }
    });
    tokio::task::yield_now().await;
    abort.abort("sandbox stopped", Code::Aborted);
    for task in [reading, writing] {
        let error = task.await.unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let failed = error.get_ref().unwrap().downcast_ref::<RelayFailed>().unwrap();
        assert_eq!((failed.code, failed.reason.as_str()), (Code::Aborted, "sandbox stopped"));
    }
}

#[tokio::test]
async fn io_dropped_or_reset_cuts_the_relay_but_not_after_both_ends() {
    let Bench { to_supervisor, opened, ends, supervisor: _supervisor, .. } = bench();
    drop(opened.into_io());
    let (_, status) = read_all(to_supervisor).await;
    assert_code(&status, Code::Cancelled);
    assert!(ends.only().1);

    let Bench { to_supervisor, opened, supervisor: _supervisor, .. } = bench();
    opened.into_io().reset("timed out", Code::DeadlineExceeded);
    let (_, status) = read_all(to_supervisor).await;
    assert_code(&status, Code::DeadlineExceeded);
    assert_eq!(status.message(), "timed out");

    let Bench { to_supervisor, opened, ends, supervisor, .. } = bench();
    let mut io = opened.into_io();
    io.write_all(b"last words").await.unwrap();
    io.shutdown().await.unwrap();
    drop(supervisor);
    assert_eq!(io.read(&mut [0; 1]).await.unwrap(), 0);
    // What was written before the shutdown still arrives.
    drop(io);
    let (bytes, status) = read_all(to_supervisor).await;
    assert_eq!((bytes, status.code()), (framed(b"last words").to_vec(), Code::Ok));
    assert_eq!(ends.only().0.kind, EndKind::Clean);
}

#[tokio::test(start_paused = true)]
async fn the_account_says_how_long_it_took() {
    let Bench { opened, abort, ends, to_supervisor: _to, supervisor: _supervisor } = bench();
    tokio::time::advance(Duration::from_secs(7)).await;
    abort.abort("enough", Code::Aborted);
    assert_eq!(ends.only().0.duration, Duration::from_secs(7));
    drop(opened);
}

#[test]
fn a_relay_costs_less_than_a_kibibyte_of_its_own() {
    let shared = size_of::<super::joined::Shared>();
    let bodies = 2 * size_of::<SplicedBody>();
    assert!(shared + bodies <= 1024, "{shared} shared, {bodies} in bodies");
}
