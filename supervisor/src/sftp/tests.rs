use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::*;

/// Builds requests and reads replies the way a client would.
#[derive(Default)]
struct Client {
    requests: Vec<u8>,
}

impl Client {
    fn send(&mut self, kind: u8, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.requests.extend((length as u32 + 1).to_be_bytes());
        self.requests.push(kind);
        for part in parts {
            self.requests.extend(*part);
        }
    }

    fn run(&self) -> Vec<(u8, Vec<u8>)> {
        let mut output = Vec::new();
        serve(&mut self.requests.as_slice(), &mut output).unwrap();
        let mut replies = Vec::new();
        let mut rest = output.as_slice();
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            replies.push((rest[4], rest[5..4 + length].to_vec()));
            rest = &rest[4 + length..];
        }
        replies
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn path(path: &Path) -> Vec<u8> {
    string(path.as_os_str().as_bytes())
}

fn id(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

fn status_of(reply: &(u8, Vec<u8>)) -> u32 {
    assert_eq!(reply.0, 101, "not a status: {reply:?}");
    u32::from_be_bytes(reply.1[4..8].try_into().unwrap())
}

const NO_ATTRIBUTES: [u8; 4] = [0; 4];

#[test]
fn a_file_is_written_read_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    // A name that is not UTF-8 is still a name.
    let file = directory.path().join(std::ffi::OsStr::from_bytes(b"f\xff"));
    let handle = string(&1_u32.to_be_bytes());
    let offset = 0_u64.to_be_bytes();
    let mut client = Client::default();
    client.send(wire::INIT, &[&3_u32.to_be_bytes()]);
    client
        .send(wire::OPEN, &[&id(1), &path(&file), &(1 | 2 | 8_u32).to_be_bytes(), &NO_ATTRIBUTES]);
    client.send(wire::WRITE, &[&id(2), &handle, &offset, &string(b"hello")]);
    client.send(wire::READ, &[&id(3), &handle, &offset, &100_u32.to_be_bytes()]);
    client.send(wire::READ, &[&id(4), &handle, &5_u64.to_be_bytes(), &100_u32.to_be_bytes()]);
    client.send(wire::CLOSE, &[&id(5), &handle]);
    client.send(wire::CLOSE, &[&id(6), &handle]);
    client.send(wire::REMOVE, &[&id(7), &path(&file)]);
    let replies = client.run();
    assert_eq!(replies[0].0, 2);
    assert_eq!(replies[0].1[..4], 3_u32.to_be_bytes());
    assert_eq!(replies[1], (102, [&id(1)[..], &handle].concat()));
    assert_eq!(status_of(&replies[2]), 0);
    assert_eq!(replies[3], (103, [&id(3)[..], &string(b"hello")].concat()));
    assert_eq!(status_of(&replies[4]), 1);
    assert_eq!(status_of(&replies[5]), 0);
    assert_eq!(status_of(&replies[6]), 4);
    assert_eq!(status_of(&replies[7]), 0);
    assert!(!file.exists());
}

#[test]
fn a_rename_never_replaces_unless_asked_to() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("a"), directory.path().join("b"));
    std::fs::write(&from, "new").unwrap();
    std::fs::write(&to, "old").unwrap();
    let mut client = Client::default();
    client.send(wire::RENAME, &[&id(1), &path(&from), &path(&to)]);
    assert_eq!(status_of(&client.run()[0]), 4);
    assert_eq!(std::fs::read(&to).unwrap(), b"old");
    let mut client = Client::default();
    let extension = string(b"posix-rename@openssh.com");
    client.send(wire::EXTENDED, &[&id(1), &extension, &path(&from), &path(&to)]);
    assert_eq!(status_of(&client.run()[0]), 0);
    assert_eq!(std::fs::read(&to).unwrap(), b"new");
}

#[test]
fn a_long_directory_is_read_in_several_replies() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..300 {
        std::fs::write(directory.path().join(format!("f{number}")), "").unwrap();
    }
    let handle = string(&1_u32.to_be_bytes());
    let mut client = Client::default();
    client.send(wire::OPENDIR, &[&id(1), &path(directory.path())]);
    for number in 2..7 {
        client.send(wire::READDIR, &[&id(number), &handle]);
    }
    let replies = client.run();
    let counts: Vec<u32> = replies
        .iter()
        .filter(|reply| reply.0 == 104)
        .map(|reply| u32::from_be_bytes(reply.1[4..8].try_into().unwrap()))
        .collect();
    assert_eq!(counts.iter().sum::<u32>(), 302);
    assert_eq!(status_of(replies.last().unwrap()), 1);
}

#[test]
fn broken_requests_are_answered_and_do_not_end_the_session() {
    let mut client = Client::default();
    client.send(wire::OPEN, &[&id(1), &1000_u32.to_be_bytes(), b"short"]);
    client.send(wire::READ, &[&id(2), &string(b"not a handle"), &[0; 12]]);
    client.send(99, &[&id(3), &string(b"x")]);
    client.send(wire::STAT, &[&id(4), &string(b"/")]);
    client.send(wire::STAT, &[]);
    let replies = client.run();
    assert_eq!(status_of(&replies[0]), 5);
    assert_eq!(status_of(&replies[1]), 4);
    assert_eq!(status_of(&replies[2]), 8);
    assert_eq!(replies[3].0, 105);
    assert_eq!(status_of(&replies[4]), 5);
}

#[test]
fn an_oversized_packet_ends_the_session() {
    let mut output = Vec::new();
    let error = serve(&mut u32::MAX.to_be_bytes().as_slice(), &mut output).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(output.is_empty());
}

#[test]
fn the_number_of_open_files_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = Client::default();
    for number in 0..600 {
        client.send(wire::OPENDIR, &[&id(number), &path(directory.path())]);
    }
    let opened = client.run().iter().filter(|reply| reply.0 == 102).count();
    assert_eq!(opened, 512);
}
