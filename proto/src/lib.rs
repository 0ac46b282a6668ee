//! The wire contract of Postern.
//!
//! Generated messages, clients and servers for `openshell.v1` and its neighbours, compiled without
//! a system `protoc`, and what the descriptors say beyond types: who may call what
//! ([`authorization`]) and which fields are secret ([`secrets`]).
//!
//! Messages that supervisors read or write also carry the fields of the 0.0.11x line (milliseconds
//! beside timestamps, seconds beside durations), so that both lines interoperate. Postern's own
//! additions have field numbers from 1000 and are sent only to a peer that announced them.

#![deny(missing_docs)]

pub mod authorization;
pub mod secrets;

/// Every file of the contract as an encoded `google.protobuf.FileDescriptorSet`, options included.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/contract.bin"));

/// The public API and the supervisor API.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
pub mod openshell {
    /// Current version.
    pub mod v1 {
        tonic::include_proto!("openshell.v1");
    }
    /// Object metadata.
    pub mod datamodel {
        /// Current version.
        pub mod v1 {
            tonic::include_proto!("openshell.datamodel.v1");
        }
    }
    /// Policy and configuration of one sandbox.
    pub mod sandbox {
        /// Current version.
        pub mod v1 {
            tonic::include_proto!("openshell.sandbox.v1");
        }
    }
    /// Inference routes.
    pub mod inference {
        /// Current version.
        pub mod v1 {
            tonic::include_proto!("openshell.inference.v1");
        }
    }
    /// What external compute drivers speak.
    pub mod compute {
        /// Current version.
        pub mod v1 {
            tonic::include_proto!("openshell.compute.v1");
        }
    }
    /// Options on methods and fields.
    pub mod options {
        /// Current version.
        pub mod v1 {
            tonic::include_proto!("openshell.options.v1");
        }
    }
}

/// The control API of Agent Substrate.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
pub mod ateapi {
    tonic::include_proto!("ateapi");
}

pub use openshell::compute::v1 as compute;
pub use openshell::datamodel::v1 as datamodel;
pub use openshell::inference::v1 as inference;
pub use openshell::sandbox::v1 as sandbox;
pub use openshell::v1;

#[allow(clippy::all)]
mod masked_debug {
    include!(concat!(env!("OUT_DIR"), "/masked_debug.rs"));
}
