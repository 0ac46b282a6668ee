//! `postern certs`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use postern_identity::pki::{LocalAuthority, PkiError};

use super::{chain, failed};

/// Where and for whom.
#[derive(Args, Debug)]
pub struct CertsArgs {
    /// Folder; made if it is not there. What is in it and not near its end is kept.
    folder: PathBuf,
    /// Name or address of the gateway besides localhost; may be repeated.
    #[arg(long = "server-san", value_name = "NAME")]
    server_sans: Vec<String>,
    /// Name of the user in the client certificate.
    #[arg(long, default_value = "admin")]
    user: String,
}

/// Makes an authority, and certificates for a gateway, a user and sandboxes.
#[must_use]
pub fn run(args: &CertsArgs) -> ExitCode {
    match make(args) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => failed(&chain(&error)),
    }
}

fn make(args: &CertsArgs) -> Result<String, PkiError> {
    let now = SystemTime::now();
    let authority = LocalAuthority::open_or_create(&args.folder, now)?;
    let names: Vec<String> = ["localhost", "127.0.0.1", "::1"]
        .into_iter()
        .map(str::to_owned)
        .chain(args.server_sans.iter().cloned())
        .collect();
    let issued = [
        ("gateway", authority.server(&names, now)?),
        ("user", authority.local_user(&args.user, now)?),
        ("sandboxes", authority.sandbox(now)?),
    ];
    let mut text = format!("authority: {}\n", authority.certificate_path().display());
    for (whom, certificate) in issued {
        let word = if certificate.made { "made" } else { "kept" };
        text.push_str(&format!(
            "{whom}: {} and {} ({word})\n",
            certificate.certificate.display(),
            certificate.key.display()
        ));
    }
    Ok(text)
}
