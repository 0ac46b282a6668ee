//! Names that end up in paths, and the one secret that a driver handles.

use std::fmt;

use zeroize::Zeroizing;

/// Longest sandbox id a driver accepts, in bytes.
///
/// Ids become directory names, labels and parts of socket paths; gateway-made ids are UUIDs of 36
/// bytes, and 128 leaves room for other gateways while staying below every file system's 255.
pub const MAX_SANDBOX_ID_BYTES: usize = 128;

/// Why a sandbox id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSandboxId {
    /// The id was empty.
    #[error("sandbox id is empty; give the id the gateway made")]
    Empty,
    /// The id was longer than [`MAX_SANDBOX_ID_BYTES`].
    #[error("sandbox id has {bytes} bytes, at most {MAX_SANDBOX_ID_BYTES} are allowed")]
    TooLong {
        /// Length of the refused id in bytes.
        bytes: usize,
    },
    /// The id holds a character outside `[A-Za-z0-9._-]`.
    #[error("sandbox id has {character:?} at byte {position}; use only A-Z a-z 0-9 . _ -")]
    Character {
        /// The first character that is not allowed.
        character: char,
        /// Where it stands, in bytes from the start.
        position: usize,
    },
    /// The id begins with a dot, so it could name a parent or a hidden directory.
    #[error("sandbox id begins with a dot; begin with a letter or a digit")]
    LeadingDot,
}

/// Checks that `id` is safe as one path component on every runtime: 1 to
/// [`MAX_SANDBOX_ID_BYTES`] bytes of `[A-Za-z0-9._-]`, not beginning with a dot.
///
/// # Errors
/// Says which rule was broken; the text never repeats the whole id.
pub fn check_sandbox_id(id: &str) -> Result<(), InvalidSandboxId> {
    if id.is_empty() {
        return Err(InvalidSandboxId::Empty);
    }
    if id.len() > MAX_SANDBOX_ID_BYTES {
        return Err(InvalidSandboxId::TooLong { bytes: id.len() });
    }
    if let Some((position, character)) = id
        .char_indices()
        .find(|(_, c)| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
    {
        return Err(InvalidSandboxId::Character { character, position });
    }
    if id.starts_with('.') {
        return Err(InvalidSandboxId::LeadingDot);
    }
    Ok(())
}

/// The credential with which a sandbox's supervisor proves which sandbox it is.
///
/// Wiped from memory when dropped; `Debug` shows a mask. There is no `Display`.
#[derive(Clone)]
pub struct SandboxToken(Zeroizing<String>);

impl SandboxToken {
    /// Takes over the text of a token as the gateway minted it.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself, to hand to the supervisor and to nobody else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is no text at all, which means that the gateway gave no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// === impl SandboxToken ===

impl fmt::Debug for SandboxToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SandboxToken(***)")
    }
}

impl From<String> for SandboxToken {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_ids_pass() {
        for id in ["a", "0192f0c1-77aa-7000-8000-000000000001", "A.b_c-9"] {
            assert_eq!(check_sandbox_id(id), Ok(()), "{id}");
        }
        assert_eq!(check_sandbox_id(&"x".repeat(128)), Ok(()));
    }

    #[test]
    fn ids_that_could_leave_a_directory_are_refused() {
        assert_eq!(check_sandbox_id(""), Err(InvalidSandboxId::Empty));
        assert_eq!(check_sandbox_id(".."), Err(InvalidSandboxId::LeadingDot));
        for id in ["../x", "a/b", "a\0b", "a b", "ä", "a\n"] {
            assert!(
                matches!(check_sandbox_id(id), Err(InvalidSandboxId::Character { .. })),
                "{id:?}"
            );
        }
        assert_eq!(
            check_sandbox_id(&"x".repeat(129)),
            Err(InvalidSandboxId::TooLong { bytes: 129 })
        );
    }

    #[test]
    fn a_token_does_not_show_in_debug() {
        let token = SandboxToken::new("very-secret".into());
        assert!(!format!("{token:?}").contains("very"));
        assert_eq!(token.expose(), "very-secret");
    }
}
