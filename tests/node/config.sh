# shellcheck shell=bash
# Sourced by `up`: writes what every program is told, and each one's command line (run.d/NAME), all below STATE.

command_line() { # command_line NAME PROGRAM ARGUMENT...: without the caller's environment, which may name proxies and credentials
  local name=$1; shift
  printf '#!/bin/sh\ncd %q && exec env -i HOME=%q PATH=%q%s\n' "$STATE" "$STATE" "$BIN:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin" \
    "$(printf ' \\\n  %q' "$@")" >"$STATE/run.d/$name"
  chmod +x "$STATE/run.d/$name"
}

# Registries without TLS, on the bridge: pilots in pods ask them, and the node pulls, by one name. The private one lets in alice, whose password is wonder.
port=5000
free_port() { while taken $port; do port=$((port + 1)); done; echo "$pods.0.1:$port"; }
perl -e 'print "alice:", crypt("wonder", q($2b$05$latebindlatebindlatebu)), "\n"' >"$STATE/cfg/htpasswd"
for name in registry private-registry; do
  free_port >"$STATE/$name"; address=$(cat "$STATE/$name"); port=$((${address#*:} + 1))
  cat >"$STATE/cfg/$name.yml" <<C
version: 0.1
storage: {filesystem: {rootdirectory: $STATE/$name.d}, delete: {enabled: true}}
http: {addr: "$address", secret: latebind}
C
  mkdir -p "$STATE/$name.d" "$STATE/cfg/certs.d/$address"
  printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$address" "$address" \
    >"$STATE/cfg/certs.d/$address/hosts.toml"
  command_line $name "$(command -v docker-registry)" serve "$STATE/cfg/$name.yml"
done
echo "auth: {htpasswd: {realm: latebind, path: $STATE/cfg/htpasswd}}" >>"$STATE/cfg/private-registry.yml"

# The control plane. Tests count requests per user in the audit log.
command_line etcd "$BIN/etcd" --data-dir "$STATE/etcd" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
  --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
  --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380
cat >"$STATE/cfg/audit.yaml" <<C
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
C
# shellcheck disable=SC2086
command_line apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address=$service --secure-port=443 \
  --tls-cert-file="$STATE/pki/apiserver.crt" --tls-private-key-file="$STATE/pki/apiserver.key" --client-ca-file="$STATE/pki/ca.crt" \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
  --service-cluster-ip-range=10.96.0.0/16 --service-account-issuer=https://kubernetes.default.svc \
  --service-account-key-file="$STATE/pki/serviceaccount.key" --service-account-signing-key-file="$STATE/pki/serviceaccount.key" \
  --kubelet-client-certificate="$STATE/pki/apiserver-kubelet.crt" --kubelet-client-key="$STATE/pki/apiserver-kubelet.key" \
  --kubelet-preferred-address-types=InternalIP \
  --audit-policy-file="$STATE/cfg/audit.yaml" --audit-log-path="$STATE/log/audit.log" ${APISERVER_FLAGS:-}
command_line scheduler "$BIN/kube-scheduler" --kubeconfig="$STATE/cfg/scheduler.conf" --bind-address=127.0.0.1 --leader-elect=false
# Not slowed down, or the first ServiceAccount takes seconds to come.
command_line controller-manager "$BIN/kube-controller-manager" --kubeconfig="$STATE/cfg/controller-manager.conf" \
  --bind-address=127.0.0.1 --leader-elect=false --kube-api-qps=200 --kube-api-burst=400 --use-service-account-credentials=true \
  --root-ca-file="$STATE/pki/ca.crt" --service-account-private-key-file="$STATE/pki/serviceaccount.key" \
  --flex-volume-plugin-dir="$STATE/volume-plugins"

# The container runtime. restrict_oom_score_adj: a machine without CAP_SYS_RESOURCE can't give a sandbox its -998, and runc dies.
cat >"$STATE/cfg/containerd.toml" <<C
version = 3
root = "$STATE/containerd"
state = "$RUN/containerd"
[grpc]
  address = "$RUN/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$STATE/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$(cat "$STATE/registry")/pause:1"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "$STATE/cfg/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "$STATE/cfg/net.d"
  use_internal_loopback = true
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  Root = "$RUN/runc"
C
# No isGateway: the plugin would turn on forwarding for the whole machine. The bridge has its address already.
cat >"$STATE/cfg/net.d/10-latebind.conflist" <<C
{"cniVersion": "1.0.0", "name": "latebind", "plugins": [{"type": "bridge", "bridge": "$bridge", "ipam": {"type": "host-local",
 "dataDir": "$STATE/cni", "ranges": [[{"subnet": "$pods.0.0/16", "gateway": "$pods.0.1"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
C
command_line containerd "$BIN/containerd" -c "$STATE/cfg/containerd.toml"

# The kubelet. A node address on loopback is refused; the bridge's will do. Nothing is evicted and no image collected on a full disk.
cat >"$STATE/cfg/kubelet.yaml" <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $pods.0.1
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $STATE/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix://$RUN/containerd.sock
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%, imagefs.inodesFree: 1%}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
oomScoreAdj: 0
podLogsDir: $STATE/pod-logs
resolvConf: /etc/resolv.conf
volumePluginDir: $STATE/volume-plugins
C
command_line kubelet "$BIN/kubelet" --config="$STATE/cfg/kubelet.yaml" --kubeconfig="$STATE/cfg/kubelet.conf" --hostname-override=n1 \
  --node-ip=$pods.0.1 --root-dir="$STATE/kubelet" --cert-dir="$STATE/kubelet/pki"
