//! The supervisor as a program of its own. Behaves the same under the name `openshell-sandbox`.

use std::process::ExitCode;

fn main() -> ExitCode {
    postern_supervisor::main(std::env::args_os().skip(1))
}
