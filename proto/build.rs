//! Compiles the contract with protox, so that no `protoc` is needed on the machine.
//!
//! Messages with a field marked `secret` get a `Debug` that masks it; prost's own would print it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_reflect::{DescriptorPool, MessageDescriptor, Value};

const FILES: [&str; 7] = [
    "options.proto",
    "datamodel.proto",
    "sandbox.proto",
    "openshell.proto",
    "inference.proto",
    "compute_driver.proto",
    "ateapi.proto",
];

/// Words that Rust reserves and that the contract uses as field names.
const KEYWORDS: [&str; 4] = ["type", "loop", "match", "ref"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed=proto");

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(false);
    compiler.open_files(FILES)?;
    let encoded = compiler.encode_file_descriptor_set();
    std::fs::write(out.join("contract.bin"), &encoded)?;

    let pool = DescriptorPool::decode(encoded.as_slice())?;
    let secret_messages = messages_with_secrets(&pool)?;

    let mut config = tonic_prost_build::Config::new();
    config.bytes([
        ".openshell.v1.RelayFrame",
        ".openshell.v1.TcpForwardFrame",
        ".openshell.v1.ExecSandboxStdout",
        ".openshell.v1.ExecSandboxStderr",
        ".openshell.v1.ExecSandboxInput",
    ]);
    config
        .skip_debug(secret_messages.iter().map(|(message, _)| format!(".{}", message.full_name())));
    for (message, _) in &secret_messages {
        // Skipping a message skips its oneofs too; these hold no secret of their own.
        for group in message.oneofs().filter(|group| !is_synthetic(group)) {
            config.type_attribute(format!(".{}", group.full_name()), "#[derive(Debug)]");
        }
    }
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .build_transport(false)
        .compile_fds_with_config(prost_types_set(&encoded)?, config)?;
    write_masked_debug(&out, &secret_messages)
}

fn prost_types_set(
    encoded: &[u8],
) -> Result<tonic_prost_build::FileDescriptorSet, Box<dyn std::error::Error>> {
    Ok(tonic_prost_build::FileDescriptorSet::decode(encoded)?)
}

/// A message and the names of its secret fields.
type WithSecrets = (MessageDescriptor, Vec<String>);

/// Every message with at least one secret field.
fn messages_with_secrets(
    pool: &DescriptorPool,
) -> Result<Vec<WithSecrets>, Box<dyn std::error::Error>> {
    let secret = pool
        .get_extension_by_name("openshell.options.v1.secret")
        .ok_or("options.proto lost its `secret` option")?;
    let mut found = Vec::new();
    for message in pool.all_messages() {
        let secrets: Vec<String> = message
            .fields()
            .filter(|field| {
                matches!(field.options().get_extension(&secret).as_ref(), Value::Bool(true))
            })
            .map(|field| field.name().to_owned())
            .collect();
        if !secrets.is_empty() {
            found.push((message, secrets));
        }
    }
    Ok(found)
}

fn write_masked_debug(
    out: &Path,
    messages: &[WithSecrets],
) -> Result<(), Box<dyn std::error::Error>> {
    let mut code = String::new();
    for (message, secrets) in messages {
        let module = message.package_name().replace('.', "::");
        writeln!(code, "impl ::std::fmt::Debug for crate::{module}::{} {{", message.name())?;
        writeln!(
            code,
            "    fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {{"
        )?;
        writeln!(code, "        f.debug_struct(\"{}\")", message.name())?;
        for field in message.fields() {
            if field.containing_oneof().is_some_and(|group| !is_synthetic(&group)) {
                continue;
            }
            let name = field.name();
            if secrets.iter().any(|secret| secret == name) {
                writeln!(code, "            .field(\"{name}\", &crate::secrets::MASK)")?;
            } else {
                writeln!(code, "            .field(\"{name}\", &self.{})", identifier(name))?;
            }
        }
        for group in message.oneofs().filter(|group| !is_synthetic(group)) {
            let name = group.name();
            writeln!(code, "            .field(\"{name}\", &self.{})", identifier(name))?;
        }
        writeln!(code, "            .finish()\n    }}\n}}")?;
    }
    std::fs::write(out.join("masked_debug.rs"), code)?;
    Ok(())
}

/// proto3 `optional` is a oneof of one field on the wire and an `Option` in Rust.
fn is_synthetic(group: &prost_reflect::OneofDescriptor) -> bool {
    group.fields().len() == 1
        && group.fields().all(|field| field.field_descriptor_proto().proto3_optional())
}

fn identifier(name: &str) -> String {
    if KEYWORDS.contains(&name) { format!("r#{name}") } else { name.to_owned() }
}
