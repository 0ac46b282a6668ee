//! Digests of messages that do not depend on the order of maps.
//!
//! Protobuf encoders may write map entries in any order and ours does, so the same policy encodes to different bytes
//! each time. Here fields are fed to the hash in the order of their numbers and map entries in the order of their keys.

use std::sync::LazyLock;

use postern_proto::FILE_DESCRIPTOR_SET;
use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, ReflectMessage as _, Value};
use sha2::{Digest as _, Sha256};

use crate::call_error::CallError;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET)
        .expect("the descriptors were compiled by the build that embedded them")
});

/// SHA-256 over the contents of `message`, which is a `full_name` of the contract. Fields at their default and fields
/// that are absent count the same, as they do on the wire.
///
/// # Errors
/// `INTERNAL` when `full_name` is not the name of the message's type.
pub fn digest(message: &impl prost::Message, full_name: &str) -> Result<[u8; 32], CallError> {
    let descriptor = POOL.get_message_by_name(full_name).ok_or_else(|| {
        CallError::internal("hashing a message", format!("no message {full_name}"))
    })?;
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .map_err(|error| CallError::internal("hashing a message", error))?;
    let mut hash = Sha256::new();
    feed_message(&mut hash, &message);
    Ok(hash.finalize().into())
}

/// A digest as lower-case hexadecimal text.
#[must_use]
pub fn hex(digest: &[u8]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold(String::with_capacity(digest.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn feed_message(hash: &mut Sha256, message: &DynamicMessage) {
    let descriptor = message.descriptor();
    let mut fields: Vec<_> = descriptor.fields().filter(|field| message.has_field(field)).collect();
    fields.sort_by_key(prost_reflect::FieldDescriptor::number);
    hash.update([b'm']);
    hash.update((fields.len() as u64).to_be_bytes());
    for field in fields {
        hash.update(field.number().to_be_bytes());
        feed_value(hash, &message.get_field(&field));
    }
}

fn feed_value(hash: &mut Sha256, value: &Value) {
    match value {
        Value::Bool(value) => feed(hash, b'b', &[u8::from(*value)]),
        Value::I32(value) | Value::EnumNumber(value) => {
            feed(hash, b'i', &i64::from(*value).to_be_bytes())
        }
        Value::I64(value) => feed(hash, b'i', &value.to_be_bytes()),
        Value::U32(value) => feed(hash, b'u', &u64::from(*value).to_be_bytes()),
        Value::U64(value) => feed(hash, b'u', &value.to_be_bytes()),
        Value::F32(value) => feed(hash, b'f', &f64::from(*value).to_bits().to_be_bytes()),
        Value::F64(value) => feed(hash, b'f', &value.to_bits().to_be_bytes()),
        Value::String(value) => feed(hash, b's', value.as_bytes()),
        Value::Bytes(value) => feed(hash, b's', value),
        Value::Message(message) => feed_message(hash, message),
        Value::List(items) => {
            feed(hash, b'l', &(items.len() as u64).to_be_bytes());
            for item in items {
                feed_value(hash, item);
            }
        }
        Value::Map(entries) => {
            let mut sorted: Vec<_> =
                entries.iter().map(|(key, value)| (key_bytes(key), value)).collect();
            sorted.sort_by(|one, other| one.0.cmp(&other.0));
            feed(hash, b'p', &(sorted.len() as u64).to_be_bytes());
            for (key, value) in sorted {
                feed(hash, b'k', &key);
                feed_value(hash, value);
            }
        }
    }
}

/// A tag, a length and the bytes: no two values feed the same.
fn feed(hash: &mut Sha256, tag: u8, bytes: &[u8]) {
    hash.update([tag]);
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

fn key_bytes(key: &MapKey) -> Vec<u8> {
    match key {
        MapKey::Bool(key) => vec![u8::from(*key)],
        MapKey::I32(key) => i64::from(*key).to_be_bytes().to_vec(),
        MapKey::I64(key) => key.to_be_bytes().to_vec(),
        MapKey::U32(key) => u64::from(*key).to_be_bytes().to_vec(),
        MapKey::U64(key) => key.to_be_bytes().to_vec(),
        MapKey::String(key) => key.as_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use postern_proto::sandbox::{FilesystemPolicy, NetworkPolicyRule, SandboxPolicy};

    use super::*;

    const POLICY: &str = "openshell.sandbox.v1.SandboxPolicy";

    fn policy(names: &[&str]) -> SandboxPolicy {
        let rule = |name: &str| NetworkPolicyRule { name: name.into(), ..Default::default() };
        SandboxPolicy {
            version: 1,
            network_policies: names.iter().map(|name| ((*name).to_owned(), rule(name))).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_order_of_maps_does_not_matter() {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut reversed = names;
        reversed.reverse();
        let one = digest(&policy(&names), POLICY).unwrap();
        assert_eq!(one, digest(&policy(&reversed), POLICY).unwrap());
        assert_ne!(one, digest(&policy(&names[1..]), POLICY).unwrap());
    }

    #[test]
    fn where_a_text_stands_matters() {
        let with = |read_only: &[&str], read_write: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let filesystem = FilesystemPolicy {
                read_only: owned(read_only),
                read_write: owned(read_write),
                ..Default::default()
            };
            digest(&SandboxPolicy { filesystem: Some(filesystem), ..Default::default() }, POLICY)
                .unwrap()
        };
        assert_ne!(with(&["/a"], &[]), with(&[], &["/a"]));
        assert_ne!(with(&["/a", "/b"], &[]), with(&["/a/b"], &[]));
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        assert!(digest(&policy(&[]), "openshell.sandbox.v1.Nothing").is_err());
        assert_eq!(hex(&[0, 0xab]), "00ab");
    }
}
