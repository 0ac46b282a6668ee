//! Compute driver that runs supervisor and agent as processes of this host.
