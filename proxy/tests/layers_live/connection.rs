//! The connection plane: sockets before there is a request.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::gateway::{File, Gateway, soon};

async fn socket(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.running.address()).await.unwrap()
}

/// Asks over HTTP/1.1 for a page that is not there. Whether there was an answer.
async fn is_served(socket: &mut TcpStream) -> bool {
    if socket.write_all(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n").await.is_err() {
        return false;
    }
    let mut start = [0; 12];
    let read = soon("an answer or the end", socket.read_exact(&mut start)).await;
    read.is_ok() && &start == b"HTTP/1.1 404"
}

/// How many connections are served at the same time.
async fn served_at_once(file: &File, tried: usize) -> usize {
    let gateway = file.start().await;
    let mut open = Vec::new();
    for _ in 0..tried {
        let mut socket = socket(&gateway).await;
        if is_served(&mut socket).await {
            open.push(socket);
        }
    }
    open.len()
}

#[tokio::test]
async fn connection_cap_bounds_connections() {
    let capped = |total| {
        File::default().table("connection_cap", &format!("total = {total}\nper_peer = {total}"))
    };
    assert_eq!(served_at_once(&capped(2), 6).await, 2);
    assert_eq!(served_at_once(&capped(4), 6).await, 4);
    assert_eq!(
        served_at_once(&File::default().without("connection", "connection_cap"), 6).await,
        6
    );
}

#[tokio::test]
async fn connection_cap_counts_peers_apart_and_gives_places_back() {
    let gateway = File::default().table("connection_cap", "total = 10\nper_peer = 1").start().await;
    let mut one = socket(&gateway).await;
    assert!(is_served(&mut one).await);
    let mut refused = socket(&gateway).await;
    assert!(!is_served(&mut refused).await);
    // Another address of the same machine is another peer.
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(gateway.running.address()).await.unwrap();
    assert!(is_served(&mut other).await);
    drop(one);
    let cap = gateway.running.handles().connection.connection_cap.clone().unwrap();
    super::gateway::until("the place is back", async || cap.counts().0 == 1).await;
    assert!(is_served(&mut socket(&gateway).await).await);
    assert_eq!(cap.counts().1, 1, "one connection was refused");
}

/// How long a connection that says nothing is kept.
async fn silence_is_kept(gateway: &Gateway) -> Duration {
    let started = Instant::now();
    let mut silent = socket(gateway).await;
    let ended = soon("the end", silent.read(&mut [0; 64])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    started.elapsed()
}

#[tokio::test]
async fn handshake_deadline_ends_connections_that_say_nothing() {
    for total in [150, 450] {
        let lines = format!("total = \"{total}ms\"");
        let gateway = File::default().table("handshake_deadline", &lines).start().await;
        // A connection that is used is kept beyond it.
        let mut used = socket(&gateway).await;
        assert!(is_served(&mut used).await);
        let total = Duration::from_millis(total);
        let kept = silence_is_kept(&gateway).await;
        assert!(kept >= total, "{kept:?} of {total:?}");
        let gone = used.try_read(&mut [0; 1024]);
        assert!(!matches!(gone, Ok(0)), "a connection in use was ended");
    }
}

#[tokio::test]
async fn without_handshake_deadline_silence_is_kept() {
    let gateway = File::default().without("connection", "handshake_deadline").start().await;
    let mut silent = socket(&gateway).await;
    // The longest deadline of the test above, and some more.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(is_served(&mut silent).await);
}

/// The HTTP/2 settings that the gateway announces, by their number (RFC 9113, section 6.5.2).
async fn settings(file: &File) -> BTreeMap<u16, u32> {
    const SETTINGS: u8 = 4;
    let gateway = file.start().await;
    let mut socket = socket(&gateway).await;
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    socket.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await.unwrap();
    let mut head = [0; 9];
    soon("a frame", socket.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[3], SETTINGS, "settings come first");
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    soon("the settings", socket.read_exact(&mut payload)).await.unwrap();
    let setting = |entry: &[u8]| {
        let value = entry[2..].try_into().unwrap();
        (u16::from_be_bytes([entry[0], entry[1]]), u32::from_be_bytes(value))
    };
    payload.chunks_exact(6).map(setting).collect()
}

#[tokio::test]
async fn h2_window_is_what_the_gateway_announces() {
    const MAX_STREAMS: u16 = 3;
    const WINDOW: u16 = 4;
    const MAX_FRAME: u16 = 5;
    const HEADER_LIST: u16 = 6;
    let all = [MAX_STREAMS, WINDOW, MAX_FRAME, HEADER_LIST];
    let values = |found: BTreeMap<u16, u32>| all.map(|number| found.get(&number).copied());
    let default = postern_layers::h2_window::Config::default();
    let announced = values(settings(&File::default()).await);
    assert_eq!(announced[0], Some(default.max_streams));
    assert_eq!(announced[1], Some(default.stream));

    let lines = "stream = \"96KiB\"\nconnection = \"192KiB\"\nmax_streams = 17\n\
                 max_frame = \"32KiB\"\nmax_header_list = \"5KiB\"";
    let retuned = values(settings(&File::default().table("h2_window", lines)).await);
    assert_eq!(retuned, [Some(17), Some(96 * 1024), Some(32 * 1024), Some(5 * 1024)]);

    // Then the numbers are hyper's.
    let removed = values(settings(&File::default().without("connection", "h2_window")).await);
    assert_ne!(removed[..2], announced[..2]);
    assert_ne!(removed, retuned);
}
