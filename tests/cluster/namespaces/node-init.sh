#!/bin/bash
# The first process of a node: gives it its own view of the machine, starts its runtime, kubelet and proxy, and reaps.
# Takes from the environment what start-node.sh takes, and TOOLS (the folder of the Kubernetes programs).
set -euo pipefail

hostname "$NODE"
mount --make-rshared /
mount -t sysfs sysfs /sys

if [ -n "$CGROUPS_V1" ]; then
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  for controller in $CGROUPS_V1; do
    mkdir "/sys/fs/cgroup/$controller"
    options=$controller
    [ "$controller" = systemd ] && options=none,name=systemd
    mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/$controller"
  done
else
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  # A group with processes of its own cannot hand controllers to its children: the node's own live in a leaf.
  mkdir -p /sys/fs/cgroup/init
  for process in $(cat /sys/fs/cgroup/cgroup.procs); do
    echo "$process" > /sys/fs/cgroup/init/cgroup.procs 2>/dev/null || true
  done
  for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control || true
  done
fi

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock
for path in /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers /etc/cni/net.d; do
  mkdir -p "$path" "$NODE_DIR/fs$path"
  mount --bind "$NODE_DIR/fs$path" "$path"
done
cp "$NODE_DIR/pods.conflist" /etc/cni/net.d/10-pods.conflist

# The kubelet sets these for the whole machine; here it sets copies of them.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  name=${setting%%=*}
  copy=/run/sysctl/$name
  mkdir -p "$(dirname "$copy")"
  echo "${setting#*=}" > "$copy"
  mount --bind "$copy" "/proc/sys/$name"
done

containerd --config "$NODE_DIR/containerd.toml" > "$NODE_DIR/containerd.log" 2>&1 &
until ctr version > /dev/null 2>&1; do sleep 0.1; done
"$TOOLS/kubelet" --config "$NODE_DIR/kubelet.yaml" --kubeconfig "$NODE_DIR/kubelet.kubeconfig" \
  --hostname-override "$NODE" --node-ip "$NODE_IP" > "$NODE_DIR/kubelet.log" 2>&1 &
"$TOOLS/kube-proxy" --config "$NODE_DIR/kube-proxy.yaml" > "$NODE_DIR/kube-proxy.log" 2>&1 &

while :; do
  wait -n || true
  sleep 0.2
done
