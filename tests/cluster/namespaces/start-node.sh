#!/bin/sh
# Starts one node: joins the node's cgroups, then its namespaces, and becomes its parent.
# Takes from the environment: CLUSTER (name), NODE (name), NODE_DIR, CGROUPS_V1 ("" on a machine with version 2 only).
set -eu

if [ -n "$CGROUPS_V1" ]; then
  for controller in $CGROUPS_V1; do
    top=/sys/fs/cgroup/$controller
    own=$top/ds4-$CLUSTER/$NODE
    mkdir -p "$own"
    # A new cpuset holds no processor and no memory until it is told which.
    if [ -e "$top/cpuset.cpus" ]; then
      for group in "$top/ds4-$CLUSTER" "$own"; do
        cat "$top/cpuset.cpus" > "$group/cpuset.cpus"
        cat "$top/cpuset.mems" > "$group/cpuset.mems"
      done
    fi
    echo $$ > "$own/cgroup.procs"
  done
else
  own=/sys/fs/cgroup/ds4-$CLUSTER/$NODE
  mkdir -p "$own"
  for group in /sys/fs/cgroup "/sys/fs/cgroup/ds4-$CLUSTER"; do
    for controller in $(cat "$group/cgroup.controllers"); do
      echo "+$controller" > "$group/cgroup.subtree_control" || true
    done
  done
  echo $$ > "$own/cgroup.procs"
fi

exec nsenter --net="/run/netns/ds4-$CLUSTER-$NODE" \
  unshare --mount --uts --ipc --cgroup --pid --fork --mount-proc --kill-child=KILL --propagation private \
  /bin/bash "$(dirname "$0")/node-init.sh"
