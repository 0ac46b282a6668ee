//! Sandbox policy. Pure: values in, decisions out; no IO and no clock.
//!
//! [`limits`] is what a gateway checks before it stores a policy that came with a request. The
//! compiled matcher arrives with the egress plane.

#![deny(missing_docs)]

pub mod limits;
