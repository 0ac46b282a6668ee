//! What requests may contain. Limits are the OpenShell contract's unless they say otherwise.
//!
//! Every check names the field, the limit and the value, and never repeats more than the beginning of what was sent.

use std::collections::HashMap;

use postern_proto::v1::{CreateSandboxRequest, SandboxRestartPolicy, SandboxSpec, SandboxTemplate};
use postern_store::selector::{label_key, label_value};
use prost::Message as _;

use crate::call_error::CallError;

/// Longest name of a sandbox, in characters. Runtimes derive names of pods and hosts from it and add their own parts.
pub const MAX_NAME: usize = 19;
/// Entries of a main command.
pub const MAX_COMMAND_ARGS: usize = 256;
/// Bytes of a main command in all.
pub const MAX_COMMAND_BYTES: usize = 256 * 1024;
/// Providers of a sandbox.
pub const MAX_PROVIDERS: usize = 32;
/// Variables of an environment.
pub const MAX_ENVIRONMENT: usize = 128;
/// Bytes of a variable's name.
pub const MAX_ENVIRONMENT_KEY: usize = 256;
/// Bytes of a variable's value.
pub const MAX_ENVIRONMENT_VALUE: usize = 8192;
/// Bytes of an environment in all.
pub const MAX_ENVIRONMENT_BYTES: usize = 256 * 1024;
/// Bytes of an encoded policy.
pub const MAX_POLICY_BYTES: usize = 262_144;
/// Bytes of each free-form structure of a template.
pub const MAX_STRUCT_BYTES: usize = 65_536;
/// Bytes of a log level.
pub const MAX_LOG_LEVEL: usize = 32;
/// Labels of an object. Our own limit: each is a row in the store.
pub const MAX_LABELS: usize = 64;
/// Bytes of all annotations. Our own limit, the one of Kubernetes divided by four.
pub const MAX_ANNOTATION_BYTES: usize = 65_536;
/// Bytes of the other texts of a template (image, class, socket). Our own limit: paths and image names are shorter.
pub const MAX_TEMPLATE_TEXT: usize = 4096;
/// Bytes of a request id. Our own limit; UUIDs have 36.
pub const MAX_REQUEST_ID: usize = 128;
/// Objects of a page when the request does not say.
pub const DEFAULT_PAGE: u32 = 100;
/// Most objects of a page; larger wishes get this.
pub const MAX_PAGE: u32 = 1000;

/// The command of a sandbox whose request has none; it gets a terminal then.
pub const DEFAULT_COMMAND: [&str; 2] = ["/bin/bash", "-l"];

type Checked = Result<(), CallError>;

/// Checks a CreateSandbox request, except for what needs the store or the driver.
///
/// # Errors
/// `INVALID_ARGUMENT`; `UNIMPLEMENTED` for parts of the contract that this gateway lacks; `FAILED_PRECONDITION` for
/// providers, of which it has none.
pub fn create(request: &CreateSandboxRequest) -> Checked {
    if !request.workload_template.is_empty() {
        return Err(CallError::Unimplemented {
            what: "CreateSandboxRequest.workload_template".into(),
        });
    }
    if !request.service_exposures.is_empty() {
        return Err(CallError::Unimplemented {
            what: "CreateSandboxRequest.service_exposures".into(),
        });
    }
    if !request.name.is_empty() {
        sandbox_name(&request.name)?;
    }
    labels(&request.labels)?;
    total("annotations", bytes_of(&request.annotations), MAX_ANNOTATION_BYTES)?;
    request_id(&request.request_id)?;
    request.spec.as_ref().map_or(Ok(()), spec)
}

/// Checks a sandbox name: a DNS-1123 label of at most [`MAX_NAME`] characters without `--`.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn sandbox_name(name: &str) -> Checked {
    let fail = |what: String| Err(CallError::invalid("name", what));
    let length = name.chars().count();
    if length > MAX_NAME {
        return fail(format!("has {length} characters, at most {MAX_NAME} are allowed"));
    }
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !name.chars().all(|c| alphanumeric(c) || c == '-') {
        return fail("may only have a-z, 0-9 and '-'".to_owned());
    }
    if !name.starts_with(alphanumeric) || !name.ends_with(alphanumeric) {
        return fail("must begin and end with a letter or a digit".to_owned());
    }
    if name.contains("--") {
        return fail("may not have '--'".to_owned());
    }
    Ok(())
}

/// Checks a request id; empty means that there is none.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn request_id(id: &str) -> Checked {
    if id.len() > MAX_REQUEST_ID {
        return Err(CallError::invalid(
            "request_id",
            format!("has {} bytes, at most {MAX_REQUEST_ID} are allowed", id.len()),
        ));
    }
    if !id.chars().all(|c| c.is_ascii_graphic()) {
        return Err(CallError::invalid(
            "request_id",
            "may only have visible ASCII characters; use a UUID",
        ));
    }
    Ok(())
}

/// The page size that a request means.
///
/// # Errors
/// `INVALID_ARGUMENT` for a negative one.
pub fn page_size(wanted: i32) -> Result<u32, CallError> {
    match u32::try_from(wanted) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(wanted) => Ok(wanted.min(MAX_PAGE)),
        Err(_) => {
            Err(CallError::invalid("page_size", format!("is {wanted}; give 1 to {MAX_PAGE}, or 0")))
        }
    }
}

/// Checks an environment of a sandbox or template.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn environment(field: &'static str, variables: &HashMap<String, String>) -> Checked {
    if variables.len() > MAX_ENVIRONMENT {
        return Err(CallError::invalid(
            field,
            format!("has {} variables, at most {MAX_ENVIRONMENT} are allowed", variables.len()),
        ));
    }
    for (key, value) in variables {
        let fail = |what: String| {
            Err(CallError::invalid(field, format!("variable {:?} {what}", beginning(key))))
        };
        if key.is_empty() || key.contains(['=', '\0']) {
            return fail("is no name of a variable: it is empty or has '=' or NUL".to_owned());
        }
        if key.len() > MAX_ENVIRONMENT_KEY {
            return fail(format!(
                "has a name of {} bytes, at most {MAX_ENVIRONMENT_KEY} are allowed",
                key.len()
            ));
        }
        if value.len() > MAX_ENVIRONMENT_VALUE {
            return fail(format!(
                "has a value of {} bytes, at most {MAX_ENVIRONMENT_VALUE} are allowed",
                value.len()
            ));
        }
        if value.contains('\0') {
            return fail("has a NUL in its value".to_owned());
        }
    }
    total(field, bytes_of(variables), MAX_ENVIRONMENT_BYTES)
}

fn spec(spec: &SandboxSpec) -> Checked {
    text("spec.log_level", &spec.log_level, MAX_LOG_LEVEL)?;
    environment("spec.environment", &spec.environment)?;
    command(&spec.command)?;
    providers(&spec.providers)?;
    restart_policy(spec)?;
    if let Some(policy) = &spec.policy {
        total("spec.policy", policy.encoded_len(), MAX_POLICY_BYTES)?;
    }
    spec.template.as_ref().map_or(Ok(()), template)
}

fn template(template: &SandboxTemplate) -> Checked {
    text("spec.template.image", &template.image, MAX_TEMPLATE_TEXT)?;
    text("spec.template.runtime_class_name", &template.runtime_class_name, MAX_TEMPLATE_TEXT)?;
    text("spec.template.agent_socket", &template.agent_socket, MAX_TEMPLATE_TEXT)?;
    environment("spec.template.environment", &template.environment)?;
    total("spec.template.labels", bytes_of(&template.labels), MAX_STRUCT_BYTES)?;
    total("spec.template.annotations", bytes_of(&template.annotations), MAX_STRUCT_BYTES)?;
    for (field, value) in [
        ("spec.template.resources", &template.resources),
        ("spec.template.driver_config", &template.driver_config),
    ] {
        if let Some(value) = value {
            total(field, value.encoded_len(), MAX_STRUCT_BYTES)?;
        }
    }
    Ok(())
}

fn command(command: &[String]) -> Checked {
    let field = "spec.command";
    if command.len() > MAX_COMMAND_ARGS {
        return Err(CallError::invalid(
            field,
            format!("has {} arguments, at most {MAX_COMMAND_ARGS} are allowed", command.len()),
        ));
    }
    if command.first().is_some_and(String::is_empty) {
        return Err(CallError::invalid(field, "begins with an empty argument; give a program"));
    }
    if command.iter().any(|argument| argument.contains('\0')) {
        return Err(CallError::invalid(field, "has an argument with a NUL"));
    }
    total(field, command.iter().map(String::len).sum(), MAX_COMMAND_BYTES)
}

fn providers(providers: &[String]) -> Checked {
    if providers.len() > MAX_PROVIDERS {
        return Err(CallError::invalid(
            "spec.providers",
            format!("names {} providers, at most {MAX_PROVIDERS} are allowed", providers.len()),
        ));
    }
    match providers.first() {
        None => Ok(()),
        Some(name) => Err(CallError::FailedPrecondition {
            reason: "PROVIDER_MISSING",
            description: format!(
                "provider {:?} does not exist; create the sandbox without spec.providers",
                beginning(name)
            ),
        }),
    }
}

fn restart_policy(spec: &SandboxSpec) -> Checked {
    match SandboxRestartPolicy::try_from(spec.restart_policy) {
        Ok(SandboxRestartPolicy::Unspecified | SandboxRestartPolicy::Never) => Ok(()),
        Ok(other) => Err(CallError::invalid(
            "spec.restart_policy",
            format!(
                "is {}, which this gateway does not have; leave it out or use SANDBOX_RESTART_POLICY_NEVER and start \
                 the sandbox again by StartSandbox",
                other.as_str_name()
            ),
        )),
        Err(_) => Err(CallError::invalid(
            "spec.restart_policy",
            format!("is {}, which means nothing", spec.restart_policy),
        )),
    }
}

fn labels(labels: &HashMap<String, String>) -> Checked {
    if labels.len() > MAX_LABELS {
        return Err(CallError::invalid(
            "labels",
            format!("has {} labels, at most {MAX_LABELS} are allowed", labels.len()),
        ));
    }
    for (key, value) in labels {
        // The checks trim, as a selector's text may have spaces; a stored label may not.
        if key.trim() != key || value.trim() != value {
            return Err(CallError::invalid(
                "labels",
                format!("label {:?} has spaces around it", beginning(key)),
            ));
        }
        label_key(key).map_err(|what| CallError::invalid("labels", what))?;
        label_value(value).map_err(|what| CallError::invalid("labels", what))?;
    }
    Ok(())
}

fn text(field: &'static str, value: &str, limit: usize) -> Checked {
    if value.contains('\0') {
        return Err(CallError::invalid(field, "has a NUL"));
    }
    total(field, value.len(), limit)
}

fn total(field: &'static str, bytes: usize, limit: usize) -> Checked {
    if bytes > limit {
        return Err(CallError::invalid(
            field,
            format!("has {bytes} bytes, at most {limit} are allowed"),
        ));
    }
    Ok(())
}

fn bytes_of(map: &HashMap<String, String>) -> usize {
    map.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_spec(spec: SandboxSpec) -> CreateSandboxRequest {
        CreateSandboxRequest { spec: Some(spec), ..Default::default() }
    }

    fn fault(request: &CreateSandboxRequest) -> String {
        create(request).unwrap_err().to_string()
    }

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn names() {
        for good in ["a", "web-1", "0", "nineteen-characters"] {
            assert!(sandbox_name(good).is_ok(), "{good}");
        }
        for (bad, part) in [
            ("twenty-characters-xx", "at most 19"),
            ("Web", "a-z"),
            ("a_b", "a-z"),
            ("-a", "begin and end"),
            ("a-", "begin and end"),
            ("", "begin and end"),
            ("a--b", "'--'"),
            ("ä", "a-z"),
        ] {
            let text = sandbox_name(bad).unwrap_err().to_string();
            assert!(text.contains(part), "{bad:?}: {text}");
        }
    }

    #[test]
    fn each_limit_names_its_field() {
        let long = |n: usize| "x".repeat(n);
        let many =
            |n: usize| (0..n).map(|n| (format!("K{n}"), String::new())).collect::<HashMap<_, _>>();
        let spec = SandboxSpec::default;
        let cases = [
            (SandboxSpec { log_level: long(33), ..spec() }, "spec.log_level: has 33 bytes"),
            (
                SandboxSpec { environment: many(129), ..spec() },
                "spec.environment: has 129 variables",
            ),
            (
                SandboxSpec { environment: map(&[("A=B", "")]), ..spec() },
                "spec.environment: variable \"A=B\"",
            ),
            (
                SandboxSpec { environment: map(&[("A", &long(8193))]), ..spec() },
                "value of 8193 bytes",
            ),
            (
                SandboxSpec { command: vec![long(1); 257], ..spec() },
                "spec.command: has 257 arguments",
            ),
            (
                SandboxSpec { command: vec![long(262_145)], ..spec() },
                "spec.command: has 262145 bytes",
            ),
            (SandboxSpec { command: vec!["a\0".into()], ..spec() }, "NUL"),
            (SandboxSpec { providers: vec![long(1); 33], ..spec() }, "spec.providers: names 33"),
            (SandboxSpec { restart_policy: 3, ..spec() }, "SANDBOX_RESTART_POLICY_ALWAYS"),
            (SandboxSpec { restart_policy: 77, ..spec() }, "means nothing"),
        ];
        for (spec, part) in cases {
            let text = fault(&with_spec(spec));
            assert!(text.contains(part), "{part:?} not in {text:?}");
        }
    }

    #[test]
    fn parts_of_the_contract_that_are_missing_are_named() {
        let template = CreateSandboxRequest { workload_template: "t".into(), ..Default::default() };
        assert_eq!(create(&template).unwrap_err().code(), tonic::Code::Unimplemented);
        let exposed = CreateSandboxRequest {
            service_exposures: vec![Default::default()],
            ..Default::default()
        };
        assert!(fault(&exposed).contains("service_exposures"));
        let provided =
            with_spec(SandboxSpec { providers: vec!["github".into()], ..Default::default() });
        let error = create(&provided).unwrap_err();
        assert_eq!(error.code(), tonic::Code::FailedPrecondition);
        assert!(error.to_string().contains("github"));
    }

    #[test]
    fn labels_are_those_that_selectors_can_name() {
        let with = |pairs: &[(&str, &str)]| CreateSandboxRequest {
            labels: map(pairs),
            ..Default::default()
        };
        assert!(create(&with(&[("team.example/owner", "ada"), ("x", "")])).is_ok());
        for bad in [("a b", "x"), ("a", "x y"), ("", "x"), ("a", " x")] {
            assert!(create(&with(&[bad])).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pages_and_request_ids() {
        assert_eq!(page_size(0).unwrap(), DEFAULT_PAGE);
        assert_eq!(page_size(7).unwrap(), 7);
        assert_eq!(page_size(5000).unwrap(), MAX_PAGE);
        assert!(page_size(-1).is_err());
        assert!(request_id("").is_ok() && request_id("0192f0c1-77aa").is_ok());
        assert!(request_id("a b").is_err() && request_id(&"x".repeat(129)).is_err());
    }

    proptest! {
        #[test]
        fn no_name_panics(name in ".{0,40}") {
            let _ = sandbox_name(&name);
        }
    }
}
