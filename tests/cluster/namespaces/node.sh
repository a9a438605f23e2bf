#!/bin/bash
# usage: node.sh N: starts node N in network, mount, process, host name, IPC and cgroup namespaces of its own.
set -euo pipefail; . "$(dirname "$0")/env.sh"
n=$1; here=$(dirname "$(realpath "$0")"); mkdir -p "$RUN/node$n"
export RUN BIN IMAGES CNI_BIN NODES
start "node$n" bash -c '
  set -e
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    own=/sys/fs/cgroup/'$CGROUPS'/node'"$n"'; mkdir -p $own; echo $$ >$own/cgroup.procs
  else
    for c in '"$CONTROLLERS"'; do
      [ -d /sys/fs/cgroup/$c ] || continue
      all=/sys/fs/cgroup/$c/'$CGROUPS'; own=$all/node'"$n"'; mkdir -p $own
      if [ $c = cpuset ]; then for d in $all $own; do for f in cpus mems; do cat /sys/fs/cgroup/cpuset/cpuset.$f >$d/cpuset.$f; done; done; fi
      echo $$ >$own/cgroup.procs
    done
  fi
  exec nsenter --net=/run/netns/ds4-node'"$n"' unshare -m -u -i -C -p -f --mount-proc --kill-child=KILL --propagation private '"$here"'/node-init.sh '"$n"
