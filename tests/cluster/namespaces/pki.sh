#!/bin/bash
# A certificate authority of the cluster's own, certificates of every program, and their kubeconfigs.
set -euo pipefail; . "$(dirname "$0")/env.sh"
mkdir -p "$PKI"; cd "$PKI"
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key" 2>/dev/null; }
authority() {
  key "$1"
  openssl req -x509 -new -sha256 -key "$1.key" -days 30 -subj "/CN=$1" -out "$1.crt" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature 2>/dev/null
}
certificate() { # NAME AUTHORITY SUBJECT [ALTERNATIVE NAMES]
  key "$1"
  openssl req -new -sha256 -key "$1.key" -subj "$3" -out "$1.csr"
  local usage='keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n'
  openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -set_serial "0x$(openssl rand -hex 8)" -days 30 -sha256 \
    -out "$1.crt" -extfile <(printf "$usage%s" "${4:+subjectAltName=$4}") 2>/dev/null
  rm "$1.csr"
}
kubeconfig() {
  cat >"$1.kubeconfig" <<Y
apiVersion: v1
kind: Config
clusters: [{name: ds4, cluster: {server: "https://$CP_IP:6443", certificate-authority-data: $(base64 -w0 <ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 <"$1.crt"), client-key-data: $(base64 -w0 <"$1.key")}}]
contexts: [{name: ds4, context: {cluster: ds4, user: $1}}]
current-context: ds4
Y
}
names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
authority ca
authority front-proxy-ca
certificate apiserver ca /CN=kube-apiserver "$names,IP:127.0.0.1,IP:10.96.0.1,IP:$CP_IP"
certificate apiserver-kubelet-client ca /O=system:masters/CN=kube-apiserver-kubelet-client
certificate front-proxy-client front-proxy-ca /CN=front-proxy-client
certificate admin ca /O=system:masters/CN=admin
for program in kube-controller-manager kube-scheduler kube-proxy; do
  certificate $program ca /CN=system:$program
done
for n in $NODES; do
  certificate "node$n" ca "/O=system:nodes/CN=system:node:node$n" "DNS:node$n,IP:10.200.0.1$n"
done
for user in admin kube-controller-manager kube-scheduler kube-proxy $(printf 'node%s ' $NODES); do kubeconfig "$user"; done
openssl genrsa -out sa.key 2048 2>/dev/null
openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
