//! Names of spans and attributes. Spans are listed as they nest in a request's trace.

/// A chat or completion as the model sees it; `gen_ai.*` attributes.
pub const CHAT: &str = "chat";
/// Waiting for a free session.
pub const QUEUE: &str = "ds4.queue";
/// From the first chunk to the last KV row.
pub const PREFILL: &str = "ds4.prefill";
/// One stage's part of a prefill, recorded by the stage.
pub const STAGE: &str = "ds4.stage";
/// One stage's KV arriving at the output pod.
pub const HANDOFF: &str = "ds4.kv.handoff";
/// Local decode.
pub const DECODE: &str = "ds4.decode";
