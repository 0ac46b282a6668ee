//! Joining the two halves of a relay.
//!
//! A relay is two HTTP/2 exchanges on the gateway: the requester's (`ForwardTcp`, `CONNECT`, an
//! in-process SSH client) and the supervisor's `RelayStream`. Splicing makes the rest of each
//! request body the response body of the other. No task, pipe or queue stands between them: the
//! server that writes one response polls the other request, so back-pressure is HTTP/2 flow
//! control from end to end.
//!
//! *Shape*: [`crate::registry::Registry::claim`] gives the supervisor's call its [`SplicedBody`]
//! and the requester an [`OpenedRelay`]; the requester attaches its own side with
//! [`OpenedRelay::splice`] or turns the relay into a byte stream with [`OpenedRelay::into_io`].
//!
//! *Ends*: end of a source body is end of file: trailers with `grpc-status: 0`, and the other
//! direction goes on. A source that fails, an [`AbortHandle`], a malformed frame or a side that
//! went away ends both directions at once with trailers that carry a code and a reason; that is
//! never mistaken for end of file.
//!
//! *Limits*: a spliced relay holds no payload of its own. What can be in flight is bounded by the
//! two connections' stream windows and hyper's send buffer per stream. [`RelayIo`] adds at most
//! [`WRITE_BUFFER`] bytes for its writer.

mod end;
mod io;
mod joined;
#[cfg(test)]
mod tests;

pub use end::{EndKind, OnRelayEnd, RelayEnd, RelayInfo, Side};
pub use io::{RelayFailed, RelayIo, WRITE_BUFFER};
pub use joined::{AbortHandle, OpenedRelay, SplicedBody};

pub(crate) use joined::{RelayHooks, join};
