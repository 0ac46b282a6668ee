//! Label selectors: which objects a list shows.
//!
//! The syntax is the one that Kubernetes clients know (equality- and set-based requirements, joined by commas):
//!
//! | written | holds for objects |
//! |---|---|
//! | `k=v`, `k==v` | whose label `k` is `v` |
//! | `k!=v` | whose label `k` is not `v`, or that have none |
//! | `k in (a,b)` | whose label `k` is `a` or `b` |
//! | `k notin (a,b)` | whose label `k` is neither, or that have none |
//! | `k` | that have a label `k` |
//! | `!k` | that have no label `k` |

use std::{collections::BTreeMap, fmt};

/// Most requirements of a selector. Each is one condition in a query.
pub const MAX_REQUIREMENTS: usize = 32;

/// Most values of one `in` or `notin`.
pub const MAX_VALUES: usize = 64;

/// Most bytes of the text of a selector.
pub const MAX_TEXT: usize = 4096;

/// Most characters of a label value and of the name part of a key (Kubernetes, "Labels and Selectors").
const MAX_NAME: usize = 63;

/// Most characters of the prefix of a key, a DNS subdomain (same source).
const MAX_PREFIX: usize = 253;

/// One condition on the labels of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Requirement {
    /// The label is there and has one of these values.
    In(String, Vec<String>),
    /// The label is missing or has none of these values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is missing.
    Missing(String),
}

/// Conditions that must all hold. The empty selector holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

/// A text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("label selector {text:?}: {reason}")]
pub struct InvalidSelector {
    text: String,
    reason: String,
}

impl LabelSelector {
    /// Reads a selector; the empty text selects everything.
    ///
    /// # Errors
    /// [`InvalidSelector`] says what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidSelector> {
        let fail =
            |reason: String| InvalidSelector { text: text.chars().take(120).collect(), reason };
        if text.len() > MAX_TEXT {
            return Err(fail(format!("is longer than {MAX_TEXT} bytes")));
        }
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut requirements = Vec::new();
        for part in split_requirements(text).map_err(fail)? {
            if requirements.len() == MAX_REQUIREMENTS {
                return Err(fail(format!("has more than {MAX_REQUIREMENTS} requirements")));
            }
            requirements.push(parse_requirement(part.trim()).map_err(fail)?);
        }
        Ok(Self { requirements })
    }

    /// The conditions, in the order in which they were written.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether all conditions hold for `labels`.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Missing(key) => !labels.contains_key(key),
        })
    }
}

impl fmt::Display for LabelSelector {
    /// A text that [`LabelSelector::parse`] reads back as the same selector.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(","))?,
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(","))?,
                Requirement::Exists(key) => f.write_str(key)?,
                Requirement::Missing(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

/// Splits at the commas that stand outside parentheses.
fn split_requirements(text: &str) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut start, mut inside) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            '(' if inside => return Err("opens a parenthesis inside a parenthesis".to_owned()),
            '(' => inside = true,
            ')' if !inside => return Err("closes a parenthesis that was not opened".to_owned()),
            ')' => inside = false,
            ',' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err("opens a parenthesis that is not closed".to_owned());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn parse_requirement(part: &str) -> Result<Requirement, String> {
    if part.is_empty() {
        return Err("has an empty requirement; remove the extra comma".to_owned());
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(label_key(key)?, vec![label_value(value)?]));
    }
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement::Missing(label_key(key)?));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(label_key(key)?, vec![label_value(value)?]));
    }
    let Some((head, values)) = part.split_once('(') else {
        return Ok(Requirement::Exists(label_key(part)?));
    };
    let values = values
        .strip_suffix(')')
        .ok_or_else(|| format!("has text after the parenthesis of {part:?}"))?;
    let values = values.split(',').map(label_value).collect::<Result<Vec<_>, _>>()?;
    if values.len() > MAX_VALUES {
        return Err(format!("lists more than {MAX_VALUES} values in one requirement"));
    }
    let mut words = head.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(key), Some("in"), None) => Ok(Requirement::In(label_key(key)?, values)),
        (Some(key), Some("notin"), None) => Ok(Requirement::NotIn(label_key(key)?, values)),
        _ => Err(format!("has {part:?}; write \"key in (a,b)\" or \"key notin (a,b)\"")),
    }
}

/// Checks a label key: an optional DNS subdomain and a slash, then a name.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn label_key(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (prefix, name) =
        text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if let Some(prefix) = prefix
        && (prefix.is_empty() || prefix.len() > MAX_PREFIX || !prefix.chars().all(plain))
    {
        return Err(format!(
            "the prefix of the key {text:?} is not a DNS name of at most {MAX_PREFIX} characters"
        ));
    }
    if name.is_empty() || !is_label_name(name) {
        return Err(format!(
            "the key {text:?} is not 1 to {MAX_NAME} letters, digits, '-', '_' or '.', with a letter or digit at both ends"
        ));
    }
    Ok(text.to_owned())
}

/// Checks a label value; the empty value is one.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn label_value(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !text.is_empty() && !is_label_name(text) {
        return Err(format!(
            "the value {text:?} is not at most {MAX_NAME} letters, digits, '-', '_' or '.', with a letter or digit at both ends"
        ));
    }
    Ok(text.to_owned())
}

fn is_label_name(text: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= MAX_NAME
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && end(text.chars().next())
        && end(text.chars().next_back())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn each_form_means_what_the_table_says() {
        let set = labels(&[("env", "prod"), ("team.example/owner", "ada")]);
        for (text, holds) in [
            ("", true),
            ("env=prod", true),
            ("env==prod", true),
            ("env=dev", false),
            ("env!=dev", true),
            ("env!=prod", false),
            ("tier!=web", true),
            ("tier=", false),
            ("env in (dev, prod)", true),
            ("env in (dev)", false),
            ("env notin (dev)", true),
            ("env notin (dev,prod)", false),
            ("tier notin (web)", true),
            ("env", true),
            ("tier", false),
            ("!tier", true),
            ("!env", false),
            (" env = prod , team.example/owner in (ada,bob),!tier ", true),
            ("env=prod,tier", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&set), holds, "{text:?}");
        }
    }

    #[test]
    fn faults_are_told() {
        for (text, part) in [
            ("a=b,,c=d", "extra comma"),
            ("a in (b", "not closed"),
            ("a in b)", "not opened"),
            ("a in ((b))", "inside a parenthesis"),
            ("a within (b)", "key in (a,b)"),
            ("a in (b) c", "after the parenthesis"),
            ("-a=b", "the key"),
            ("a=b c", "the value"),
            ("UPPER.example/a=b", "the prefix"),
            ("=b", "the key"),
            ("!", "the key"),
        ] {
            let message = LabelSelector::parse(text).expect_err(text).to_string();
            assert!(message.contains(part), "{text:?}: {message}");
        }
        let many = vec!["a"; MAX_REQUIREMENTS + 1].join(",");
        assert!(LabelSelector::parse(&many).is_err());
        assert!(LabelSelector::parse(&"a".repeat(MAX_TEXT + 1)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z!=(), /.-]{0,60}|.{0,40}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let again = LabelSelector::parse(&selector.to_string());
                prop_assert_eq!(again, Ok(selector));
            }
        }
    }
}
