//! The page, put together once, and the policy that lets a browser run this page and nothing else.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use sha2::{Digest as _, Sha256};

const FRAME: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

static HTML: LazyLock<String> =
    LazyLock::new(|| FRAME.replacen("{style}", STYLE, 1).replacen("{script}", SCRIPT, 1));

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        source(STYLE),
        source(SCRIPT)
    );
    HeaderValue::from_str(&policy).expect("base64 and words are visible ASCII")
});

/// The whole page.
pub(super) fn html() -> &'static str {
    &HTML
}

/// Its content security policy: style and script by their hash, requests to this endpoint only.
pub(super) fn policy() -> HeaderValue {
    POLICY.clone()
}

/// A source expression that allows exactly this text (CSP level 3, section 2.3.1).
fn source(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_fetches_nothing_from_elsewhere() {
        let html = html();
        assert!(html.contains(&format!("<style>{STYLE}</style>")));
        assert!(html.contains(&format!("<script>{SCRIPT}</script>")));
        for outside in ["http://", "https://", "//cdn", "@import", "url(", " src=", "innerHTML"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
