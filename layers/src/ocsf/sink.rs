//! Where events go: a file, standard output, syslog, or anything that implements [`Sink`].

mod file;
mod stdout;
mod syslog;

use std::io;

use super::event::Record;

pub use file::{FileConfig, FileSink};
pub use stdout::StdoutSink;
pub use syslog::{Facility, SyslogConfig, SyslogSink, SyslogTarget};

/// Takes events one at a time, on the writer's own thread, in order.
///
/// It may block for a bounded time: meanwhile the queue fills and then events are dropped and counted, but no request waits.
/// An error means that this one event did not arrive; the next is tried all the same, and when one arrives again, a notice of
/// how many were lost goes before it.
pub trait Sink: Send {
    /// A short name for counters and messages.
    fn name(&self) -> &'static str;

    /// Writes one event.
    ///
    /// # Errors
    /// If the event did not arrive as a whole. It must not leave half an event behind.
    fn write(&mut self, record: &Record<'_>) -> io::Result<()>;

    /// Called when no more events wait.
    ///
    /// # Errors
    /// If what was written may not have arrived.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Called once, after the last event.
    ///
    /// # Errors
    /// If what was written may not last.
    fn close(&mut self) -> io::Result<()> {
        self.flush()
    }
}

/// A closure is a sink of its own, for tests and for forwarding.
impl<F> Sink for F
where
    F: FnMut(&Record<'_>) -> io::Result<()> + Send,
{
    fn name(&self) -> &'static str {
        "closure"
    }

    fn write(&mut self, record: &Record<'_>) -> io::Result<()> {
        self(record)
    }
}

/// How a sink writes an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Format {
    /// One line of JSON, for collectors.
    #[default]
    Json,
    /// The short form, for people.
    Short,
}

impl Format {
    /// Appends `record` in this format, without a line end.
    pub fn render(self, record: &Record<'_>, line: &mut Vec<u8>) {
        match self {
            Self::Json => record.write_json(line),
            Self::Short => {
                let mut text = String::with_capacity(128);
                record.write_short(&mut text);
                line.extend_from_slice(text.as_bytes());
            }
        }
    }
}
