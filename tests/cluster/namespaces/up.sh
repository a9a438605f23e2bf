#!/bin/bash
# Starts everything. The caller waits for the nodes.
set -euo pipefail; cd "$(dirname "$0")"; . ./env.sh
mkdir -p "$RUN"
./pki.sh
./network.sh
./control-plane.sh
for n in $NODES; do ./node.sh "$n"; done
