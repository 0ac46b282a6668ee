//! The explicit local mode: whoever reaches the socket without any credential is a developer with every right.
//!
//! It exists for a gateway on a laptop and has to be switched on by name. It stands last in the chain, so a bad token
//! or a certificate without a role has been refused before it is asked.

use std::future::{Ready, ready};

use http::request::Parts;
use postern_layers::authenticate::{Authenticate, Outcome};

use super::{Principal, User};

/// Supplies the local developer, if the mode is on.
#[derive(Clone, Copy, Debug)]
pub struct LocalDev {
    allowed: bool,
}

impl LocalDev {
    /// `allowed`: whether the operator switched the mode on.
    #[must_use]
    pub const fn new(allowed: bool) -> Self {
        Self { allowed }
    }
}

impl Authenticate<Principal> for LocalDev {
    type Future = Ready<Outcome<Principal>>;

    fn authenticate(&self, _head: &Parts) -> Self::Future {
        ready(if self.allowed {
            Outcome::Principal(Principal::User(User::local_dev()))
        } else {
            Outcome::NotMine
        })
    }
}
