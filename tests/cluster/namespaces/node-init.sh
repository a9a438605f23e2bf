#!/bin/bash
# First process of a node: gives it its own view of the machine, then runs containerd, kubelet and kube-proxy.
set -euo pipefail; . "$(dirname "$0")/env.sh"
n=$1; dir=$RUN/node$n
hostname "node$n"
mount --make-rshared /
mount -t sysfs sysfs /sys
if [ -f /proc/self/mountinfo ] && grep -q ' - cgroup2 ' /proc/self/mountinfo && ! grep -q ' - cgroup ' /proc/self/mountinfo; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  # A group with processes of its own cannot hand controllers down.
  mkdir -p /sys/fs/cgroup/init; echo $$ >/sys/fs/cgroup/init/cgroup.procs
  for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$c" >/sys/fs/cgroup/cgroup.subtree_control || true; done
else
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  for c in $CONTROLLERS; do
    mkdir "/sys/fs/cgroup/$c"
    mount -t cgroup -o "$([ "$c" = systemd ] && echo none,name=systemd || echo "$c")" cgroup "/sys/fs/cgroup/$c" || rmdir "/sys/fs/cgroup/$c"
  done
fi
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock
for path in /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers /etc/cni/net.d; do
  mkdir -p "$path" "$dir/fs$path"
  mount --bind "$dir/fs$path" "$path"
done
# The kubelet writes some kernel-wide settings; here it writes copies, and the machine keeps its own.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  copy=/run/sysctl-${setting%%=*}
  mkdir -p "$(dirname "$copy")"; echo "${setting#*=}" >"$copy"
  mount --bind "$copy" "/proc/sys/${setting%%=*}"
done
cat >/etc/cni/net.d/10-bridge.conflist <<J
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.$n.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
J
cat >"$dir/containerd.toml" <<T
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:dev"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CNI_BIN"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
T
cat >"$dir/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/node$n.crt
tlsPrivateKeyFile: $PKI/node$n.key
clusterDomain: cluster.local
clusterDNS: [10.96.0.10]
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
resolvConf: ""
makeIPTablesUtilChains: false
nodeStatusUpdateFrequency: 2s
nodeLeaseDurationSeconds: 10
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: "1%", imagefs.available: "1%", nodefs.inodesFree: "1%"}
Y
cat >"$dir/kube-proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
oomScoreAdj: 0
mode: nftables
clusterCIDR: 10.244.0.0/16
detectLocalMode: ClusterCIDR
clientConnection: {kubeconfig: $PKI/kube-proxy.kubeconfig}
hostnameOverride: node$n
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
Y
containerd -c "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
for archive in "$IMAGES"/*.tar; do ctr -n k8s.io image import --snapshotter overlayfs "$archive" >>"$dir/images.log" 2>&1; done
"$BIN/kubelet" --config "$dir/kubelet.yaml" --kubeconfig "$PKI/node$n.kubeconfig" --hostname-override "node$n" \
  --node-ip "10.200.0.1$n" >"$dir/kubelet.log" 2>&1 &
"$BIN/kube-proxy" --config "$dir/kube-proxy.yaml" >"$dir/kube-proxy.log" 2>&1 &
while :; do wait -n || true; sleep 0.2; done
