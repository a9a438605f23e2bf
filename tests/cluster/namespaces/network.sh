#!/bin/bash
# One network namespace per node on a bridge inside the control plane's; the machine's own network stays as it is.
set -euo pipefail; . "$(dirname "$0")/env.sh"
ip netns add $CP
ip -n $CP link set lo up
ip -n $CP link add br0 type bridge
ip -n $CP addr add $CP_IP/24 dev br0
ip -n $CP link set br0 up
$in_cp sysctl -qw net.ipv4.ip_forward=1
for n in $NODES; do
  node=ds4-node$n
  ip netns add "$node"
  ip -n "$node" link set lo up
  ip -n $CP link add "v$n" type veth peer name eth0 netns "$node"
  ip -n $CP link set "v$n" master br0 up
  ip -n "$node" addr add "10.200.0.1$n/24" dev eth0
  ip -n "$node" link set eth0 up
  ip -n "$node" route add default via $CP_IP
  ip -n $CP route add "10.244.$n.0/24" via "10.200.0.1$n"
  for other in $NODES; do
    [ "$other" = "$n" ] || ip -n "$node" route add "10.244.$other.0/24" via "10.200.0.1$other"
  done
  nsenter --net="/run/netns/$node" sysctl -qw net.ipv4.ip_forward=1
done
# Service addresses work from the control plane too, through the first node's kube-proxy.
ip -n $CP route add 10.96.0.0/16 via 10.200.0.11
