//! Who a node is, and whether two of them may work on one session.

use ds4_model::SliceInfo;
use ds4_proto::PROTOCOL;
use ds4_proto::v1::Description;
use thiserror::Error;
use uuid::Uuid;

/// Two nodes that must not exchange activations or KV.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{field}: expected {ours} (ours), found {theirs} (theirs)")]
pub struct Incompatible {
    /// What differs.
    pub field: &'static str,
    /// Our value.
    pub ours: String,
    /// Theirs.
    pub theirs: String,
}

/// A node's description of itself.
#[derive(Clone, Debug)]
pub struct Identity(Description);

impl Identity {
    /// Describes a loaded slice; the incarnation is new with every call.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // layer counts
    pub fn new(info: &SliceInfo, max_tokens: u64) -> Self {
        Self(Description {
            protocol: PROTOCOL,
            fingerprint: info.fingerprint.to_string(),
            model: info.config.name.clone(),
            layers: info.config.n_layer as u32,
            first: info.span.first as u32,
            last: info.span.last as u32,
            kv_layout: info.layout.id(),
            numerics: info.numerics.to_string(),
            backend: info.backend.clone(),
            build: env!("CARGO_PKG_VERSION").into(),
            incarnation: Uuid::new_v4().to_string(),
            max_tokens,
            capabilities: Vec::new(),
            weight_bytes: info.weight_bytes,
            draining: false,
        })
    }

    /// The message.
    #[must_use]
    pub const fn description(&self) -> &Description {
        &self.0
    }
}

/// Compares everything on which exactness rests. Back ends may differ: their drift is bounded, not zero, and shown in the trace.
///
/// # Errors
/// Names the first field that differs and both values.
pub(crate) fn compatible(ours: &Description, theirs: &Description) -> Result<(), Incompatible> {
    let fields: [(&'static str, &dyn ToString, &dyn ToString); 6] = [
        ("protocol", &ours.protocol, &theirs.protocol),
        ("fingerprint", &ours.fingerprint, &theirs.fingerprint),
        ("layers", &ours.layers, &theirs.layers),
        ("kv layout", &ours.kv_layout, &theirs.kv_layout),
        ("numerics", &ours.numerics, &theirs.numerics),
        ("build", &ours.build, &theirs.build),
    ];
    for (field, ours, theirs) in fields {
        let (ours, theirs) = (ours.to_string(), theirs.to_string());
        if ours != theirs {
            return Err(Incompatible { field, ours, theirs });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_the_field_and_both_values() {
        let ours = Description {
            protocol: 1,
            kv_layout: "a".into(),
            ..Description::default()
        };
        assert_eq!(compatible(&ours, &ours), Ok(()));
        let theirs = Description {
            kv_layout: "b".into(),
            ..ours.clone()
        };
        let found = compatible(&ours, &theirs)
            .expect_err("another layout")
            .to_string();
        assert_eq!(found, "kv layout: expected a (ours), found b (theirs)");
        let backend = Description {
            backend: "cuda".into(),
            incarnation: "x".into(),
            ..ours.clone()
        };
        assert_eq!(compatible(&ours, &backend), Ok(()), "back ends may differ");
    }
}
