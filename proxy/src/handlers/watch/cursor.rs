//! Where a watcher was, as text that means nothing to it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::call_error::CallError;

/// First byte, so that the form can change later.
const FORM: u8 = 1;
const LENGTH: usize = 25;

/// The next numbers of both rings, and whose rings they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Run of the gateway.
    pub(super) epoch: u64,
    pub(super) next_log: u64,
    pub(super) next_event: u64,
}

impl Cursor {
    pub(super) fn write(self) -> String {
        let mut bytes = [FORM; LENGTH];
        for (place, number) in [(1, self.epoch), (9, self.next_log), (17, self.next_event)] {
            bytes[place..place + 8].copy_from_slice(&number.to_be_bytes());
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what [`Cursor::write`] wrote; the empty text is no cursor.
    pub(super) fn read(text: &str) -> Result<Option<Self>, CallError> {
        if text.is_empty() {
            return Ok(None);
        }
        let mut bytes = [0; LENGTH];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(LENGTH) if bytes[0] == FORM => {}
            _ => {
                let what = "is not one that this gateway gave out; leave it out to begin with the newest lines";
                return Err(CallError::invalid("resume_after_cursor", what));
            }
        }
        let number = |place: usize| {
            bytes[place..place + 8].iter().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte))
        };
        Ok(Some(Self { epoch: number(1), next_log: number(9), next_event: number(17) }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cursors_read_back(epoch: u64, next_log: u64, next_event: u64) {
            let cursor = Cursor { epoch, next_log, next_event };
            prop_assert_eq!(Cursor::read(&cursor.write()).unwrap(), Some(cursor));
        }

        #[test]
        fn other_texts_are_refused(text in "[A-Za-z0-9_=/+-]{1,33}") {
            prop_assert!(Cursor::read(&text).is_err());
        }
    }
}
