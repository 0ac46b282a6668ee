//! One description of HTTP/2 flow control and keepalive, for the server's and the client's end.
//!
//! **Effect.** Sets windows, frame size, stream and header limits, keepalive and reset limits of a connection.
//!
//! **Shape.** Not a service: a [`Config`] that is applied to the builders of hyper and hyper-util (feature
//! `hyper`), before a connection is served or made. tonic clients are reached through the same builder.
//!
//! **Limits.**
//!
//! | field | default | why, and what it protects |
//! |---|---|---|
//! | `stream` | 2 MiB | what a sender may have under way on one stream; bulk at 10 ms round trip and 1.6 Gbit/s |
//! | `connection` | 64 MiB | the same for all streams together, hence the memory that one peer can pin; far above `stream`, because streams whose readers stalled fill it, and the session's heartbeats need some of it |
//! | `adaptive` | off | hyper's own estimate ignores both windows, and reaches less than a fixed 2/4 MiB |
//! | `max_frame` | 128 KiB | a socket read of 64 KiB passes in one frame; a small write waits for at most one, 0.5 ms at 1 Gbit/s |
//! | `max_streams` | 1024 | calls and relays of one peer at a time |
//! | `max_header_list` | 16 KiB | memory per request head |
//! | `keepalive_interval` | 20 s | a peer that is gone is noticed within interval + timeout |
//! | `keepalive_timeout` | 10 s | time for the answer to a ping |
//! | `max_pending_reset` | 20 | streams reset before they were accepted: CVE-2023-44487 |
//! | `max_local_reset` | 1024 | streams that the server had to reset for the peer's faults |
//! | `max_send_buffer` | 1 MiB | what is buffered per stream towards a slow reader |
//!
//! **Refuses** nothing; a peer that breaks a limit is answered by the HTTP/2 implementation (RFC 9113 section 5.4).
//!
//! **Source.** RFC 9113 sections 5.2, 6.5 and 10.5; the measurement behind the windows is that of the relay bench.
//!
//! **Cost.** None per call. At the default windows the peers behind one connection pin at most 64 MiB by not
//! reading, plus one send buffer per stream.

use std::time::Duration;

use crate::{
    config::{Fault, require},
    units::format_size,
};

/// The largest window of RFC 9113 section 6.9.1, in bytes.
const LARGEST_WINDOW: u32 = (1 << 31) - 1;
/// The range of a frame size, RFC 9113 section 6.5.2, in bytes.
const FRAME_RANGE: std::ops::RangeInclusive<u32> = (1 << 14)..=((1 << 24) - 1);

/// Windows, limits and keepalive of one HTTP/2 connection. In a file, sizes are `"2MiB"`, durations `"20s"`, and
/// `"off"` turns the keepalive off.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// The receive window of a stream, in bytes. Default 2 MiB.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::size"))]
    pub stream: u32,
    /// The receive window of the connection, in bytes. Default 64 MiB.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::size"))]
    pub connection: u32,
    /// Lets hyper estimate the windows instead. Default false.
    pub adaptive: bool,
    /// The largest frame that is received, in bytes. Default 128 KiB.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::size"))]
    pub max_frame: u32,
    /// The streams that a peer may have open. Default 1024.
    pub max_streams: u32,
    /// The headers of one request or response, decompressed, in bytes. Default 16 KiB.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::size"))]
    pub max_header_list: u32,
    /// The time between two pings; `None` sends none. Default 20 s.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::duration_or_off"))]
    pub keepalive_interval: Option<Duration>,
    /// The time in which a ping has to be answered. Default 10 s.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::duration"))]
    pub keepalive_timeout: Duration,
    /// Streams that a peer has reset and nobody has accepted yet. Default 20.
    pub max_pending_reset: u32,
    /// Streams reset by this end because of the peer's faults. Default 1024.
    pub max_local_reset: u32,
    /// What is buffered for one stream before its writer has to wait, in bytes. Default 1 MiB.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::size"))]
    pub max_send_buffer: u32,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            stream: 2 << 20,
            connection: 64 << 20,
            adaptive: false,
            max_frame: 128 << 10,
            max_streams: 1024,
            max_header_list: 16 << 10,
            keepalive_interval: Some(Duration::from_secs(20)),
            keepalive_timeout: Duration::from_secs(10),
            max_pending_reset: 20,
            max_local_reset: 1024,
            max_send_buffer: 1 << 20,
        }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (field, window) in [("stream", self.stream), ("connection", self.connection)] {
            let range = 65_535..=LARGEST_WINDOW;
            require(&mut faults, range.contains(&window), field, || {
                format!(
                    "{} is outside of 65535 bytes to 2 GiB; write such as \"2MiB\"",
                    format_size(window.into())
                )
            });
        }
        require(&mut faults, self.connection >= self.stream, "connection", || {
            "is below stream, which could then never be filled; raise it to at least stream"
                .to_owned()
        });
        require(&mut faults, FRAME_RANGE.contains(&self.max_frame), "max_frame", || {
            format!("{} is outside of 16KiB to 16MiB - 1 byte", format_size(self.max_frame.into()))
        });
        require(&mut faults, self.max_streams > 0, "max_streams", || {
            "is 0, so no call could be made".to_owned()
        });
        require(&mut faults, self.max_header_list >= 1024, "max_header_list", || {
            "is below 1KiB, which no gRPC request fits; write at least \"4KiB\"".to_owned()
        });
        require(
            &mut faults,
            self.keepalive_interval.is_none_or(|every| every >= Duration::from_secs(1)),
            "keepalive_interval",
            || "is below 1s; write at least \"1s\", or \"off\"".to_owned(),
        );
        require(&mut faults, !self.keepalive_timeout.is_zero(), "keepalive_timeout", || {
            "is 0s, so every peer would be taken for gone; write such as \"10s\"".to_owned()
        });
        require(&mut faults, self.max_send_buffer >= self.max_frame, "max_send_buffer", || {
            "is below max_frame; raise it to at least max_frame".to_owned()
        });
        faults
    }
}

#[cfg(feature = "hyper")]
mod apply {
    use super::Config;

    impl Config {
        /// Configures hyper's HTTP/2 server. Keepalive needs the builder to have a timer.
        pub fn apply_to_server<E>(&self, builder: &mut hyper::server::conn::http2::Builder<E>) {
            builder
                .initial_stream_window_size(self.stream)
                .initial_connection_window_size(self.connection)
                .max_frame_size(self.max_frame)
                .max_concurrent_streams(self.max_streams)
                .max_header_list_size(self.max_header_list)
                .keep_alive_interval(self.keepalive_interval)
                .keep_alive_timeout(self.keepalive_timeout)
                .max_pending_accept_reset_streams(self.max_pending_reset as usize)
                .max_local_error_reset_streams(self.max_local_reset as usize)
                .max_send_buf_size(self.max_send_buffer as usize);
            if self.adaptive {
                builder.adaptive_window(true);
            }
        }

        /// Configures the HTTP/2 side of hyper-util's server of both versions. Keepalive needs a timer.
        pub fn apply_to_auto<E>(&self, builder: &mut hyper_util::server::conn::auto::Builder<E>) {
            let mut http2 = builder.http2();
            http2
                .initial_stream_window_size(self.stream)
                .initial_connection_window_size(self.connection)
                .max_frame_size(self.max_frame)
                .max_concurrent_streams(self.max_streams)
                .max_header_list_size(self.max_header_list)
                .keep_alive_interval(self.keepalive_interval)
                .keep_alive_timeout(self.keepalive_timeout)
                .max_pending_accept_reset_streams(self.max_pending_reset as usize)
                .max_local_error_reset_streams(self.max_local_reset as usize)
                .max_send_buf_size(self.max_send_buffer as usize);
            if self.adaptive {
                http2.adaptive_window(true);
            }
        }

        /// Configures hyper's HTTP/2 client, pings while idle included: an idle session has to notice a dead peer.
        /// Keepalive needs the builder to have a timer.
        pub fn apply_to_client<E: Clone>(
            &self,
            builder: &mut hyper::client::conn::http2::Builder<E>,
        ) {
            builder
                .initial_stream_window_size(self.stream)
                .initial_connection_window_size(self.connection)
                .max_frame_size(self.max_frame)
                .max_concurrent_streams(self.max_streams)
                .max_header_list_size(self.max_header_list)
                .keep_alive_interval(self.keepalive_interval)
                .keep_alive_timeout(self.keepalive_timeout)
                .keep_alive_while_idle(true)
                .max_pending_accept_reset_streams(self.max_pending_reset as usize)
                .max_local_error_reset_streams(self.max_local_reset as usize)
                .max_send_buf_size(self.max_send_buffer as usize);
            if self.adaptive {
                builder.adaptive_window(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_told_at_once() {
        let config = Config {
            stream: 1 << 20,
            connection: 1,
            max_frame: 1,
            max_streams: 0,
            max_header_list: 0,
            keepalive_interval: Some(Duration::ZERO),
            keepalive_timeout: Duration::ZERO,
            max_send_buffer: 0,
            ..Config::default()
        };
        let fields: Vec<_> = config.validate().into_iter().map(|fault| fault.field).collect();
        assert_eq!(
            fields,
            [
                "connection",
                "connection",
                "max_frame",
                "max_streams",
                "max_header_list",
                "keepalive_interval",
                "keepalive_timeout",
                "max_send_buffer"
            ]
        );
        assert!(Config::default().validate().is_empty());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn sizes_and_durations_are_read() {
        let text = "stream = \"8MiB\"\nconnection = \"16MiB\"\nkeepalive_interval = \"off\"\nadaptive = true";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!((config.stream, config.connection), (8 << 20, 16 << 20));
        assert_eq!((config.keepalive_interval, config.adaptive), (None, true));
        assert!(toml::from_str::<Config>("stream = \"5GiB\"").is_err(), "more than 32 bits");
        assert!(toml::from_str::<Config>("streams = \"5MiB\"").is_err(), "an unknown field");
        let written = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::from_str::<Config>(&written).unwrap(), Config::default());
    }
}
