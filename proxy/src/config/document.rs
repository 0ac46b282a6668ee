//! Walks the file: finds what is known, and says what is not.

use std::{ops::Range, path::Path};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    fault::{Fault, Origin, nearest},
    keys::{self, Kind, Support},
    read::{Given, Value, Values},
    table::unknown_key,
};

/// What a file says, beside the keys that went into [`Values`].
#[derive(Default)]
pub(super) struct Document<'i> {
    /// `[openshell.stack]`.
    pub(super) stack: Option<Spanned<DeValue<'i>>>,
    /// `[openshell.layer.<name>]`, each with the place of its name.
    pub(super) layers: Vec<(String, Range<usize>, Spanned<DeValue<'i>>)>,
    /// `[openshell.drivers.<name>]`, likewise.
    pub(super) drivers: Vec<(String, Range<usize>, Spanned<DeValue<'i>>)>,
}

/// Turns places in a text into lines.
pub(super) struct Lines<'i> {
    pub(super) path: &'i Path,
    pub(super) text: &'i str,
}

impl Lines<'_> {
    /// The line that `span` starts in.
    pub(super) fn origin(&self, span: &Range<usize>) -> Origin {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Origin::File { path: self.path.to_owned(), line }
    }

    pub(super) fn fault(&self, span: &Range<usize>, message: impl Into<String>) -> Fault {
        Fault::new(self.origin(span), message)
    }
}

/// Reads the text of a file into `values`, and the rest into a [`Document`].
///
/// # Errors
/// The syntax errors, alone: what a broken file means is a guess.
pub(super) fn read<'i>(lines: &Lines<'i>, values: &mut Values) -> Result<Document<'i>, Vec<Fault>> {
    let (root, errors) = DeTable::parse_recoverable(lines.text);
    if !errors.is_empty() {
        let fault = |error: &toml::de::Error| {
            let span = error.span().unwrap_or(0..0);
            lines.fault(&span, format!("this is no TOML: {}", error.message()))
        };
        return Err(errors.iter().take(MAX_SYNTAX_ERRORS).map(fault).collect());
    }
    let mut document = Document::default();
    for (key, value) in root.get_ref() {
        let name = key.get_ref().as_ref();
        match (name, value.get_ref()) {
            ("openshell", DeValue::Table(table)) => {
                Walk { lines, values: &mut *values, document: &mut document }.table("", table);
            }
            ("openshell", _) => {
                let message = "openshell is no table; write [openshell.gateway] and keys below it";
                values.fault(lines.fault(&value.span(), message));
            }
            _ => {
                let message = format!(
                    "unknown table \"{name}\"; everything stands below openshell, such as [openshell.gateway]"
                );
                values.fault(lines.fault(&key.span(), message));
            }
        }
    }
    Ok(document)
}

/// Most syntax errors that are told: one mistake can break every line after it.
const MAX_SYNTAX_ERRORS: usize = 10;

struct Walk<'w, 'i> {
    lines: &'w Lines<'i>,
    values: &'w mut Values,
    document: &'w mut Document<'i>,
}

/// Tables below `openshell` that are not made of keys.
const OTHER_TABLES: [&str; 3] = ["stack", "layer", "drivers"];

impl<'i> Walk<'_, 'i> {
    /// Goes through the table at `path` below `openshell`.
    fn table(&mut self, path: &str, table: &DeTable<'i>) {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            match full.as_str() {
                "stack" => self.document.stack = Some(value.clone()),
                "layer" | "drivers" => self.named_tables(&full, value),
                _ => self.entry(&full, key.span(), value),
            }
        }
    }

    fn named_tables(&mut self, path: &str, value: &Spanned<DeValue<'i>>) {
        let DeValue::Table(table) = value.get_ref() else {
            let message =
                format!("{path} is no table; write [openshell.{path}.<name>] and keys below it");
            return self.values.fault(self.lines.fault(&value.span(), message));
        };
        for (key, value) in table {
            let entry = (key.get_ref().to_string(), key.span(), value.clone());
            match path {
                "layer" => self.document.layers.push(entry),
                _ => self.document.drivers.push(entry),
            }
        }
    }

    /// One key or table with the path `full`.
    fn entry(&mut self, full: &str, at: Range<usize>, value: &Spanned<DeValue<'i>>) {
        if let Some((_, why)) = keys::UNSUPPORTED_TABLES.iter().find(|(table, _)| *table == full) {
            let message = format!("[openshell.{full}] is not supported: {why}");
            return self.values.fault(self.lines.fault(&at, message));
        }
        if let Some(key) = keys::find(full) {
            return self.key(key, &at, value);
        }
        if !keys::is_table(full) {
            let (table, name) = full.rsplit_once('.').unwrap_or(("", full));
            let mut known = keys::children(table);
            if table.is_empty() {
                known.extend(OTHER_TABLES);
            }
            let place = if table.is_empty() {
                "[openshell]".to_owned()
            } else {
                format!("[openshell.{table}]")
            };
            return self.values.fault(self.lines.fault(&at, unknown_key(name, &place, &known)));
        }
        match value.get_ref() {
            DeValue::Table(table) => self.table(full, table),
            _ => {
                let message =
                    format!("{full} is no table; write [openshell.{full}] and keys below it");
                self.values.fault(self.lines.fault(&value.span(), message));
            }
        }
    }

    fn key(&mut self, key: &'static keys::Key, at: &Range<usize>, value: &Spanned<DeValue<'i>>) {
        let name = key.path.rsplit('.').next().unwrap_or(key.path);
        if let Support::No(why) = key.support {
            let message = format!("{name} is not supported: {why}");
            return self.values.fault(self.lines.fault(at, message));
        }
        match key.path {
            "gateway.db_url" => {
                let message = "db_url may not stand in a file, because it may hold a password; set OPENSHELL_DB_URL or --db-url";
                return self.values.fault(self.lines.fault(at, message));
            }
            "gateway.port" => {
                let message = "unknown key \"port\" in [openshell.gateway]; write bind_address = \"127.0.0.1:17670\"";
                return self.values.fault(self.lines.fault(at, message));
            }
            _ => {}
        }
        let origin = self.lines.origin(&value.span());
        match self.value(key.kind, value) {
            Some(value) => self.values.give(key, Given { value, origin }),
            None => {
                let found = value.get_ref().type_str();
                let message = format!("{name} is of type {found}; write {}", key.kind.wanted());
                self.values.fault(Fault::new(origin, message));
            }
        }
    }

    fn value(&self, kind: Kind, value: &Spanned<DeValue<'i>>) -> Option<Value> {
        let value = value.get_ref();
        match kind {
            Kind::Text | Kind::Address | Kind::Duration => {
                value.as_str().map(|text| Value::Text(text.to_owned()))
            }
            Kind::Switch => value.as_bool().map(Value::Switch),
            Kind::Number => {
                let number = value.as_integer()?;
                u64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::Number)
            }
            Kind::List => {
                let texts = value.as_array()?.iter();
                texts
                    .map(|item| item.get_ref().as_str().map(str::to_owned))
                    .collect::<Option<_>>()
                    .map(Value::List)
            }
        }
    }
}

/// The names of a list in `[openshell.stack]`, each with its place.
pub(super) fn names(
    lines: &Lines<'_>,
    key: &str,
    list: &Spanned<DeValue<'_>>,
    values: &mut Values,
) -> Option<Vec<(String, Range<usize>)>> {
    let Some(items) = list.get_ref().as_array() else {
        let message = format!("{key} is no list; write {key} = [\"…\"], outermost layer first");
        values.fault(lines.fault(&list.span(), message));
        return None;
    };
    let mut names = Vec::new();
    for item in items.iter() {
        match item.get_ref().as_str() {
            Some(name) => names.push((name.to_owned(), item.span())),
            None => {
                let message =
                    format!("{key} holds something that is no text; write names in quotes");
                values.fault(lines.fault(&item.span(), message));
            }
        }
    }
    Some(names)
}

/// "unknown layer", with what may have been meant.
pub(super) fn unknown_layer(name: &str, plane: &str, known: &[&'static str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(meant) => {
            format!("no layer \"{name}\" in the {plane} plane; did you mean \"{meant}\"?")
        }
        None => format!("no layer \"{name}\" in the {plane} plane; it has: {}", known.join(", ")),
    }
}
