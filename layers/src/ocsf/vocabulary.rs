//! The enumerations that every event class shares: severity, status, verdict, confidence.

use serde::ser::SerializeMap;

use super::text::Text;

/// An OCSF enumeration value: its number and its caption, which the schema keeps in two sibling attributes.
pub(crate) type Numbered = (u8, &'static str);

/// Declares an enumeration whose variants have an OCSF number and caption.
macro_rules! vocabulary {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $id:literal, $label:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// Every value, in the order of the schema's numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The number the schema gives this value.
            #[must_use]
            pub const fn id(self) -> u8 {
                match self { $(Self::$variant => $id,)+ }
            }

            /// The caption the schema gives this value.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }
    };
}
pub(crate) use vocabulary;

vocabulary! {
    /// How much an event matters (`severity_id`).
    Severity {
        /// Ordinary operation.
        Informational = 1, "Informational";
        /// Worth knowing; nothing needs doing.
        Low = 2, "Low";
        /// Somebody should look.
        Medium = 3, "Medium";
        /// Somebody should look now.
        High = 4, "High";
        /// A control failed or something was killed.
        Critical = 5, "Critical";
        /// The product cannot go on.
        Fatal = 6, "Fatal";
    }
}

impl Severity {
    /// The tag of the short line form.
    #[must_use]
    pub const fn tag(self) -> &'static str {
        match self {
            Self::Informational => "INFO",
            Self::Low => "LOW",
            Self::Medium => "MED",
            Self::High => "HIGH",
            Self::Critical => "CRIT",
            Self::Fatal => "FATAL",
        }
    }
}

vocabulary! {
    /// How it ended (`status_id`) for every class but findings.
    Status {
        /// It worked.
        Success = 1, "Success";
        /// It did not.
        Failure = 2, "Failure";
    }
}

vocabulary! {
    /// How sure the product is (`confidence_id`).
    Confidence {
        /// May well be wrong.
        Low = 1, "Low";
        /// Probably right.
        Medium = 2, "Medium";
        /// Certain for practical purposes.
        High = 3, "High";
    }
}

/// What a control did about something: one value for the two attributes `action_id` and `disposition_id`, so that they cannot
/// contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// A control looked and let it pass.
    Allowed,
    /// A control stopped it because a rule says so.
    Blocked,
    /// A control stopped it because it was malformed or not supported.
    Rejected,
    /// A control saw it and did not interfere.
    Detected,
    /// A control let it pass after changing it.
    Modified,
    /// A control could not do its work.
    Error,
}

impl Verdict {
    /// Every value.
    pub const ALL: &'static [Self] = &[
        Self::Allowed,
        Self::Blocked,
        Self::Rejected,
        Self::Detected,
        Self::Modified,
        Self::Error,
    ];

    pub(crate) const fn action(self) -> Numbered {
        match self {
            Self::Allowed => (1, "Allowed"),
            Self::Blocked | Self::Rejected => (2, "Denied"),
            Self::Detected => (3, "Observed"),
            Self::Modified => (4, "Modified"),
            Self::Error => (0, "Unknown"),
        }
    }

    pub(crate) const fn disposition(self) -> Numbered {
        match self {
            Self::Allowed | Self::Modified => (1, "Allowed"),
            Self::Blocked => (2, "Blocked"),
            Self::Rejected => (25, "Rejected"),
            Self::Detected => (15, "Detected"),
            Self::Error => (27, "Error"),
        }
    }

    /// The word of the short form.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Allowed => "ALLOWED",
            Self::Blocked | Self::Rejected => "DENIED",
            Self::Detected => "OBSERVED",
            Self::Modified => "MODIFIED",
            Self::Error => "ERROR",
        }
    }
}

/// A value the schema has no attribute for, kept under `unmapped`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// Text, clipped like every other.
    Text(std::borrow::Cow<'static, str>),
    /// A whole number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
}

impl serde::Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Int(number) => serializer.serialize_i64(*number),
            Self::Bool(flag) => serializer.serialize_bool(*flag),
        }
    }
}

macro_rules! value_from {
    ($($from:ty => |$v:ident| $make:expr;)+) => {
        $(impl From<$from> for Value {
            fn from($v: $from) -> Self {
                $make
            }
        })+
    };
}

value_from! {
    &'static str => |v| Self::Text(Text::Borrowed(v));
    String => |v| Self::Text(Text::Owned(v));
    std::borrow::Cow<'static, str> => |v| Self::Text(v);
    i64 => |v| Self::Int(v);
    u32 => |v| Self::Int(i64::from(v));
    i32 => |v| Self::Int(i64::from(v));
    u16 => |v| Self::Int(i64::from(v));
    // A count beyond the schema's signed 64 bits is shown as the largest one.
    u64 => |v| Self::Int(i64::try_from(v).unwrap_or(i64::MAX));
    usize => |v| Self::Int(i64::try_from(v).unwrap_or(i64::MAX));
    bool => |v| Self::Bool(v);
}

/// Writes an enumeration as the schema's two sibling attributes.
pub(crate) fn put_numbered<M: SerializeMap>(
    map: &mut M,
    id_name: &'static str,
    label_name: &'static str,
    value: Option<Numbered>,
) -> Result<(), M::Error> {
    if let Some((id, label)) = value {
        map.serialize_entry(id_name, &id)?;
        map.serialize_entry(label_name, label)?;
    }
    Ok(())
}

/// Writes an attribute if it has a value.
pub(crate) fn put<M: SerializeMap, T: serde::Serialize>(
    map: &mut M,
    name: &'static str,
    value: Option<&T>,
) -> Result<(), M::Error> {
    match value {
        Some(value) => map.serialize_entry(name, value),
        None => Ok(()),
    }
}
