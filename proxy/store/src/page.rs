//! Lists by pages whose tokens stay good while objects come and go.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{Kind, LabelSelector, StoredObject};

/// What a list shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    /// Only this workspace; `None` means all.
    pub workspace: Option<String>,
    /// Only objects with these labels.
    pub labels: LabelSelector,
    /// Most objects of this page, 1 to [`MAX_PAGE`](crate::MAX_PAGE); what is outside is moved to the nearest.
    pub limit: u32,
    /// Goes on after the page that returned this key.
    pub after: Option<PageKey>,
}

impl Default for ListQuery {
    /// The first page of everything, as large as a page may be.
    fn default() -> Self {
        Self {
            workspace: None,
            labels: LabelSelector::default(),
            limit: crate::MAX_PAGE,
            after: None,
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The objects, oldest first.
    pub objects: Vec<StoredObject>,
    /// Where the next page starts; `None` when this is the last one.
    pub next: Option<PageKey>,
}

/// Where a page starts, bound to the list it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageKey {
    /// The last position of the page before.
    position: u64,
    /// A digest of kind, workspace and selector.
    list: u64,
}

/// A page token that was not made by this store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page token is not one that this gateway gave out; start again without it")]
pub struct InvalidPageToken;

/// First byte of a token, so that its form can change later.
const FORM: u8 = 1;

impl PageKey {
    pub(crate) fn new(position: u64, kind: Kind, query: &ListQuery) -> Self {
        Self { position, list: digest(kind, query) }
    }

    /// The position to go on after, if this key came from the same list.
    pub(crate) fn position_in(self, kind: Kind, query: &ListQuery) -> Option<u64> {
        (self.list == digest(kind, query)).then_some(self.position)
    }

    /// The key as text for a client, opaque and URL-safe.
    #[must_use]
    pub fn to_token(self) -> String {
        let mut bytes = [0; 17];
        bytes[0] = FORM;
        bytes[1..9].copy_from_slice(&self.position.to_be_bytes());
        bytes[9..].copy_from_slice(&self.list.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what [`to_token`](Self::to_token) wrote.
    ///
    /// # Errors
    /// [`InvalidPageToken`] for anything else.
    pub fn from_token(token: &str) -> Result<Self, InvalidPageToken> {
        let mut bytes = [0; 17];
        match URL_SAFE_NO_PAD.decode_slice(token, &mut bytes) {
            Ok(17) if bytes[0] == FORM => {}
            _ => return Err(InvalidPageToken),
        }
        let number = |range: std::ops::Range<usize>| {
            bytes[range].iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte))
        };
        let position = number(1..9);
        // Positions are signed in the database.
        if i64::try_from(position).is_err() {
            return Err(InvalidPageToken);
        }
        Ok(Self { position, list: number(9..17) })
    }
}

/// FNV-1a over what makes two lists the same list. It only has to notice mistakes, not attacks: a forged token can
/// reach nothing that the same call without a token would not list.
fn digest(kind: Kind, query: &ListQuery) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |text: &str| {
        for byte in text.bytes().chain([0xff]) {
            sum = (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(kind.as_str());
    match &query.workspace {
        Some(workspace) => add(workspace),
        None => add("\u{0}all"),
    }
    add(&query.labels.to_string());
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_belongs_to_its_list() {
        let one = ListQuery { workspace: Some("a".into()), ..ListQuery::default() };
        let key = PageKey::new(7, Kind::Sandbox, &one);
        assert_eq!(key.position_in(Kind::Sandbox, &one), Some(7));
        // Another limit is the same list; another workspace, kind or selector is not.
        assert_eq!(key.position_in(Kind::Sandbox, &ListQuery { limit: 3, ..one.clone() }), Some(7));
        assert_eq!(key.position_in(Kind::SshSession, &one), None);
        assert_eq!(
            key.position_in(Kind::Sandbox, &ListQuery { workspace: None, ..one.clone() }),
            None
        );
        let labels = LabelSelector::parse("k=v").unwrap();
        assert_eq!(key.position_in(Kind::Sandbox, &ListQuery { labels, ..one }), None);
    }

    proptest! {
        #[test]
        fn tokens_read_back(position in 0..=i64::MAX as u64, list: u64) {
            let key = PageKey { position, list };
            prop_assert_eq!(PageKey::from_token(&key.to_token()), Ok(key));
        }

        #[test]
        fn other_texts_are_refused_or_read_back(text in "[A-Za-z0-9_=/+-]{0,40}") {
            if let Ok(key) = PageKey::from_token(&text) {
                prop_assert_eq!(key.to_token(), text);
            }
        }
    }
}
