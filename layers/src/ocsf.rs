//! Records what happened as events of the Open Cybersecurity Schema Framework.
//!
//! **Effect.** Every call and every opening of a relay becomes one event, however it ends; events go to files, standard output or
//! syslog without a request ever waiting for them.
//!
//! **Shape.** [`OcsfLayer`] on the call plane: the request gets an [`AuditNote`] in its extensions if the audit is [`ApiAudit`]; the
//! response body is wrapped in [`OcsfBody`], which passes every frame on as it is; a [`Refusal`](crate::refuse::Refusal) is read from
//! the response's extensions, the gRPC status from its headers or trailers. [`OcsfRelayLayer`] on the relay plane: everything
//! untouched, the open relay shown to the hook. Both give a [`Recorder`] typed events; anybody else may give it more.
//!
//! **Limits.** 8192 events wait at most ([`DEFAULT_CAPACITY`]) and as many are being written; an event is at most
//! [`MAX_LINE_BYTES`] as JSON. Beyond that events are dropped, counted ([`Recorder::counts`]) and told by a notice where they are
//! missing. A file takes [`FileConfig::max_bytes`](sink::FileConfig::max_bytes) times [`files`](sink::FileConfig::files) of disk.
//!
//! **Refuses** never. A sink that fails loses its events, not the call's answer.
//!
//! **Source.** OCSF schema 1.7.0 (<https://schema.ocsf.io/1.7.0>), the classes 1007, 2004, 3002, 4001, 4002, 4007, 5019, 6002 and 6003.
//! Severities, verdicts and the short line form follow the OpenShell contract. RFC 5424 and 5426 for syslog. CWE-117 and CVE-2021-42574
//! for what is escaped.
//!
//! **Order.** What stands inside is audited, what stands outside is not: outside `authenticate` refused callers become Authentication
//! events and the caller is learnt through the [`AuditNote`]; inside, the caller is known from the start but refusals are not seen.
//! Outside `deadline` in either case, so that calls cut short are told with their code.
//!
//! **Cost.** A call with [`ApiAudit`] takes about 5,400 instructions (callgrind, release build, counted without the bare service):
//! the clocks, one allocation for the texts, one for the note, a short lock and a push. An event built on the spot takes about 350 ns.
//! Everything else is done by the writer's thread: about 1 µs to render an event, 4 µs to write it to a file.
//!
//! ```
//! use postern_layers::ocsf::object::{Device, DeviceKind, Endpoint, Peers, Product};
//! use postern_layers::ocsf::{ConnectionActivity, NetworkActivity, Recorder, Record, Source, Status};
//!
//! let source = Source::new(Product::new("my-proxy"), Device::new(DeviceKind::Server, "edge-1"));
//! let (recorder, writer) = Recorder::builder(source)
//!     .sink(|record: &Record<'_>| {
//!         let mut line = String::new();
//!         record.write_short(&mut line);
//!         assert_eq!(line, "NET:OPEN [INFO] example.com:443 [msg:relay open]");
//!         Ok(())
//!     })
//!     .start()?;
//! let to = Peers::to(Endpoint::host("example.com").port(443));
//! recorder.record(
//!     NetworkActivity::new(ConnectionActivity::Open, to, recorder.now()).status(Status::Success).message("relay open"),
//! );
//! let counts = writer.shutdown(std::time::Duration::from_secs(5)).map_err(std::io::Error::other)?;
//! assert_eq!((counts.accepted, counts.sinks[0].written), (1, 1));
//! # Ok::<(), std::io::Error>(())
//! ```

mod api_activity;
mod api_audit;
mod application_lifecycle;
mod authentication;
mod call;
mod common;
mod config_state_change;
mod detection_finding;
mod draft;
mod event;
mod http_activity;
mod network_activity;
pub mod object;
mod process_activity;
mod queue;
mod recorder;
mod relay;
mod short;
pub mod sink;
mod ssh_activity;
mod text;
mod vocabulary;

pub use api_activity::{ApiActivity, ApiVerb};
pub use api_audit::{ApiAudit, ApiCall, AuditNote, Describe};
pub use application_lifecycle::{ApplicationLifecycle, LifecycleActivity};
pub use authentication::{AuthProtocol, Authentication, LogonActivity};
pub use call::{Audit, How, Ocsf, OcsfBody, OcsfLayer, Outcome, ResponseFuture};
pub use config_state_change::{ConfigActivity, ConfigState, ConfigStateChange, SecurityLevel};
pub use detection_finding::{DetectionFinding, FindingActivity, FindingStatus};
pub use draft::Draft;
pub use event::{Event, Record, SCHEMA_VERSION, Source};
pub use http_activity::HttpActivity;
pub use network_activity::{ConnectionActivity, NetworkActivity};
pub use process_activity::{LaunchKind, ProcessActivity};
pub use recorder::{
    Builder, Counts, DEFAULT_CAPACITY, DEFAULT_LINGER, Recorder, SinkCounts, Unwritten, Writer,
};
pub use relay::{AuditRelay, OcsfRelay, OcsfRelayLayer, OpeningFuture, RelayOutcome};
pub use sink::{Format, Sink};
pub use ssh_activity::{SshActivity, SshAuth};
pub use text::{
    MAX_DETAIL_BYTES, MAX_ENTRIES, MAX_LINE_BYTES, MAX_MESSAGE_BYTES, MAX_NAME_BYTES,
    MAX_SHORT_BYTES, MAX_URL_BYTES,
};
pub use vocabulary::{Confidence, Severity, Status, Value, Verdict};
