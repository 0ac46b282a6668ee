//! Measures a sandbox's SSH server on its socket: the time of a command on a warm connection, and
//! bulk data each way.
//!
//! ```text
//! POSTERN_SANDBOX_DIR=/var/tmp/m/sandboxes/s postern-supervisor --ssh-socket-path /var/tmp/m/ssh.sock &
//! cargo run --release -p postern-supervisor --example measure_ssh -- /var/tmp/m/ssh.sock
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postern_relay::ssh::{ExecEvent, ExecSpec, Options, SshClient};
use tokio::net::UnixStream;

/// Commands before the measured ones, and measured ones.
const WARM_UP: usize = 20;
const COMMANDS: usize = 500;

/// Bytes each way.
const BULK: usize = 1 << 30;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: measure_ssh SOCKET")?;
    let client = SshClient::connect(UnixStream::connect(path).await?, &Options::default()).await?;

    let mut times = Vec::with_capacity(COMMANDS);
    for number in 0..WARM_UP + COMMANDS {
        let start = Instant::now();
        read(&client, "/bin/true").await?;
        if number >= WARM_UP {
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("exec /bin/true: p50 {:?} p99 {:?} of {COMMANDS}", at(0.5), at(0.99));

    let start = Instant::now();
    let count = read(&client, &format!("head -c {BULK} /dev/zero")).await?;
    println!("from the sandbox: {}", rate(count, start.elapsed()));

    let start = Instant::now();
    write(&client, "cat > /dev/null").await?;
    println!("into the sandbox: {}", rate(BULK, start.elapsed()));
    Ok(())
}

fn rate(bytes: usize, time: Duration) -> String {
    format!("{:.0} MB/s", bytes as f64 / time.as_secs_f64() / 1e6)
}

/// Runs a command to its end; the number of bytes it wrote.
async fn read(client: &SshClient, line: &str) -> Result<usize, Box<dyn Error>> {
    let mut channel = client.exec(&spec(line)).await?;
    let mut count = 0;
    while let Some(event) = channel.events.next().await? {
        match event {
            ExecEvent::Stdout(bytes) => count += bytes.len(),
            ExecEvent::Stderr(_) => {}
            ExecEvent::Exit(exit) => assert_eq!(exit.code, 0, "{line}"),
        }
    }
    Ok(count)
}

async fn write(client: &SshClient, line: &str) -> Result<(), Box<dyn Error>> {
    let mut channel = client.exec(&spec(line)).await?;
    let block = Bytes::from(vec![0; 256 * 1024]);
    for _ in 0..BULK / block.len() {
        channel.stdin.write(block.clone()).await?;
    }
    channel.stdin.finish().await?;
    while channel.events.next().await?.is_some() {}
    Ok(())
}

fn spec(line: &str) -> ExecSpec {
    ExecSpec { command: line.to_owned(), ..ExecSpec::default() }
}
