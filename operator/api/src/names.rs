//! Names and labels of everything that belongs to a deployment.

/// API group of the resource.
pub const GROUP: &str = "ds4.dev";
/// Label with the deployment's name.
pub const LABEL_NAME: &str = "ds4.dev/name";
/// Label with the stage's name.
pub const LABEL_STAGE: &str = "ds4.dev/stage";
/// Label with the revision of the pod's template.
pub const LABEL_REVISION: &str = "ds4.dev/revision";
/// Label that is `prefill` or `output`.
pub const LABEL_ROLE: &str = "ds4.dev/role";
/// Kubernetes' own label for the program that looks after an object.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value on everything that the operator makes.
pub const MANAGED_BY: &str = "ds4-operator";
/// Annotation that numbers a deployment's revisions in the order in which they were asked for.
pub const ANNOTATION_NUMBER: &str = "ds4.dev/revision-number";
/// Port on which a pod that fetches its model says how far it is.
pub const PROGRESS_PORT: u16 = 7401;
/// Port on which a stage with certificates tells the kubelet, which has none, how it is.
pub const HEALTH_PORT: u16 = 7402;
/// gRPC port of a stage.
pub const GRPC_PORT: u16 = 7400;

/// Names derived from a deployment's.
#[derive(Clone, Debug)]
pub struct Names {
    name: String,
    namespace: String,
}

impl Names {
    /// The names of one deployment.
    #[must_use]
    pub fn new(name: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
        }
    }

    /// The deployment itself, its client Service and its `ServiceAccount`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The headless Service that gives stage pods their names.
    #[must_use]
    pub fn headless(&self) -> String {
        format!("{}-stages", self.name)
    }

    /// The Secret with the pods' certificate and key.
    #[must_use]
    pub fn tls_secret(&self) -> String {
        format!("{}-tls", self.headless())
    }

    /// The Secret with the authority that the operator keeps for this deployment.
    #[must_use]
    pub fn authority_secret(&self) -> String {
        format!("{}-ca", self.headless())
    }

    /// Names under which its stages are reached, for certificates: by other pods, and by a probe from inside.
    #[must_use]
    pub fn certificate_names(&self) -> Vec<String> {
        let service = format!("{}.{}.svc", self.headless(), self.namespace);
        vec![format!("*.{service}"), service, "localhost".into()]
    }

    /// The `StatefulSet` of a stage in one revision.
    #[must_use]
    pub fn stateful_set(&self, stage: &str, revision: &str) -> String {
        format!("{}-{stage}-{revision}", self.name)
    }

    /// Address of pod `ordinal` of a stage; both may be references to environment variables.
    #[must_use]
    pub fn address(&self, stage: &str, revision: &str, ordinal: &str) -> String {
        format!(
            "{}-{ordinal}.{}.{}.svc:{GRPC_PORT}",
            self.stateful_set(stage, revision),
            self.headless(),
            self.namespace
        )
    }

    /// Where clients ask.
    #[must_use]
    pub fn url(&self, port: u16) -> String {
        format!("http://{}.{}.svc:{port}", self.name, self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_no_discovery() {
        let names = Names::new("flash", "llm");
        assert_eq!(
            names.address("early", "7c9f12ab", "0"),
            "flash-early-7c9f12ab-0.flash-stages.llm.svc:7400"
        );
        assert_eq!(names.url(8000), "http://flash.llm.svc:8000");
    }
}
