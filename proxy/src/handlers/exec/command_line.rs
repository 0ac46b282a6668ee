//! An exec request as one shell line, the way every OpenShell-compatible supervisor runs it (`bash -lc LINE`).
//!
//! Limits are the OpenShell contract's: they keep a line below what the kernel takes as one argument list and a
//! request from being used as an upload. Everything the caller gives is quoted; nothing of it is ever parsed by the
//! shell.

use std::collections::HashMap;

use postern_proto::v1::ExecSandboxRequest;

/// Arguments of one command.
pub const MAX_ARGUMENTS: usize = 1024;
/// Bytes of one argument or of one environment value.
pub const MAX_VALUE_BYTES: usize = 32 * 1024;
/// Bytes of the working directory (the kernel's `PATH_MAX`).
pub const MAX_WORKDIR_BYTES: usize = 4096;
/// Bytes of the whole line.
pub const MAX_LINE_BYTES: usize = 256 * 1024;
/// The one name with the reserved prefix that callers may set: the Python SDK ships functions in it.
pub const PYTHON_FUNCTION: &str = "OPENSHELL_PYFUNC_B64";

/// Prefix of the names that belong to the sandbox itself.
const RESERVED_PREFIX: &str = "OPENSHELL_";

/// Why a request cannot become a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCommand {
    /// No command.
    #[error("the command is empty; give at least the program to run")]
    Empty,
    /// Too many arguments.
    #[error("{count} arguments are more than {MAX_ARGUMENTS}")]
    TooManyArguments {
        /// How many there are.
        count: usize,
    },
    /// An argument is too long.
    #[error("argument {index} has {bytes} bytes, more than {MAX_VALUE_BYTES}")]
    LongArgument {
        /// Place in the command, from 0.
        index: usize,
        /// Its length.
        bytes: usize,
    },
    /// An argument holds a NUL byte.
    #[error("argument {index} holds a NUL byte")]
    NulInArgument {
        /// Place in the command, from 0.
        index: usize,
    },
    /// The name of a variable is not a shell name.
    #[error("{name:?} is not a name: letters, digits and underscores, not beginning with a digit")]
    BadName {
        /// The name.
        name: String,
    },
    /// The name of a variable belongs to the sandbox.
    #[error("names that begin with {RESERVED_PREFIX} belong to the sandbox; rename {name}")]
    ReservedName {
        /// The name.
        name: String,
    },
    /// A value is too long.
    #[error("the value of {name} has {bytes} bytes, more than {MAX_VALUE_BYTES}")]
    LongValue {
        /// Name of the variable.
        name: String,
        /// Length of its value.
        bytes: usize,
    },
    /// A value holds a NUL byte or a line break.
    #[error("the value of {name} holds a NUL byte or a line break")]
    BadValue {
        /// Name of the variable.
        name: String,
    },
    /// The working directory is too long or holds a NUL byte or a line break.
    #[error(
        "the working directory is longer than {MAX_WORKDIR_BYTES} bytes or holds a NUL byte or a line break"
    )]
    BadWorkdir,
    /// The line is too long.
    #[error(
        "the command line has {bytes} bytes, more than {MAX_LINE_BYTES}; send large input as stdin"
    )]
    LongLine {
        /// Its length.
        bytes: usize,
    },
}

/// The line for `request`: `cd DIR && NAME='value' 'program' 'argument'`.
///
/// # Errors
/// [`InvalidCommand`] for the first rule that the request breaks.
pub fn command_line(request: &ExecSandboxRequest) -> Result<String, InvalidCommand> {
    check_command(&request.command)?;
    check_environment(&request.environment)?;
    let mut line = String::new();
    if !request.workdir.is_empty() {
        let workdir = &request.workdir;
        if workdir.len() > MAX_WORKDIR_BYTES || workdir.contains(['\0', '\n', '\r']) {
            return Err(InvalidCommand::BadWorkdir);
        }
        // `--`, so that a directory called `-P` is a directory.
        line.push_str("cd -- ");
        push_quoted(&mut line, workdir);
        line.push_str(" && ");
    }
    let mut names: Vec<&String> = request.environment.keys().collect();
    names.sort();
    for name in names {
        line.push_str(name);
        line.push('=');
        push_quoted(&mut line, &request.environment[name]);
        line.push(' ');
    }
    for (index, argument) in request.command.iter().enumerate() {
        if index > 0 {
            line.push(' ');
        }
        push_quoted(&mut line, argument);
    }
    if line.len() > MAX_LINE_BYTES {
        return Err(InvalidCommand::LongLine { bytes: line.len() });
    }
    Ok(line)
}

/// The first 120 characters of a command for the log, on one line.
#[must_use]
pub fn preview(command: &[String]) -> String {
    const PREVIEW_CHARACTERS: usize = 120;
    command.join(" ").chars().take(PREVIEW_CHARACTERS).flat_map(char::escape_default).collect()
}

fn check_command(command: &[String]) -> Result<(), InvalidCommand> {
    if command.first().is_none_or(String::is_empty) {
        return Err(InvalidCommand::Empty);
    }
    if command.len() > MAX_ARGUMENTS {
        return Err(InvalidCommand::TooManyArguments { count: command.len() });
    }
    for (index, argument) in command.iter().enumerate() {
        let bytes = argument.len();
        if bytes > MAX_VALUE_BYTES {
            return Err(InvalidCommand::LongArgument { index, bytes });
        }
        if argument.contains('\0') {
            return Err(InvalidCommand::NulInArgument { index });
        }
    }
    Ok(())
}

fn check_environment(environment: &HashMap<String, String>) -> Result<(), InvalidCommand> {
    for (name, value) in environment {
        let mut characters = name.chars();
        let begins =
            characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_');
        if !begins || !characters.all(|next| next.is_ascii_alphanumeric() || next == '_') {
            return Err(InvalidCommand::BadName { name: name.clone() });
        }
        if name.starts_with(RESERVED_PREFIX) && name != PYTHON_FUNCTION {
            return Err(InvalidCommand::ReservedName { name: name.clone() });
        }
        let bytes = value.len();
        if bytes > MAX_VALUE_BYTES {
            let name = name.clone();
            return Err(InvalidCommand::LongValue { name, bytes });
        }
        if value.contains(['\0', '\n', '\r']) {
            return Err(InvalidCommand::BadValue { name: name.clone() });
        }
    }
    Ok(())
}

/// POSIX: inside single quotes every byte stands for itself, and a single quote cannot stand there at all.
fn push_quoted(line: &mut String, word: &str) {
    line.push('\'');
    for part in word.split_inclusive('\'') {
        match part.strip_suffix('\'') {
            Some(before) => {
                line.push_str(before);
                line.push_str("'\\''");
            }
            None => line.push_str(part),
        }
    }
    line.push('\'');
}

// === impl InvalidCommand ===

impl InvalidCommand {
    /// The field of `ExecSandboxRequest` that the fault is in.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        match self {
            Self::BadName { .. }
            | Self::ReservedName { .. }
            | Self::LongValue { .. }
            | Self::BadValue { .. } => "environment",
            Self::BadWorkdir => "workdir",
            _ => "command",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(command: &[&str]) -> ExecSandboxRequest {
        ExecSandboxRequest {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            ..ExecSandboxRequest::default()
        }
    }

    #[test]
    fn directory_then_sorted_variables_then_words() {
        let mut given = request(&["printf", "%s", "it's"]);
        given.workdir = "/tmp/a b".to_owned();
        given.environment =
            HashMap::from([("B".to_owned(), "2".to_owned()), ("A".to_owned(), "$(x)".to_owned())]);
        assert_eq!(
            command_line(&given).unwrap(),
            r"cd -- '/tmp/a b' && A='$(x)' B='2' 'printf' '%s' 'it'\''s'"
        );
    }

    #[test]
    fn each_limit_names_its_field() {
        let long = "x".repeat(MAX_VALUE_BYTES + 1);
        let env = |name: &str, value: &str| {
            let mut given = request(&["true"]);
            given.environment = HashMap::from([(name.to_owned(), value.to_owned())]);
            given
        };
        let workdir = |dir: &str| {
            let mut given = request(&["true"]);
            given.workdir = dir.to_owned();
            given
        };
        for (given, field) in [
            (request(&[]), "command"),
            (request(&[""]), "command"),
            (request(&vec!["a"; MAX_ARGUMENTS + 1]), "command"),
            (request(&["echo", &long]), "command"),
            (request(&["echo", "a\0b"]), "command"),
            (request(&["y".repeat(30_000).as_str(); 9]), "command"),
            (env("1A", ""), "environment"),
            (env("A-B", ""), "environment"),
            (env("", ""), "environment"),
            (env("OPENSHELL_SANDBOX", "1"), "environment"),
            (env("A", &long), "environment"),
            (env("A", "a\nb"), "environment"),
            (workdir("/a\nb"), "workdir"),
            (workdir(&"d".repeat(MAX_WORKDIR_BYTES + 1)), "workdir"),
        ] {
            let fault = command_line(&given).unwrap_err();
            assert_eq!(fault.field(), field, "{fault}");
        }
        assert!(command_line(&env(PYTHON_FUNCTION, "gASV")).is_ok());
        assert!(command_line(&request(&["printf", "two\nlines"])).is_ok());
    }

    #[test]
    fn a_preview_is_one_short_line() {
        let shown = preview(&["echo".to_owned(), "a\nb".to_owned(), "c".repeat(200)]);
        assert!(shown.starts_with("echo a\\nb ccc"));
        assert!(!shown.contains('\n'));
        assert!(shown.len() < 200);
    }

    proptest! {
        /// What the shell splits the line into is what the caller gave, byte for byte.
        #[test]
        fn quoting_survives_a_real_shell(words in prop::collection::vec("[^\0]{1,12}", 1..5)) {
            let mut command = vec!["printf".to_owned(), "%s\\0".to_owned()];
            command.extend(words.clone());
            let given = ExecSandboxRequest { command, ..ExecSandboxRequest::default() };
            let line = command_line(&given).unwrap();
            let shell = std::process::Command::new("/bin/sh").arg("-c").arg(&line).output().unwrap();
            let mut wanted = words.join("\0").into_bytes();
            wanted.push(0);
            prop_assert_eq!(shell.stdout, wanted);
        }
    }
}
