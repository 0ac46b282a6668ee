//! The sandbox's token: where it comes from, how long it lasts, and how it is renewed.
//!
//! Renewed at 80 % of its remaining life (OpenShell contract), a little later in some sandboxes than
//! in others so that a fleet does not ask at once. A renewed token re-authenticates the live session
//! where the gateway can do that, and replaces the token file, so that a supervisor that is started
//! again finds it.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_proto::v1::{IssueSandboxTokenRequest, RefreshSandboxTokenRequest};
use postern_relay::transport::{Connection, SharedToken};
use serde::Deserialize;
use tokio::sync::watch;
use tonic::Code;

use crate::gateway::Gateway;

/// Share of the remaining life after which a token is renewed, in percent.
const RENEW_AT_PERCENT: u32 = 80;

/// Shortest and longest time until a renewal (contract).
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(12 * 60 * 60);

/// Time until the renewal of a token whose end is not known (contract).
const UNKNOWN_WAIT: Duration = Duration::from_secs(6 * 60 * 60);

/// Time until another try after a failed renewal (contract).
const RETRY_WAIT: Duration = Duration::from_secs(10);

/// Largest token file that is read, in bytes: a token has some hundreds.
const MAX_TOKEN: u64 = 64 * 1024;

/// A token that does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The token itself, for a request.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// How long from `now` the token is valid; `None` when it does not say.
    fn remaining(&self, now: SystemTime) -> Option<Duration> {
        #[derive(Deserialize)]
        struct Claims {
            #[serde(default)]
            exp: u64,
        }
        let payload = self.0.split('.').nth(1)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
        let claims: Claims = serde_json::from_slice(&payload).ok()?;
        if claims.exp == 0 {
            return None;
        }
        let end = UNIX_EPOCH + Duration::from_secs(claims.exp);
        Some(end.duration_since(now).unwrap_or_default())
    }
}

impl From<String> for Token {
    fn from(token: String) -> Self {
        Self(token)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(masked)")
    }
}

/// Where a sandbox's first token comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Given in the environment.
    Value(Token),
    /// A file, which also takes renewed tokens.
    File(PathBuf),
    /// A Kubernetes service account token, exchanged for a sandbox token at the gateway.
    ServiceAccount(PathBuf),
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// A file cannot be read.
    #[error("the token file {path} cannot be read")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The token cannot stand in a header.
    #[error("the token holds bytes that no request can carry")]
    Unusable,
    /// The gateway gave none.
    #[error("the gateway issued no token")]
    Refused {
        /// Its answer.
        #[source]
        status: Box<tonic::Status>,
    },
}

/// The token in use. Clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    source: Option<Source>,
    shared: SharedToken,
    renewed: watch::Sender<Option<Token>>,
}

impl Keeper {
    /// A keeper for a source; without one, requests carry no token.
    #[must_use]
    pub fn new(source: Option<Source>) -> Self {
        Self { source, shared: SharedToken::default(), renewed: watch::Sender::new(None) }
    }

    /// What puts the token into requests.
    #[must_use]
    pub fn shared(&self) -> &SharedToken {
        &self.shared
    }

    /// Tells of each renewed token.
    #[must_use]
    pub fn renewals(&self) -> watch::Receiver<Option<Token>> {
        self.renewed.subscribe()
    }

    /// Gets a token, afresh when `rejected` says that the one in use no longer works.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn obtain(&self, connection: &Connection, rejected: bool) -> Result<(), TokenError> {
        let current = self.renewed.borrow().clone();
        if current.is_some() && !rejected {
            return Ok(());
        }
        let token = match &self.source {
            None => return Ok(()),
            // Another one does not exist; the renewed one may still be the better.
            Some(Source::Value(token)) => current.unwrap_or_else(|| token.clone()),
            // A driver may have written a new one while we were away.
            Some(Source::File(path)) => read(path)?,
            Some(Source::ServiceAccount(path)) => {
                self.use_for_requests(&read(path)?)?;
                let issued = Gateway::client(connection)
                    .issue_sandbox_token(IssueSandboxTokenRequest {})
                    .await
                    .map_err(|status| TokenError::Refused { status: Box::new(status) })?;
                Token(issued.into_inner().token)
            }
        };
        self.use_for_requests(&token)?;
        self.renewed.send_replace(Some(token));
        Ok(())
    }

    fn use_for_requests(&self, token: &Token) -> Result<(), TokenError> {
        self.shared.set(token.reveal()).map_err(|_| TokenError::Unusable)
    }

    /// Renews the token for as long as the future is polled.
    pub async fn keep_fresh(self, gateway: Gateway, sandbox_id: String) {
        let mut renewals = self.renewals();
        loop {
            let Ok(token) = renewals.wait_for(Option::is_some).await.map(|token| token.clone())
            else {
                return;
            };
            let Some(token) = token else { continue };
            let due = SystemTime::now() + renewal_wait(&token, &sandbox_id, SystemTime::now());
            tokio::select! {
                () = wall_clock_reaches(due) => {}
                // Somebody else got a new one.
                _ = renewals.changed() => continue,
            }
            while let Err(error) = self.renew(&gateway).await {
                tracing::warn!(%error, "the sandbox token could not be renewed; trying again");
                tokio::time::sleep(RETRY_WAIT).await;
            }
        }
    }

    async fn renew(&self, gateway: &Gateway) -> Result<(), TokenError> {
        let connection = gateway.connection().await;
        let request = RefreshSandboxTokenRequest::default();
        let answer = match Gateway::client(&connection).refresh_sandbox_token(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::Unauthenticated => {
                return self.obtain(&connection, true).await;
            }
            Err(status) => {
                return Err(TokenError::Refused { status: Box::new(status) });
            }
        };
        let token =
            if answer.sandbox_token.is_empty() { answer.token } else { answer.sandbox_token };
        let token = Token(token);
        self.use_for_requests(&token)?;
        if let Some(Source::File(path)) = &self.source
            && let Err(error) = write(path, &token)
        {
            tracing::warn!(%error, path = %path.display(), "the renewed token could not be kept");
        }
        self.renewed.send_replace(Some(token));
        tracing::info!("the sandbox token was renewed");
        Ok(())
    }
}

/// Waits by the wall clock, which goes on while the machine sleeps; the token's life does too.
async fn wall_clock_reaches(due: SystemTime) {
    /// Most time by which a renewal is late after the machine woke up.
    const LOOK_EVERY: Duration = Duration::from_secs(30);
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK_EVERY).max(Duration::from_millis(1))).await;
    }
}

/// How long to wait from `now` before renewing.
fn renewal_wait(token: &Token, sandbox_id: &str, now: SystemTime) -> Duration {
    let Some(remaining) = token.remaining(now) else {
        return UNKNOWN_WAIT;
    };
    // 0 to 9 %, always the same for one sandbox.
    let spread = sandbox_id
        .bytes()
        .fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)))
        % 10;
    let wait = remaining / 100 * (RENEW_AT_PERCENT + spread);
    wait.clamp(SHORTEST_WAIT, LONGEST_WAIT)
}

fn read(path: &Path) -> Result<Token, TokenError> {
    use io::Read as _;
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text))
        .map_err(|source| TokenError::Read { path: path.display().to_string(), source })?;
    Ok(Token(text.trim().to_owned()))
}

/// Replaces the file in one step, readable by its owner only.
fn write(path: &Path, token: &Token) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let mut file =
        fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(token.reveal().as_bytes())?;
    file.sync_all()?;
    fs::rename(&staged, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn token(payload: &str) -> Token {
        Token(format!("e30.{}.x", URL_SAFE_NO_PAD.encode(payload)))
    }

    #[test]
    fn renewal_comes_at_four_fifths_of_the_remaining_life() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        let wait = |payload, id| renewal_wait(&token(payload), id, now).as_secs();
        assert_eq!(wait(r#"{"exp":2000}"#, ""), 800);
        let spread: Vec<u64> = ["a", "b", "c", "d"].map(|id| wait(r#"{"exp":2000}"#, id)).into();
        assert!(spread.iter().all(|wait| (800..=890).contains(wait)));
        assert!(spread.windows(2).any(|pair| pair[0] != pair[1]));
        assert_eq!(wait(r#"{"exp":1}"#, ""), 1);
        assert_eq!(wait(r#"{"exp":99999999}"#, ""), 12 * 60 * 60);
        assert_eq!(wait(r#"{"exp":0}"#, ""), 6 * 60 * 60);
        assert_eq!(wait("nonsense", ""), 6 * 60 * 60);
        assert_eq!(renewal_wait(&Token("opaque".into()), "", now), UNKNOWN_WAIT);
    }

    #[test]
    fn a_token_is_kept_private_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "old\n").unwrap();
        assert_eq!(read(&path).unwrap().reveal(), "old");
        write(&path, &Token("new".into())).unwrap();
        assert_eq!(read(&path).unwrap().reveal(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_token_does_not_show_itself() {
        let source = Source::Value("topsecret".to_owned().into());
        assert!(
            !format!("{source:?} {:?}", Keeper::new(Some(source.clone()))).contains("topsecret")
        );
    }
}
