//! Who: users, sessions, processes and the files they run.

use std::borrow::Cow;

use serde::Serialize;

use super::{text_setters, value_setters};
use crate::ocsf::text::{MAX_ENTRIES, MAX_NAME_BYTES, MAX_URL_BYTES, Text, clip};
use crate::ocsf::vocabulary::{Numbered, vocabulary};

/// Most ancestors kept of a process: enough to tell a shell in a shell in an agent apart, small enough to bound the event.
pub(crate) const MAX_ANCESTORS: usize = 4;

/// Size of a SHA-256 digest in hexadecimal digits.
const SHA256_HEX: usize = 64;

vocabulary! {
    /// What sort of account a user is (`type_id`).
    UserKind {
        /// Not known.
        Unknown = 0, "Unknown";
        /// A person.
        User = 1, "User";
        /// A person or account with every right.
        Admin = 2, "Admin";
        /// An account of the operating system.
        System = 3, "System";
        /// A program that acts for itself, such as a sandbox.
        Service = 4, "Service";
    }
}

/// An account (`user`). Always has a name or an identifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct User {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    type_id: Option<u8>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    type_label: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential_uid: Option<Text>,
}

impl User {
    /// A user of that name.
    #[must_use]
    pub fn named(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: Some(clip(name, MAX_NAME_BYTES)),
            uid: None,
            type_id: None,
            type_label: None,
            domain: None,
            credential_uid: None,
        }
    }

    /// Somebody nothing is known of, where the schema insists on a user.
    #[must_use]
    pub fn unknown() -> Self {
        Self::named("unknown").kind(UserKind::Unknown)
    }

    /// What sort of account it is.
    #[must_use]
    pub fn kind(mut self, kind: UserKind) -> Self {
        self.type_id = Some(kind.id());
        self.type_label = Some(kind.label());
        self
    }

    text_setters! {
        /// Its stable identifier, such as a token's subject.
        uid, MAX_NAME_BYTES;
        /// Where the account is defined, such as a token's issuer.
        domain, MAX_NAME_BYTES;
        /// Which credential was used: a key id or a fingerprint, never the credential.
        credential_uid, MAX_NAME_BYTES;
    }

    pub(crate) fn shown(&self) -> &str {
        self.name.as_deref().or(self.uid.as_deref()).unwrap_or("unknown")
    }
}

/// A logged-in session of a user (`session`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Session {
    uid: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_remote: Option<bool>,
}

impl Session {
    /// A session with that identifier.
    #[must_use]
    pub fn new(uid: impl Into<Cow<'static, str>>) -> Self {
        Self {
            uid: clip(uid, MAX_NAME_BYTES),
            issuer: None,
            created_time: None,
            expiration_time: None,
            is_remote: None,
        }
    }

    text_setters! {
        /// Who vouches for it.
        issuer, MAX_NAME_BYTES;
    }

    value_setters! {
        /// When it began, in milliseconds since 1970.
        created_time: i64;
        /// When it ends, in milliseconds since 1970.
        expiration_time: i64;
        /// Whether it came over the network.
        is_remote: bool;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Fingerprint {
    algorithm_id: u8,
    algorithm: &'static str,
    value: Text,
}

const SHA256: Numbered = (3, "SHA-256");

fn sha256(digest: impl Into<Cow<'static, str>>) -> Vec<Fingerprint> {
    let (algorithm_id, algorithm) = SHA256;
    vec![Fingerprint { algorithm_id, algorithm, value: clip(digest, SHA256_HEX) }]
}

/// A file that a process runs (`file`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct File {
    name: Text,
    type_id: u8,
    r#type: &'static str,
    path: Text,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Fingerprint>,
}

impl File {
    /// An executable at that path.
    #[must_use]
    pub fn executable(path: impl Into<Cow<'static, str>>) -> Self {
        let path = path.into();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        Self {
            name: clip(name, MAX_NAME_BYTES),
            type_id: 8,
            r#type: "Executable File",
            path: clip(path, MAX_URL_BYTES),
            hashes: Vec::new(),
        }
    }

    /// Its SHA-256 digest, as 64 hexadecimal digits.
    #[must_use]
    pub fn sha256(mut self, digest: impl Into<Cow<'static, str>>) -> Self {
        self.hashes = sha256(digest);
        self
    }
}

/// A process (`process`), known by its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd_line: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<File>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_time: Option<i64>,
    #[serde(rename = "parent_process", skip_serializing_if = "Option::is_none")]
    parent: Option<Box<Process>>,
}

impl Process {
    /// The process with that number.
    #[must_use]
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            name: None,
            cmd_line: None,
            file: None,
            user: None,
            created_time: None,
            parent: None,
        }
    }

    text_setters! {
        /// Its name or the path of its binary.
        name, MAX_NAME_BYTES;
        /// Its command line. It may hold secrets: mask them before they get here.
        cmd_line, MAX_URL_BYTES;
    }

    value_setters! {
        /// The file it runs.
        file: File;
        /// The account it runs as.
        user: User;
        /// When it was started, in milliseconds since 1970.
        created_time: i64;
    }

    /// The process that started it. Ancestors beyond the fourth are left out.
    #[must_use]
    pub fn parent(mut self, parent: Process) -> Self {
        self.parent = Some(Box::new(parent));
        let mut last = &mut self;
        for _ in 0..MAX_ANCESTORS {
            match last.parent {
                Some(ref mut next) => last = next,
                None => return self,
            }
        }
        last.parent = None;
        self
    }

    /// The process without its ancestors, for places where several are listed.
    pub(crate) fn alone(mut self) -> Self {
        self.parent = None;
        self
    }

    pub(crate) fn shown(&self) -> (Option<&str>, u32) {
        let path = || self.file.as_ref().map(|file| file.path.as_ref());
        (self.name.as_deref().or_else(path), self.pid)
    }

    pub(crate) fn shown_command(&self) -> Option<&str> {
        self.cmd_line.as_deref()
    }
}

/// Who did it (`actor`). Always says at least one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Actor {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Box<User>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Box<Process>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<Box<Session>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_name: Option<Text>,
}

impl Actor {
    const EMPTY: Self = Self { user: None, process: None, session: None, app_name: None };

    /// A user.
    #[must_use]
    pub fn user(user: User) -> Self {
        Self { user: Some(Box::new(user)), ..Self::EMPTY }
    }

    /// A process.
    #[must_use]
    pub fn process(process: Process) -> Self {
        Self { process: Some(Box::new(process)), ..Self::EMPTY }
    }

    /// A program known by name only.
    #[must_use]
    pub fn app(name: impl Into<Cow<'static, str>>) -> Self {
        Self { app_name: Some(clip(name, MAX_NAME_BYTES)), ..Self::EMPTY }
    }

    /// Somebody nothing is known of, where the schema insists on an actor.
    #[must_use]
    pub fn unknown() -> Self {
        Self::user(User::unknown())
    }

    /// The session in which it was done.
    #[must_use]
    pub fn session(mut self, session: Session) -> Self {
        self.session = Some(Box::new(session));
        self
    }

    /// The user on whose behalf it was done.
    #[must_use]
    pub fn on_behalf_of(mut self, user: User) -> Self {
        self.user = Some(Box::new(user));
        self
    }

    /// The actor without the ancestors of its process.
    pub(crate) fn alone(mut self) -> Self {
        self.process = self.process.map(|process| Box::new(process.alone()));
        self
    }

    pub(crate) fn shown_process(&self) -> Option<&Process> {
        self.process.as_deref()
    }

    pub(crate) fn shown_user(&self) -> Option<&User> {
        self.user.as_deref()
    }

    pub(crate) fn shown_app(&self) -> Option<&str> {
        self.app_name.as_deref()
    }
}

/// A certificate that was presented (`certificate`): what identifies it, never a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    issuer: Text,
    serial_number: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration_time: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fingerprints: Vec<Fingerprint>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sans: Vec<AltName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct AltName {
    name: Text,
    r#type: &'static str,
}

impl Certificate {
    /// A certificate by issuer and serial number, both as text.
    #[must_use]
    pub fn new(
        issuer: impl Into<Cow<'static, str>>,
        serial_number: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            issuer: clip(issuer, MAX_NAME_BYTES),
            serial_number: clip(serial_number, MAX_NAME_BYTES),
            subject: None,
            expiration_time: None,
            fingerprints: Vec::new(),
            sans: Vec::new(),
        }
    }

    text_setters! {
        /// Its subject.
        subject, MAX_NAME_BYTES;
    }

    value_setters! {
        /// When it ends, in milliseconds since 1970.
        expiration_time: i64;
    }

    /// Its SHA-256 digest, as 64 hexadecimal digits.
    #[must_use]
    pub fn sha256(mut self, digest: impl Into<Cow<'static, str>>) -> Self {
        self.fingerprints = sha256(digest);
        self
    }

    /// A DNS name it is for. Names beyond the thirty-second are left out.
    #[must_use]
    pub fn dns_name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        if self.sans.len() < MAX_ENTRIES {
            self.sans.push(AltName { name: clip(name, MAX_NAME_BYTES), r#type: "DNS" });
        }
        self
    }
}
