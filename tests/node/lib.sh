# shellcheck shell=bash
# What the scripts of the test node share. STATE is the caller's folder with all that a node keeps; RUN holds its sockets and what
# `down` must know, so that a node can be taken down although its STATE was deleted.
node=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs="etcd apiserver scheduler controller-manager containerd kubelet registry private-registry"
bridge=latebind0 pods=10.97 service=10.96.0.1

die() { echo "node/${0##*/}: $*" >&2; exit 1; }
use() { # use STATE: sets STATE and RUN. Odd characters are refused: the path lands in YAML, TOML and the mount table.
  STATE=$(realpath -m -- "${1:?which STATE?}")
  case $STATE in *[!A-Za-z0-9._/-]* | /) die "not a usable path: $STATE" ;; esac
  # A socket's path has at most 107 bytes, and the kubelet makes some below its root.
  [ ${#STATE} -le 60 ] || die "path longer than 60 bytes: $STATE"
  RUN=/run/latebind-node-$(printf %s "$STATE" | sha256sum | cut -c1-8)
}
taken() { [ -n "$(ss -Hltn "sport = :$1")" ]; } # taken PORT
missing() { # the first thing that a node needs and this machine lacks
  [ "$(id -u)" = 0 ] || { echo "root"; return; }
  for pair in go:go gcc:gcc pkg-config:pkg-config curl:curl openssl:openssl perl:perl ip:iproute2 ss:iproute2 skopeo:skopeo umoci:umoci \
    docker-registry:docker-registry; do
    command -v "${pair%:*}" >/dev/null || { echo "${pair#*:}"; return; }
  done
  pkg-config --exists libseccomp || { echo libseccomp-dev; return; }
  [ -x /usr/lib/cni/bridge ] || echo containernetworking-plugins
}

# A pid is recorded with its start time: after `kill -9` its number may be somebody else's.
born() { [ -r "/proc/$1/stat" ] && sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" {print $20}'; }
alive() { # alive NAME: sets pid
  local start; pid=
  [ -e "$RUN/$1.pid" ] && read -r pid start <"$RUN/$1.pid" && [ -n "$start" ] && [ "$(born "$pid")" = "$start" ]
}
launch() { # launch NAME: with its one command line
  alive "$1" && return
  [ -x "$STATE/run.d/$1" ] || die "no such program: $1 (of $programs)"
  setsid "$STATE/run.d/$1" >>"$STATE/log/$1.log" 2>&1 </dev/null &
  echo "$! $(born $!)" >"$RUN/$1.pid"; disown
}
halt() { # halt NAME: TERM, then KILL after 5 s: the API server lingers while watches are open and keeps its port
  alive "$1" || return 0
  local last=$pid; kill "$last"
  for _ in $(seq 50); do alive "$1" || return 0; sleep 0.1; done
  kill -9 "$last" 2>/dev/null
  while alive "$1"; do sleep 0.1; done
}
ask() { curl -fsS --noproxy '*' --max-time 5 -o /dev/null "$@" 2>/dev/null; }
healthy() { # healthy NAME
  case $1 in
    etcd) ask http://127.0.0.1:2379/health ;;
    apiserver) ask --cacert "$STATE/pki/ca.crt" "https://$service/readyz" ;;
    scheduler) ask -k https://127.0.0.1:10259/healthz ;;
    controller-manager) ask -k https://127.0.0.1:10257/healthz ;;
    containerd) "$(cat "$STATE/bin")/ctr" -a "$RUN/containerd.sock" version >/dev/null 2>&1 ;;
    kubelet) ask http://127.0.0.1:10248/healthz ;;
    registry) ask "http://$(cat "$STATE/registry")/v2/" ;;
    private-registry) ask -u alice:wonder "http://$(cat "$STATE/private-registry")/v2/" ;;
    *) false ;;
  esac
}
await() { # await NAME: until it is healthy, for a minute
  for _ in $(seq 600); do
    healthy "$1" && return
    alive "$1" || { echo "node/${0##*/}: $1 has ended" >&2; return 1; }
    sleep 0.1
  done
  echo "node/${0##*/}: $1 is not healthy after a minute" >&2; return 1
}
