# shellcheck shell=bash
# Sourced by `up`: who is who, below STATE/pki, and the kubeconfigs.
# Everyone has a certificate: the name is its CN, the groups are its Os. Alice has no group and so no rights yet.
(cd "$STATE/pki"
cat >openssl.cnf <<C
[req]
distinguished_name = dn
[dn]
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
[server]
basicConstraints = critical,CA:FALSE
subjectAltName = IP:$service,IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
[client]
basicConstraints = critical,CA:FALSE
extendedKeyUsage = clientAuth
C
certificate() { # certificate NAME SECTION SUBJECT [SIGNER...]
  openssl req -x509 -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
    -keyout "$1.key" -out "$1.crt" -extensions "$2" -subj "$3" "${@:4}"
}
signer="-CA ca.crt -CAkey ca.key"
certificate ca ca /CN=latebind-node
# shellcheck disable=SC2086
while read -r name section subject; do certificate "$name" "$section" "$subject" $signer; done <<C
apiserver server /CN=kube-apiserver
apiserver-kubelet client /O=system:masters/CN=apiserver-kubelet
admin client /O=system:masters/CN=admin
kubelet client /O=system:nodes/CN=system:node:n1
scheduler client /CN=system:kube-scheduler
controller-manager client /CN=system:kube-controller-manager
alice client /CN=alice
C
# In the older form: the API server takes no public key from the other.
openssl ecparam -name prime256v1 -genkey -noout -out serviceaccount.key) 2>"$STATE/log/pki.log"
rm "$STATE/log/pki.log"
kubeconfig() { # kubeconfig NAME FILE
  (umask 077; cat >"$2") <<C
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "https://$service:443", certificate-authority-data: $(base64 -w0 "$STATE/pki/ca.crt")}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$STATE/pki/$1.crt"), client-key-data: $(base64 -w0 "$STATE/pki/$1.key")}}]
contexts: [{name: $1, context: {cluster: node, user: $1}}]
current-context: $1
C
}
kubeconfig admin "$STATE/kubeconfig"; kubeconfig alice "$STATE/alice.kubeconfig"
for name in kubelet scheduler controller-manager; do kubeconfig $name "$STATE/cfg/$name.conf"; done
