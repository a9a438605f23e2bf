//! What helps against a reason. `docs/operations.md` explains each at length; a test holds the two together.

/// Reasons with what to do, by where they appear: conditions of the resource, containers, and events.
pub(crate) const REMEDIES: &[(&str, &str)] = &[
    ("InvalidSource", "correct the path that the message names"),
    ("BackendNotSupportedYet", "use backend CPU or Metal"),
    (
        "InvalidLayers",
        "make the stages' layers tile the model: 0 to N, N+1 to M, ..., one stage without last",
    ),
    (
        "ImagePullFailed",
        "check spec.image, the registry's reachability and the pull secrets",
    ),
    (
        "ErrImagePull",
        "check spec.image, the registry's reachability and the pull secrets",
    ),
    (
        "ImagePullBackOff",
        "check spec.image, the registry's reachability and the pull secrets",
    ),
    (
        "ErrImageNeverPull",
        "load the image onto the node, or set spec.image.pullPolicy: IfNotPresent",
    ),
    (
        "Unschedulable",
        "give the stage fewer layers or less memory, add nodes, or correct podTemplate's node selector and tolerations",
    ),
    (
        "FailedScheduling",
        "give the stage fewer layers or less memory, add nodes, or correct podTemplate's node selector and tolerations",
    ),
    (
        "OOMKilled",
        "raise the stage's memory limit, or give it fewer layers: kubectl ds4 split",
    ),
    (
        "NotEnoughMemory",
        "raise the stage's memory limit, or give it fewer layers: kubectl ds4 split",
    ),
    (
        "ModelChecksumMismatch",
        "compare spec.model.sha256 with the file at the source; delete the cached file if the source is right",
    ),
    (
        "ModelNotFound",
        "check repository, revision, path and token of spec.model.source",
    ),
    (
        "ModelInvalid",
        "the file is no DeepSeek V4 GGUF, or is damaged: run `ds4 inspect` on it",
    ),
    (
        "ModelFetchFailed",
        "the last words below say what the source answered; the fetch goes on where it was",
    ),
    (
        "CacheTooSmall",
        "enlarge spec.model.cache.size or the node's disk: the output stage keeps the whole file",
    ),
    (
        "ConfigurationRefused",
        "the last words below name the field, what was expected and what was found",
    ),
    (
        "CreateContainerConfigError",
        "a Secret or ConfigMap that the pod names does not exist: create it",
    ),
    (
        "CrashLoopBackOff",
        "the last words below say why it ended; `kubectl logs --previous` has the rest",
    ),
    (
        "FailedMount",
        "check that the claim, host path or image volume of spec.model exists on this node",
    ),
    (
        "FailedAttachVolume",
        "the volume is attached elsewhere: use ReadOnlyMany or ReadWriteMany, or one node",
    ),
    (
        "ProgressDeadlineExceeded",
        "the new revision did not come up in time; the old one serves: correct the spec or go back",
    ),
    (
        "MaxRestartsExceeded",
        "correct the cause below, then change the spec or delete the pod: it was given up",
    ),
    (
        "CertificatesNotManaged",
        "let the operator keep certificates (certificates.managed of its chart), or set spec.security.mtls.mode",
    ),
    (
        "ForeignSecret",
        "rename or delete the Secret that the event names: the operator does not overwrite it",
    ),
    (
        "IncompatiblePeers",
        "the message names the field and both values: replace the pod that has the other one",
    ),
    (
        "FailedKillPod",
        "the node does not answer: look at it with kubectl describe node",
    ),
    (
        "Evicted",
        "the node ran out of memory or disk: request what the stage needs, so that it is not placed there",
    ),
];

/// What helps, when it is known.
pub(crate) fn remedy(reason: &str) -> Option<&'static str> {
    REMEDIES
        .iter()
        .find(|(known, _)| *known == reason)
        .map(|(_, remedy)| *remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operations_guide_has_every_reason() {
        let guide = include_str!("../../../docs/operations.md");
        let missing: Vec<&str> = REMEDIES
            .iter()
            .map(|(reason, _)| *reason)
            .filter(|reason| !guide.contains(&format!("`{reason}`")))
            .collect();
        assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
    }
}
