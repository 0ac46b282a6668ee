//! The user side of the postern command: gateway registrations, calls, SSH proxy, forwards.
