//! The protocol between output pod and stages: `proto/ds4.proto`, generated.

/// Version 1. See `proto/ds4.proto` for what every message means.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("ds4.v1");
}

/// Protocol version of this build; nodes of different versions refuse each other.
pub const PROTOCOL: u32 = 1;
/// Largest payload of one frame in bytes.
pub const FRAME_BYTES: usize = 1 << 20;
/// Largest message accepted; a frame and what surrounds it.
pub const MESSAGE_BYTES: usize = 4 << 20;
