//! Who is who: local certificate authority and sandbox tokens.
