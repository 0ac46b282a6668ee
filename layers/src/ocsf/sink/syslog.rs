//! Events to syslog (RFC 5424), over the local socket or UDP.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use super::{Format, Sink};
use crate::ocsf::event::Record;
use crate::ocsf::vocabulary::Severity;

/// How long one datagram may wait for a stalled local daemon before the event counts as lost.
const SEND_LIMIT: Duration = Duration::from_secs(1);

/// Largest datagram to the local socket, in bytes: what rsyslog takes by default. A longer JSON line is sent in the short form.
const MAX_LOCAL_BYTES: usize = 8 * 1024;

/// Largest datagram over UDP, in bytes: what RFC 5426 section 3.2 says receivers should take.
const MAX_UDP_BYTES: usize = 2048;

/// Where the daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum SyslogTarget {
    /// A Unix datagram socket, by custom `/dev/log`.
    Local(PathBuf),
    /// A UDP address, by custom port 514 (RFC 5426). Datagrams may get lost without notice.
    Udp(SocketAddr),
}

/// Under which facility the events stand (RFC 5424 table 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Facility {
    /// Security and authorization messages, kept apart from what everyone may read.
    #[default]
    Authpriv,
    /// Log audit.
    Audit,
    /// Local use 0.
    Local0,
    /// Local use 1.
    Local1,
    /// Local use 2.
    Local2,
    /// Local use 3.
    Local3,
    /// Local use 4.
    Local4,
    /// Local use 5.
    Local5,
    /// Local use 6.
    Local6,
    /// Local use 7.
    Local7,
}

impl Facility {
    const fn number(self) -> u8 {
        match self {
            Self::Authpriv => 10,
            Self::Audit => 13,
            Self::Local0 => 16,
            Self::Local1 => 17,
            Self::Local2 => 18,
            Self::Local3 => 19,
            Self::Local4 => 20,
            Self::Local5 => 21,
            Self::Local6 => 22,
            Self::Local7 => 23,
        }
    }
}

/// Where to and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct SyslogConfig {
    /// Where the daemon listens.
    pub target: SyslogTarget,
    /// The facility.
    #[cfg_attr(feature = "serde", serde(default))]
    pub facility: Facility,
    /// JSON unless said.
    #[cfg_attr(feature = "serde", serde(default))]
    pub format: Format,
}

impl SyslogConfig {
    /// The defaults, for that target.
    #[must_use]
    pub fn new(target: SyslogTarget) -> Self {
        Self { target, facility: Facility::default(), format: Format::default() }
    }
}

enum Socket {
    Local(UnixDatagram),
    Udp(UdpSocket),
}

impl Socket {
    fn open(target: &SyslogTarget) -> io::Result<Self> {
        match target {
            SyslogTarget::Local(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_write_timeout(Some(SEND_LIMIT))?;
                Ok(Self::Local(socket))
            }
            SyslogTarget::Udp(address) => {
                let any: SocketAddr = match address {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(address)?;
                socket.set_write_timeout(Some(SEND_LIMIT))?;
                Ok(Self::Udp(socket))
            }
        }
    }

    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let sent = match self {
            Self::Local(socket) => socket.send(datagram)?,
            Self::Udp(socket) => socket.send(datagram)?,
        };
        if sent == datagram.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// Sends each event as one datagram. A daemon that was restarted is found again with the next event.
pub struct SyslogSink {
    config: SyslogConfig,
    socket: Option<Socket>,
    pid: u32,
    header: String,
    datagram: Vec<u8>,
}

impl std::fmt::Debug for SyslogSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyslogSink").field("config", &self.config).finish_non_exhaustive()
    }
}

impl SyslogSink {
    /// Connects to the daemon.
    ///
    /// # Errors
    /// That of the socket: nothing listens at the path, or the address family is not there.
    pub fn open(config: SyslogConfig) -> io::Result<Self> {
        let socket = Socket::open(&config.target)?;
        Ok(Self {
            config,
            socket: Some(socket),
            pid: std::process::id(),
            header: String::new(),
            datagram: Vec::new(),
        })
    }

    fn render(&mut self, record: &Record<'_>) {
        self.header.clear();
        write_header(&mut self.header, self.config.facility, self.pid, record);
        let limit = match self.config.target {
            SyslogTarget::Local(_) => MAX_LOCAL_BYTES,
            SyslogTarget::Udp(_) => MAX_UDP_BYTES,
        };
        self.datagram.clear();
        self.datagram.extend_from_slice(self.header.as_bytes());
        self.config.format.render(record, &mut self.datagram);
        if self.datagram.len() > limit {
            // Half a JSON object is of no use; a short line, cut if need be, is.
            self.datagram.truncate(self.header.len());
            let mut text = String::new();
            record.write_short(&mut text);
            let room = limit.saturating_sub(self.header.len());
            self.datagram.extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(room)]);
        }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.socket.is_none() {
            self.socket = Some(Socket::open(&self.config.target)?);
        }
        match &self.socket {
            Some(socket) => socket.send(&self.datagram),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Sink for SyslogSink {
    fn name(&self) -> &'static str {
        "syslog"
    }

    fn write(&mut self, record: &Record<'_>) -> io::Result<()> {
        self.render(record);
        let Err(first) = self.send() else { return Ok(()) };
        self.socket = None;
        // A stalled daemon would stall twice; any other failure may be a daemon that was started anew.
        if matches!(first.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            return Err(first);
        }
        let second = self.send();
        if second.is_err() {
            self.socket = None;
        }
        second
    }
}

/// Severity of RFC 5424 table 2.
const fn syslog_severity(severity: Severity) -> u8 {
    match severity {
        Severity::Informational => 6,
        Severity::Low => 5,
        Severity::Medium => 4,
        Severity::High => 3,
        Severity::Critical => 2,
        Severity::Fatal => 1,
    }
}

/// `<PRI>1 TIME HOST APP PID MSGID - ` (RFC 5424 section 6). The message id is the class.
fn write_header(out: &mut String, facility: Facility, pid: u32, record: &Record<'_>) {
    let event = record.event();
    let priority = u16::from(facility.number()) * 8 + u16::from(syslog_severity(event.severity()));
    // Writing into a String does not fail.
    let _ = write!(out, "<{priority}>1 ");
    push_time(out, event.time());
    out.push(' ');
    push_field(out, record.source().hostname(), 255);
    out.push(' ');
    push_field(out, record.source().product().name(), 48);
    let _ = write!(out, " {pid} ocsf-{} - ", event.class_uid());
}

/// A header field: printable ASCII without spaces, `-` if nothing is left (RFC 5424 section 6: PRINTUSASCII, NILVALUE).
fn push_field(out: &mut String, text: &str, max: usize) {
    let before = out.len();
    out.extend(text.chars().filter(char::is_ascii_graphic).take(max));
    if out.len() == before {
        out.push('-');
    }
}

/// `2026-01-02T03:04:05.678Z` from milliseconds since 1970. The civil date follows Howard Hinnant's days-to-civil algorithm.
fn push_time(out: &mut String, milliseconds: i64) {
    const DAY: i64 = 86_400_000;
    // Days since 0000-03-01, so that a leap day is the last day of its year.
    let days = milliseconds.div_euclid(DAY) + 719_468;
    let of_day = milliseconds.rem_euclid(DAY);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60);
    let milli = of_day % 1000;
    let _ =
        write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil_dates() {
        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (4_107_542_399_123, "2100-02-28T23:59:59.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            let mut out = String::new();
            push_time(&mut out, milliseconds);
            assert_eq!(out, text);
        }
    }

    #[test]
    fn header_fields_hold_no_spaces() {
        let mut out = String::new();
        push_field(&mut out, "a b\n\u{e9}c", 48);
        push_field(&mut out, " \n", 48);
        assert_eq!(out, "abc-");
    }
}
