# Sourced by the scripts here. RUN (state), BIN (programs), IMAGES (archives) and CNI_BIN come from the caller.
: "${RUN:?}" "${BIN:?}" "${IMAGES:?}" "${CNI_BIN:?}"
PKI=$RUN/pki
NODES=${NODES:-1 2 3}
CP=ds4-cp                 # namespace of the control plane; it holds the bridge that every node is plugged into
CP_IP=10.200.0.1
CGROUPS=ds4-cluster       # everything that nodes run stays below this
CONTROLLERS="cpu cpuacct cpuset memory devices freezer blkio pids systemd"
in_cp="nsenter --net=/run/netns/$CP"
start() { # NAME COMMAND...: in the background, with a log and its process id under RUN
  local name=$1; shift
  setsid "$@" >"$RUN/$name.log" 2>&1 </dev/null & echo $! >"$RUN/$name.pid"
}
