//! Which fields hold secrets, read from the `secret` option.
//!
//! `Debug` of a message with such a field prints [`MASK`] instead of its value; that part is
//! generated. [`secret_fields`] lists them for whoever writes messages elsewhere.

use prost_reflect::{DescriptorPool, Value};

use crate::FILE_DESCRIPTOR_SET;

/// What stands where a secret was.
pub const MASK: &str = "[masked]";

/// Full names of every secret field, `package.Message.field`, sorted.
///
/// # Panics
/// Never in a released build: the descriptors are embedded and tested.
#[must_use]
pub fn secret_fields() -> Vec<String> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET)
        .expect("the embedded descriptors decode; a test covers it");
    let option = pool
        .get_extension_by_name("openshell.options.v1.secret")
        .expect("options.proto is embedded and declares it");
    let mut names: Vec<String> = pool
        .all_messages()
        .flat_map(|message| message.fields().collect::<Vec<_>>())
        .filter(|field| {
            matches!(field.options().get_extension(&option).as_ref(), Value::Bool(true))
        })
        .map(|field| field.full_name().to_owned())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn the_list_holds_the_tokens() {
        let names = secret_fields();
        for expected in [
            "openshell.v1.CreateSshSessionResponse.token",
            "openshell.v1.TcpForwardInit.authorization_token",
            "openshell.v1.SshSession.token",
            "openshell.datamodel.v1.Provider.credentials",
            "openshell.compute.v1.DriverSandboxSpec.sandbox_token",
        ] {
            assert!(names.iter().any(|name| name == expected), "{expected} is not in {names:?}");
        }
    }

    #[test]
    fn debug_masks_a_secret_even_inside_a_oneof() {
        let frame = v1::TcpForwardFrame {
            payload: Some(v1::tcp_forward_frame::Payload::Init(v1::TcpForwardInit {
                sandbox: "visible".into(),
                authorization_token: "hunter2".into(),
                ..Default::default()
            })),
        };
        let printed = format!("{frame:?}");
        assert!(printed.contains("visible") && printed.contains(MASK));
        assert!(!printed.contains("hunter2"));
    }
}
