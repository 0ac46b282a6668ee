//! Events on standard output, where containers are expected to write their log.

use std::io::{self, Write};

use super::{Format, Sink};
use crate::ocsf::event::Record;

/// Writes each event as one line, in one write, so that lines of other threads do not mix with it.
#[derive(Debug)]
pub struct StdoutSink {
    format: Format,
    line: Vec<u8>,
}

impl StdoutSink {
    /// Writes in that format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { format, line: Vec::new() }
    }
}

impl Sink for StdoutSink {
    fn name(&self) -> &'static str {
        "stdout"
    }

    fn write(&mut self, record: &Record<'_>) -> io::Result<()> {
        self.line.clear();
        self.format.render(record, &mut self.line);
        self.line.push(b'\n');
        io::stdout().lock().write_all(&self.line)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().flush()
    }
}
