#!/bin/bash
# Ends what up.sh started, and only that; safe to run when nothing runs.
. "$(dirname "$0")/env.sh"
for name in $(printf 'node%s ' $NODES) kube-scheduler kube-controller-manager kube-apiserver etcd; do
  [ -f "$RUN/$name.pid" ] || continue
  pid=$(cat "$RUN/$name.pid")
  # A number that now belongs to another process is left alone: its command line does not name our folder or programs.
  if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qE "$RUN|node-init|$BIN"; then kill -9 "$pid" 2>/dev/null; fi
  rm -f "$RUN/$name.pid"
done
sleep 0.5
for namespace in $CP $(printf 'ds4-node%s ' $NODES); do ip netns del "$namespace" 2>/dev/null; done
for group in /sys/fs/cgroup/$CGROUPS /sys/fs/cgroup/*/$CGROUPS; do
  [ -d "$group" ] || continue
  for _ in 1 2 3 4 5; do
    find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
    [ -d "$group" ] || break
    for procs in $(find "$group" -name cgroup.procs); do while read -r pid; do kill -9 "$pid" 2>/dev/null; done <"$procs"; done
    sleep 0.3
  done
done
rm -rf "${RUN:?}"
exit 0
