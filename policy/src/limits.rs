//! Bounds on a policy, checked before anything is stored.
//!
//! Source: the OpenShell policy format, version 1; the bounds are the contract's.

/// Largest encoded policy, in bytes. Keeps a sandbox record, which holds one, far below the 1 MiB
/// that one gRPC message may have.
pub const MAX_ENCODED_BYTES: usize = 262_144;

/// Longest path of the file system section, in bytes: `PATH_MAX` of Linux.
pub const MAX_PATH_BYTES: usize = 4096;

/// Most paths of the file system section, read-only and read-write together. Each becomes one
/// Landlock rule at the start of every process in the sandbox.
pub const MAX_PATHS: usize = 256;

/// The one version of the format.
pub const VERSION: u32 = 1;

/// What is wrong with a policy; `field` is its place in the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Fault {
    /// Place, such as `filesystem_policy.read_write[2]`.
    pub field: String,
    /// What is wrong and what to write instead.
    pub problem: String,
}

impl Fault {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// Checks one path of the file system section.
///
/// # Errors
/// A [`Fault`] when it is not absolute, climbs with `..`, holds a NUL, or is too long.
pub fn check_path(field: &str, path: &str) -> Result<(), Fault> {
    if path.len() > MAX_PATH_BYTES {
        return Err(Fault::new(
            field,
            format!("is {} bytes long, at most {MAX_PATH_BYTES} fit", path.len()),
        ));
    }
    if !path.starts_with('/') {
        return Err(Fault::new(field, format!("{path:?} is not absolute; begin it with /")));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(Fault::new(field, format!("{path:?} climbs with ..; write where it leads")));
    }
    if path.contains('\0') {
        return Err(Fault::new(field, "holds a NUL byte"));
    }
    Ok(())
}

/// Every fault of a policy that came over the wire, all at once.
#[cfg(feature = "proto")]
#[must_use]
pub fn check(policy: &postern_proto::sandbox::SandboxPolicy) -> Vec<Fault> {
    use prost::Message as _;

    let mut faults = Vec::new();
    let size = policy.encoded_len();
    if size > MAX_ENCODED_BYTES {
        faults.push(Fault::new(
            "policy",
            format!("is {size} bytes, at most {MAX_ENCODED_BYTES} fit"),
        ));
    }
    if policy.version != VERSION {
        faults.push(Fault::new("version", format!("is {}, write {VERSION}", policy.version)));
    }
    if let Some(files) = &policy.filesystem {
        let count = files.read_only.len() + files.read_write.len();
        if count > MAX_PATHS {
            faults.push(Fault::new(
                "filesystem_policy",
                format!("has {count} paths, at most {MAX_PATHS} fit"),
            ));
        }
        for (list, paths) in [("read_only", &files.read_only), ("read_write", &files.read_write)] {
            for (index, path) in paths.iter().enumerate() {
                let field = format!("filesystem_policy.{list}[{index}]");
                faults.extend(check_path(&field, path).err());
                if list == "read_write" && path.trim_end_matches('/').is_empty() {
                    faults.push(Fault::new(field, "is the whole file system; name folders"));
                }
            }
        }
    }
    if let Some(process) = &policy.process {
        for (field, value) in [
            ("process.run_as_user", &process.run_as_user),
            ("process.run_as_group", &process.run_as_group),
        ] {
            let numeric = value.parse::<u32>().is_ok_and(|id| (1..u32::MAX).contains(&id));
            if !(value.is_empty() || value == "sandbox" || numeric) {
                faults.push(Fault::new(
                    field,
                    format!("{value:?} is neither \"sandbox\" nor a number from 1 to 4294967294"),
                ));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_accepted_path_climbs(path in "[a-z./]{0,20}") {
            if check_path("p", &path).is_ok() {
                proptest::prop_assert!(path.starts_with('/'));
                proptest::prop_assert!(!path.split('/').any(|part| part == ".."));
            }
        }
    }

    #[cfg(feature = "proto")]
    #[test]
    fn every_fault_is_told_at_once() {
        use postern_proto::sandbox::{FilesystemPolicy, ProcessPolicy, SandboxPolicy};

        let policy = SandboxPolicy {
            version: 2,
            filesystem: Some(FilesystemPolicy {
                read_only: vec!["relative".into(), "/a/../b".into()],
                read_write: vec!["/".into(), "/fine".into()],
                ..FilesystemPolicy::default()
            }),
            process: Some(ProcessPolicy {
                run_as_user: "root".into(),
                run_as_group: "1000".into(),
            }),
            ..SandboxPolicy::default()
        };
        let fields: Vec<String> = check(&policy).into_iter().map(|fault| fault.field).collect();
        assert_eq!(
            fields,
            [
                "version",
                "filesystem_policy.read_only[0]",
                "filesystem_policy.read_only[1]",
                "filesystem_policy.read_write[0]",
                "process.run_as_user",
            ]
        );
    }
}
