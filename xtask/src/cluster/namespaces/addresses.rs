//! Addresses inside the cluster's own namespaces. They exist nowhere else, so every cluster uses the same.

/// The control plane, and the nodes' gateway.
pub(super) const CONTROL_PLANE: &str = "10.200.0.1";
/// Services; the first address is the API server's, the tenth DNS's.
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// The Service of the API server.
pub(super) const API_SERVICE: &str = "10.96.0.1";

/// A node, from 1 to 9.
pub(super) fn node(number: usize) -> String {
    format!("10.200.0.1{number}")
}

/// The machine that stands in for a Mac: plugged into the nodes' network, without pods' addresses of its own.
pub(super) const MAC: &str = "10.200.0.21";

/// A node's pods.
pub(super) fn pods(number: usize) -> String {
    format!("10.244.{number}.0/24")
}
