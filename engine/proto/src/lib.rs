//! The protocol between output pod and stages: `proto/ds4.proto`, generated.

/// Version 2. See `proto/ds4.proto` for what every message means.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("ds4.v1");
}

/// Protocol version of this build; nodes of different versions refuse each other.
pub const PROTOCOL: u32 = 2;
/// Payload of one frame in bytes, where nothing else is agreed.
pub const FRAME_BYTES: usize = 1 << 20;
/// Largest payload of one frame that can be agreed.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// Largest message accepted: a frame, the tokens of its chunk, and what surrounds them. Checked before anything is allocated.
pub const MESSAGE_BYTES: usize = MAX_FRAME_BYTES + (4 << 20);
