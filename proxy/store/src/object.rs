//! What is stored, and what a write expects.

use std::{collections::BTreeMap, fmt};

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// A sandbox record.
    Sandbox,
    /// An SSH session of a user into a sandbox; holds the digest of its token, never the token.
    SshSession,
}

impl Kind {
    /// The spelling on disk, which must never change.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::SshSession => "ssh_session",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sandbox => "sandbox",
            Self::SshSession => "ssh session",
        })
    }
}

/// An object as it is to be written.
#[derive(Clone, PartialEq, Eq)]
pub struct NewObject {
    /// Never changes and is never reused.
    pub id: String,
    /// The workspace that the name is unique in.
    pub workspace: String,
    /// Unique among the objects of its kind in its workspace.
    pub name: String,
    /// What lists select by.
    pub labels: BTreeMap<String, String>,
    /// The object itself, in the encoding of its owner. At most [`MAX_PAYLOAD`](crate::MAX_PAYLOAD) bytes.
    pub payload: Vec<u8>,
}

impl NewObject {
    /// An object without labels.
    pub fn new(
        id: impl Into<String>,
        workspace: impl Into<String>,
        name: impl Into<String>,
        payload: Vec<u8>,
    ) -> Self {
        Self {
            id: id.into(),
            workspace: workspace.into(),
            name: name.into(),
            labels: BTreeMap::new(),
            payload,
        }
    }

    /// The same object with these labels.
    #[must_use]
    pub fn with_labels(mut self, labels: impl IntoIterator<Item = (String, String)>) -> Self {
        self.labels = labels.into_iter().collect();
        self
    }
}

/// An object as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// See [`NewObject::id`].
    pub id: String,
    /// See [`NewObject::workspace`].
    pub workspace: String,
    /// See [`NewObject::name`].
    pub name: String,
    /// See [`NewObject::labels`].
    pub labels: BTreeMap<String, String>,
    /// Starts at 1 and grows by 1 with each write.
    pub version: u64,
    /// When the object was first written, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// See [`NewObject::payload`].
    pub payload: Vec<u8>,
}

// A payload may hold what must not be printed, so both types show only its size.
impl fmt::Debug for NewObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewObject")
            .field("id", &self.id)
            .field("workspace", &self.workspace)
            .field("name", &self.name)
            .field("labels", &self.labels)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

impl fmt::Debug for StoredObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredObject")
            .field("id", &self.id)
            .field("workspace", &self.workspace)
            .field("name", &self.name)
            .field("labels", &self.labels)
            .field("version", &self.version)
            .field("created_at_ms", &self.created_at_ms)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// What a write expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing with this id or name.
    MustCreate,
    /// The object at exactly this version.
    Version(u64),
}

/// Names one request of one caller, so that its repetition can be recognised.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// Who asked.
    pub subject: String,
    /// The full name of the method.
    pub method: String,
    /// The workspace it was asked in.
    pub workspace: String,
    /// The id that the caller chose.
    pub request_id: String,
}

/// What the store knew of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// Nothing: it is remembered from now on.
    New,
    /// The same request was answered with this object.
    Same {
        /// The id of the object.
        result_id: String,
    },
    /// The id was used for a request with another content.
    Different,
}
