//! Reads one table of values into a struct, with a fault for each bad key instead of only the first.

use std::ops::Range;

use serde::{
    Deserialize, Deserializer,
    de::{self, IntoDeserializer as _},
    forward_to_deserialize_any,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{fault::nearest, layers::TableConfig};

/// A fault at some place of the text.
pub(super) type LocatedFault = (Range<usize>, String);

/// Reads `table`, called `name` in messages. With faults, what could be read is returned beside them.
pub(super) fn read<'i, T: TableConfig>(
    name: &str,
    table: &Spanned<DeValue<'i>>,
) -> (T, Vec<LocatedFault>) {
    let DeValue::Table(entries) = table.get_ref() else {
        let message = format!("{name} is no table; write [openshell.{name}] and its keys below it");
        return (T::default(), vec![(table.span(), message)]);
    };
    let known = field_names::<T>();
    let mut faults = Vec::new();
    let mut good = DeTable::new();
    for (key, value) in entries {
        let text = key.get_ref().as_ref();
        if !known.contains(&text) {
            faults.push((key.span(), unknown_key(text, &format!("[openshell.{name}]"), known)));
            continue;
        }
        let mut single = DeTable::new();
        single.insert(key.clone(), value.clone());
        match T::deserialize(Spanned::new(table.span(), single).into_deserializer()) {
            Ok(_) => {
                good.insert(key.clone(), value.clone());
            }
            Err(error) => faults.push((value.span(), format!("{text}: {}", error.message()))),
        }
    }
    let config = match T::deserialize(Spanned::new(table.span(), good.clone()).into_deserializer())
    {
        Ok(config) => config,
        Err(error) => {
            faults.push((table.span(), error.message().to_owned()));
            T::default()
        }
    };
    // Values that were not read would only make the others look wrong.
    if faults.is_empty() {
        for (key, message) in config.faults() {
            let top = key.split('.').next().unwrap_or(&key);
            let at = good.iter().find(|(k, _)| k.get_ref().as_ref() == top);
            let span = at.map_or_else(|| table.span(), |(_, value)| value.span());
            faults.push((span, format!("{key} {message}")));
        }
    }
    (config, faults)
}

/// "unknown key", with what may have been meant.
pub(super) fn unknown_key(key: &str, place: &str, known: &[&str]) -> String {
    match nearest(key, known.iter().copied()) {
        Some(meant) => format!("unknown key \"{key}\" in {place}; did you mean \"{meant}\"?"),
        None => format!("unknown key \"{key}\" in {place}; it has: {}", known.join(", ")),
    }
}

/// The names of the fields of a derived struct, as `serde` tells them to a deserializer.
fn field_names<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

struct FieldNames<'n>(&'n mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: de::Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("only asked for names"))
    }

    fn deserialize_struct<V: de::Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
