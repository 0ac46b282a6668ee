//! The built-in SFTP server: protocol version 3 on standard input and output.
//!
//! Runs in a process of the sandbox, as the agent's user, so that the kernel decides which files a
//! transfer may touch: there is no path check here to get wrong. It is a forked child of the
//! sandbox init and executes nothing, so it needs neither a system `sftp-server` nor a path on
//! which the agent could reach our program. Plain blocking calls in one thread: the client keeps
//! many requests in flight, and replies are gathered while more requests wait.
//!
//! Source: draft-ietf-secsh-filexfer-02, with OpenSSH's argument order for SYMLINK and its
//! extensions `posix-rename`, `hardlink`, `fsync`, `statvfs`, `lsetstat`, `limits` and
//! `expand-path`.

mod files;
mod listing;
mod wire;

use std::io::{self, BufReader, BufWriter, Read, Write};

use files::Files;
use wire::{Fields, Reply};

/// Largest packet either side sends, in bytes: what OpenSSH's server takes. Announced by `limits`.
const MAX_PACKET: usize = 256 * 1024;

/// Largest read or write, in bytes: a packet less its header.
const MAX_TRANSFER: usize = MAX_PACKET - 1024;

/// Bytes gathered in each direction before a system call: one packet, so that several small ones
/// share a call and a large one is not split.
const BUFFER: usize = MAX_PACKET + 4;

/// Serves the client on standard input and output until it goes away; the exit code.
pub(crate) fn serve_standard_streams() -> i32 {
    match serve(&mut io::stdin().lock(), &mut io::stdout().lock()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("postern: sftp: {error}");
            1
        }
    }
}

/// Serves one client until its end of file.
///
/// # Errors
/// When the streams fail or the client sends a packet that is longer than [`MAX_PACKET`] or shorter
/// than its own header: from there on nothing can be understood.
fn serve(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let mut output = BufWriter::with_capacity(BUFFER, output);
    let mut files = Files::default();
    let mut packet = Vec::new();
    while read_packet(&mut input, &mut packet)? {
        let reply = answer(&mut files, &packet);
        output.write_all(&reply)?;
        // While another request waits, its reply can share the write.
        if input.buffer().is_empty() {
            output.flush()?;
        }
    }
    output.flush()
}

/// Reads one packet; false at the end of the input.
fn read_packet(input: &mut impl Read, packet: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes(length) as usize;
    if !(1..=MAX_PACKET).contains(&length) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a packet of {length} bytes is outside 1 to {MAX_PACKET} bytes"),
        ));
    }
    packet.resize(length, 0);
    input.read_exact(packet)?;
    Ok(true)
}

fn answer(files: &mut Files, packet: &[u8]) -> Vec<u8> {
    let (kind, body) = (packet[0], &packet[1..]);
    let mut fields = Fields::new(body);
    if kind == wire::INIT {
        return wire::version();
    }
    // Without an id there is nothing to answer to; 0 is what OpenSSH's server writes then.
    let Ok(id) = fields.u32() else {
        return Reply::status(0, wire::BAD_MESSAGE, "a request without an id");
    };
    files.handle(kind, id, &mut fields).unwrap_or_else(|refused| refused.into_reply(id))
}

#[cfg(test)]
mod tests;
