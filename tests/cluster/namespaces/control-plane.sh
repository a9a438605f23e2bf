#!/bin/bash
# etcd, API server, controllers and scheduler.
set -euo pipefail; . "$(dirname "$0")/env.sh"
start etcd $in_cp "$BIN/etcd" --data-dir "$RUN/etcd" --unsafe-no-fsync \
  --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380
start kube-apiserver $in_cp "$BIN/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --advertise-address $CP_IP --secure-port 6443 \
  --client-ca-file "$PKI/ca.crt" --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
  --service-account-issuer https://kubernetes.default.svc.cluster.local \
  --service-account-key-file "$PKI/sa.pub" --service-account-signing-key-file "$PKI/sa.key" \
  --kubelet-client-certificate "$PKI/apiserver-kubelet-client.crt" --kubelet-client-key "$PKI/apiserver-kubelet-client.key" \
  --kubelet-certificate-authority "$PKI/ca.crt" --kubelet-preferred-address-types InternalIP \
  --requestheader-client-ca-file "$PKI/front-proxy-ca.crt" --requestheader-allowed-names front-proxy-client \
  --requestheader-extra-headers-prefix X-Remote-Extra- --requestheader-group-headers X-Remote-Group \
  --requestheader-username-headers X-Remote-User --enable-aggregator-routing \
  --proxy-client-cert-file "$PKI/front-proxy-client.crt" --proxy-client-key-file "$PKI/front-proxy-client.key" \
  --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --service-cluster-ip-range 10.96.0.0/16 \
  --default-not-ready-toleration-seconds 5 --default-unreachable-toleration-seconds 5
for _ in $(seq 600); do
  $in_cp "$BIN/kubectl" --kubeconfig "$PKI/admin.kubeconfig" get --raw /readyz >/dev/null 2>&1 && break
  kill -0 "$(cat "$RUN/kube-apiserver.pid")" || { tail -5 "$RUN/kube-apiserver.log"; exit 1; }
  sleep 0.2
done
controller=$PKI/kube-controller-manager.kubeconfig
start kube-controller-manager $in_cp "$BIN/kube-controller-manager" --kubeconfig "$controller" --authentication-kubeconfig "$controller" \
  --authorization-kubeconfig "$controller" --leader-elect=false --use-service-account-credentials --bind-address 127.0.0.1 \
  --service-account-private-key-file "$PKI/sa.key" --root-ca-file "$PKI/ca.crt" \
  --cluster-signing-cert-file "$PKI/ca.crt" --cluster-signing-key-file "$PKI/ca.key" \
  --node-monitor-period 1s --node-monitor-grace-period 12s
scheduler=$PKI/kube-scheduler.kubeconfig
start kube-scheduler $in_cp "$BIN/kube-scheduler" --kubeconfig "$scheduler" --authentication-kubeconfig "$scheduler" \
  --authorization-kubeconfig "$scheduler" --leader-elect=false --bind-address 127.0.0.1
