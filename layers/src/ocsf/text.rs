//! Bounds and escaping of the text inside an event.
//!
//! Much of what an audit event says was chosen by whoever is being audited: host names, paths, command lines, error texts.
//! Two rules keep that from hurting the log. Every text is clipped when it enters an event, so an event has a known largest
//! size ([`MAX_LINE_BYTES`]); and every text is escaped when it leaves, so that one event is always one line and nothing in
//! it can steer a terminal or forge a neighbouring field (CWE-117).

use std::borrow::Cow;

/// Text as the builders keep it: borrowed where it is a literal, owned otherwise.
pub(crate) type Text = Cow<'static, str>;

/// Largest name (host, user, process, rule, operation), in bytes as JSON writes it. A DNS name has at most 253 bytes
/// (RFC 1035 section 2.3.4) and a Linux file name at most 255, so a real one is never clipped.
pub const MAX_NAME_BYTES: usize = 256;

/// Largest `status_detail` or reason, in bytes as JSON writes it: long enough for one error with its cause.
pub const MAX_DETAIL_BYTES: usize = 512;

/// Largest `message` or description, in bytes as JSON writes it.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// Largest URL, path or command line, in bytes as JSON writes it. RFC 9110 section 4.1 asks servers for URIs of 8000 bytes,
/// but an audit line needs to tell requests apart, not to replay them.
pub const MAX_URL_BYTES: usize = 2048;

/// Most entries of any list or map inside an event; the rest is left out.
pub const MAX_ENTRIES: usize = 32;

/// Largest JSON line any event can become, in bytes without the line end. Follows from the bounds above; a test fills every
/// field of every class to its limit and compares. Sinks size their buffers and files by it.
pub const MAX_LINE_BYTES: usize = 96 * 1024;

/// Largest short line, in bytes without the line end.
pub const MAX_SHORT_BYTES: usize = 16 * 1024;

const ELLIPSIS: &str = "…";

/// Cuts `text` so that JSON needs at most `max` bytes for it, ending it in an ellipsis if anything was cut.
pub(crate) fn clip(text: impl Into<Text>, max: usize) -> Text {
    let text = text.into();
    if text.len() <= max && text.bytes().all(is_plain) {
        return text;
    }
    let mut cost = 0;
    let mut fits = 0;
    for (at, c) in text.char_indices() {
        cost += json_cost(c);
        if cost > max {
            let mut cut = String::with_capacity(fits + ELLIPSIS.len());
            cut.push_str(&text[..fits]);
            cut.push_str(ELLIPSIS);
            return Cow::Owned(cut);
        }
        if cost + ELLIPSIS.len() <= max {
            fits = at + c.len_utf8();
        }
    }
    text
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\'
}

/// Bytes the JSON writer of this module needs for `c`.
fn json_cost(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if is_steering(c) => 6 * c.len_utf16(),
        c => c.len_utf8(),
    }
}

/// True for characters that do not print but change how a terminal, pager or reader shows what stands around them:
/// controls (C0, DEL, C1), line and paragraph separators, zero-width and bidirectional marks (CVE-2021-42574), tags.
pub(crate) fn is_steering(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Where in a short line a text stands, which decides what must be escaped in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The last thing outside brackets: spaces may stay.
    Free,
    /// One of several words: white space would start the next word, so it is escaped.
    Word,
}

/// Appends `text` to a short line: at most `max` characters, line breaks and tabs flattened to one space, everything that
/// could steer a terminal or forge a bracket escaped. The escapes are unambiguous because the backslash is escaped too.
pub(crate) fn push_escaped(out: &mut String, text: &str, max: usize, place: Place) {
    let mut used = 0;
    let mut flattened = false;
    let mut rest = text.chars().peekable();
    let mut piece = String::new();
    while let Some(c) = rest.next() {
        piece.clear();
        let is_break = matches!(
            c,
            '\n' | '\r' | '\t' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        );
        if is_break && place == Place::Free {
            if !flattened {
                piece.push(' ');
            }
        } else {
            escape_char(&mut piece, c, place);
        }
        flattened = is_break;
        let size = piece.chars().count();
        // One place is kept for the ellipsis unless this is the last character.
        let room = if rest.peek().is_some() { max.saturating_sub(1) } else { max };
        if used + size > room {
            out.push_str(ELLIPSIS);
            return;
        }
        used += size;
        out.push_str(&piece);
    }
}

fn escape_char(piece: &mut String, c: char, place: Place) {
    match c {
        '\\' | '[' | ']' => {
            piece.push('\\');
            piece.push(c);
        }
        c if is_steering(c) || (place == Place::Word && c.is_whitespace()) => {
            piece.extend(c.escape_unicode())
        }
        c => piece.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_text_that_fits_is_kept_without_a_copy() {
        assert!(matches!(clip("plain", 5), Cow::Borrowed("plain")));
        assert!(matches!(clip("caf\u{e9}", 5), Cow::Borrowed(_)));
    }

    #[test]
    fn a_long_text_ends_in_an_ellipsis_at_a_character_boundary() {
        assert_eq!(clip("abcdefgh", 7), "abcd…");
        assert_eq!(clip("\u{20ac}\u{20ac}\u{20ac}", 8), "\u{20ac}…");
    }

    #[test]
    fn escapes_count_as_what_they_become() {
        // Three controls are 18 bytes in JSON although they are three bytes here.
        assert_eq!(clip("\u{1}\u{1}\u{1}", 17), "\u{1}\u{1}…");
        assert_eq!(clip("\u{1}\u{1}\u{1}", 18), "\u{1}\u{1}\u{1}");
    }

    #[test]
    fn a_short_line_cannot_be_forged() {
        let mut out = String::new();
        push_escaped(&mut out, "a\r\n\nNET:OPEN [INFO] x]\u{1b}[2J\u{202e}\\", 200, Place::Free);
        assert_eq!(out, "a NET:OPEN \\[INFO\\] x\\]\\u{1b}\\[2J\\u{202e}\\\\");
        let mut word = String::new();
        push_escaped(&mut word, "x -> evil:1", 200, Place::Word);
        assert_eq!(word, "x\\u{20}->\\u{20}evil:1");
    }

    proptest! {
        #[test]
        fn clipped_text_obeys_its_bound(text in ".*", max in 3usize..64) {
            let clipped = clip(text.clone(), max);
            let cost: usize = clipped.chars().map(json_cost).sum();
            prop_assert!(cost <= max);
            let all: usize = text.chars().map(json_cost).sum();
            prop_assert_eq!(all <= max, clipped == text);
        }

        #[test]
        fn escaped_text_is_one_bounded_harmless_line(text in any::<String>(), max in 1usize..64) {
            for place in [Place::Free, Place::Word] {
                let mut out = String::new();
                push_escaped(&mut out, &text, max, place);
                prop_assert!(!out.chars().any(is_steering));
                prop_assert!(out.chars().count() <= max);
                if place == Place::Word {
                    prop_assert!(!out.contains(char::is_whitespace));
                }
            }
        }
    }
}
