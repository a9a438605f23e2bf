//! Network namespaces: one for the control plane with a bridge, one for each node, and the routes between pods.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::addresses;
use crate::process;

/// Name of the control plane's network namespace.
pub(super) fn control_plane(cluster: &str) -> String {
    format!("ds4-{cluster}")
}

/// Name of a node's network namespace.
pub(super) fn node(cluster: &str, number: usize) -> String {
    format!("ds4-{cluster}-node{number}")
}

pub(super) fn up(cluster: &str, nodes: usize) -> Result<()> {
    let center = control_plane(cluster);
    ip(&format!("netns add {center}"))?;
    inside(&center, "link set lo up")?;
    inside(&center, "link add br0 type bridge")?;
    inside(
        &center,
        &format!("addr add {}/24 dev br0", addresses::CONTROL_PLANE),
    )?;
    inside(&center, "link set br0 up")?;
    forwards_packets(&center)?;
    for number in 1..=nodes {
        plug_in(
            cluster,
            &format!("node{number}"),
            &node(cluster, number),
            &addresses::node(number),
        )?;
        forwards_packets(&node(cluster, number))?;
    }
    for number in 1..=nodes {
        route_pods(cluster, number, nodes)?;
    }
    // The control plane reaches Services as pods do: through a node's kube-proxy.
    inside(
        &center,
        &format!("route add {} via {}", addresses::SERVICES, addresses::node(1)),
    )
}

/// Name of the network namespace of the machine that stands in for a Mac.
pub(super) fn mac(cluster: &str) -> String {
    format!("ds4-{cluster}-mac1")
}

/// Plugs it in.
pub(super) fn plug_in_mac(cluster: &str) -> Result<()> {
    plug_in(cluster, "mac1", &mac(cluster), addresses::MAC)
}

/// Unplugs its cable at the bridge's end, or plugs it in again.
pub(super) fn plug_mac(cluster: &str, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    inside(&control_plane(cluster), &format!("link set mac1 {state}"))
}

pub(super) fn down(cluster: &str, nodes: usize) -> Result<()> {
    let mut names = vec![control_plane(cluster)];
    names.extend((1..=nodes).map(|number| node(cluster, number)));
    names.push(mac(cluster));
    for name in names {
        if Path::new("/run/netns").join(&name).exists() {
            ip(&format!("netns delete {name}"))?;
        }
    }
    Ok(())
}

/// A new network namespace with that address, and a cable from the bridge to it.
fn plug_in(cluster: &str, cable: &str, name: &str, address: &str) -> Result<()> {
    let center = control_plane(cluster);
    ip(&format!("netns add {name}"))?;
    inside(name, "link set lo up")?;
    inside(
        &center,
        &format!("link add {cable} type veth peer name eth0 netns {name}"),
    )?;
    inside(&center, &format!("link set {cable} master br0 up"))?;
    inside(name, &format!("addr add {address}/24 dev eth0"))?;
    inside(name, "link set eth0 up")?;
    inside(
        name,
        &format!("route add default via {}", addresses::CONTROL_PLANE),
    )
}

/// Unplugs a node's cable at the bridge's end, or plugs it in again.
pub(super) fn plug(cluster: &str, number: usize, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    inside(&control_plane(cluster), &format!("link set node{number} {state}"))
}

/// Every other namespace sends a node's pods' packets to that node.
fn route_pods(cluster: &str, number: usize, nodes: usize) -> Result<()> {
    let route = format!(
        "route add {} via {}",
        addresses::pods(number),
        addresses::node(number)
    );
    inside(&control_plane(cluster), &route)?;
    for other in (1..=nodes).filter(|other| *other != number) {
        inside(&node(cluster, other), &route)?;
    }
    Ok(())
}

fn forwards_packets(name: &str) -> Result<()> {
    process::output(
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{name}"))
            .args(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]),
    )
    .map(drop)
}

fn inside(name: &str, arguments: &str) -> Result<()> {
    ip(&format!("-netns {name} {arguments}"))
}

fn ip(arguments: &str) -> Result<()> {
    process::output(Command::new("ip").args(arguments.split(' '))).map(drop)
}
