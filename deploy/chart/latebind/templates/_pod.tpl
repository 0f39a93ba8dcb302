{{- define "latebind.pullSecrets" -}}
{{- concat .Values.pullSecrets (compact (list .Values.registryLogin .Values.tiers.credentials.secretName)) | uniq | toJson -}}
{{- end }}

{{- define "latebind.imageVolume" -}}
{{- $is := toString .Values.imageVolume -}}
{{- if and (eq $is "true") (semverCompare "<1.33-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "imageVolume: Kubernetes %s has no image volumes that slots can use (1.33 has); set it to auto or false" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if or (eq $is "true") (and (eq $is "auto") (semverCompare ">=1.36-0" .Capabilities.KubeVersion.Version)) -}}yes{{- end -}}
{{- end }}

{{- define "latebind.hardened" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "latebind.sized" -}}
{{- if . }}sizeLimit: {{ . | quote }}{{ end }}
{{- end }}

{{- /* The pod's template: (dict "root" $ "restartPolicy" ..) */}}
{{- define "latebind.pod" -}}
{{- $restart := .restartPolicy }}
{{- with .root }}
{{- $slots := int .Values.slots }}
{{- $imageVolume := include "latebind.imageVolume" . }}
metadata:
  labels:
    app.kubernetes.io/name: latebind-pilot
  annotations:
    # The nonce of the slot's epoch; zeros: idle.
    {{- range $i := until $slots }}
    latebind.dev/slot-{{ $i }}: {{ repeat 32 "0" | quote }}
    {{- end }}
spec:
  serviceAccountName: latebind-pilot
  automountServiceAccountToken: false
  enableServiceLinks: false
  restartPolicy: {{ $restart }}
  terminationGracePeriodSeconds: 60
  securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  {{- with include "latebind.pullSecrets" . | fromJsonArray }}
  imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 2 }}
  {{- end }}
  initContainers:
  # The kubelet makes a missing subPath itself, with an owner and a mode that slots can't use: so all folders come first.
  - name: prepare
    image: {{ .Values.images.pilot | quote }}
    command: [/latebind/pilot, prepare-share]
    env:
    - {name: LATEBIND_SLOTS, value: {{ $slots | quote }}}
    - {name: LATEBIND_SHARE, value: /latebind/share}
    {{- with .Values.mounts }}
    - {name: LATEBIND_MOUNT, value: {{ join "," . | quote }}}
    {{- end }}
    {{- if not $imageVolume }}
    - {name: LATEBIND_SHIM_COPY, value: /latebind/bin/payload-shim}
    {{- end }}
    securityContext:
      runAsUser: 10000
      runAsGroup: 10000
      {{- include "latebind.hardened" . | nindent 6 }}
    resources: {{- toYaml .Values.resources.pilot | nindent 6 }}
    volumeMounts:
    - {name: share, mountPath: /latebind/share}
    {{- if not $imageVolume }}
    - {name: shim, mountPath: /latebind/bin}
    {{- end }}
  containers:
  - name: pilot
    image: {{ .Values.images.pilot | quote }}
    command: [/latebind/pilot, serve]
    workingDir: /latebind/share/pilot
    {{- with .Values.s3Secret }}
    envFrom:
    - secretRef: {name: {{ . | quote }}}
    {{- end }}
    env:
    - {name: LATEBIND_BACKEND, value: kubernetes}
    - {name: LATEBIND_NAME, value: pilot}
    - {name: LATEBIND_POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: LATEBIND_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: LATEBIND_IDLE_IMAGE, value: {{ .Values.images.shim | quote }}}
    - {name: LATEBIND_SHARE, value: /latebind/share}
    - {name: LATEBIND_SPOOL, value: /latebind/share/pilot/spool}
    - {name: LATEBIND_STORE, value: /latebind/share/pilot/store}
    - {name: LATEBIND_STATE_DIR, value: /latebind/share/pilot/state}
    - {name: LATEBIND_SCRATCH_DIR, value: /latebind/share/pilot/scratch}
    - {name: HOME, value: /latebind/share/pilot}
    - {name: TMPDIR, value: /latebind/share/pilot/tmp}
    # For stages in memory; the rest of the pilot's own memory is for itself.
    - {name: LATEBIND_MEMORY, value: {{ .Values.stageMemory | quote }}}
    {{- if .Values.registryLogin }}
    - {name: LATEBIND_REGISTRY_AUTH, value: /latebind/login/auth.json}
    {{- end }}
    {{- if .Values.registriesConfigMap }}
    - {name: LATEBIND_REGISTRIES, value: /latebind/registries/registries.yaml}
    {{- end }}
    {{- if .Values.tiers.prefetch }}
    - {name: LATEBIND_PREFETCH, value: "true"}
    {{- end }}
    {{- with .Values.tiers.credentials.secretName }}
    - {name: LATEBIND_PULL_SECRET, value: {{ . | quote }}}
    {{- end }}
    {{- if .Values.tiers.resize }}
    - {name: LATEBIND_RESIZE, value: "true"}
    {{- end }}
    {{- with .Values.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    securityContext:
      runAsUser: 10000
      runAsGroup: 10000
      {{- include "latebind.hardened" . | nindent 6 }}
    resources: {{- toYaml .Values.resources.pilot | nindent 6 }}
    volumeMounts:
    - {name: share, mountPath: /latebind/share}
    - {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
    {{- if .Values.registryLogin }}
    - {name: login, mountPath: /latebind/login, readOnly: true}
    {{- end }}
    {{- if .Values.registriesConfigMap }}
    - {name: registries, mountPath: /latebind/registries, readOnly: true}
    {{- end }}
  {{- range $i := until $slots }}
  - name: slot-{{ $i }}
    image: {{ $.root.Values.images.shim | quote }}
    imagePullPolicy: IfNotPresent
    command: [/.latebind/bin/payload-shim]
    workingDir: /
    env:
    - {name: LATEBIND_CONTROL, value: /.latebind/control}
    - {name: LATEBIND_CONFINE, value: pod}
    - {name: LATEBIND_NONCE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['latebind.dev/slot-{{ $i }}']"}}}
    securityContext:
      runAsUser: {{ add 10001 $i }}
      runAsGroup: {{ add 10001 $i }}
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: {{ not $.root.Values.writableRoot }}
      capabilities: {drop: [ALL]}
    resources: {{- toYaml $.root.Values.resources.slot | nindent 6 }}
    volumeMounts:
    - {name: shim, mountPath: /.latebind/bin, readOnly: true}
    - {name: share, mountPath: /.latebind/control, subPath: slots/{{ $i }}/control}
    - {name: share, mountPath: /.latebind/in, subPath: slots/{{ $i }}/in, readOnly: true}
    - {name: share, mountPath: /stage/in, subPath: slots/{{ $i }}/links}
    - {name: share, mountPath: /stage/out, subPath: slots/{{ $i }}/out}
    - {name: share, mountPath: /work, subPath: slots/{{ $i }}/work}
    - {name: memory-{{ $i }}, mountPath: /dev/shm, subPath: shm}
    - {name: memory-{{ $i }}, mountPath: /tmp, subPath: tmp}
    - {name: memory-{{ $i }}, mountPath: /var/tmp, subPath: var-tmp}
    {{- range $k, $mount := $.root.Values.mounts }}
    # A link to what the payload wants there; the kubelet looks anew at each start.
    - {name: share, mountPath: {{ trimSuffix ":file" $mount | quote }}, subPath: slots/{{ $i }}/mounts/{{ $k }}{{ if hasSuffix ":file" $mount }}.file{{ end }}, readOnly: true}
    {{- end }}
  {{- end }}
  volumes:
  - name: share
    emptyDir: { {{- include "latebind.sized" .Values.volumes.share -}} }
  - name: shim
    {{- if $imageVolume }}
    image: {reference: {{ .Values.images.shim | quote }}, pullPolicy: IfNotPresent}
    {{- else }}
    emptyDir: {}
    {{- end }}
  {{- range $i := until $slots }}
  - name: memory-{{ $i }}
    emptyDir: {medium: Memory{{ with include "latebind.sized" $.root.Values.volumes.memory }}, {{ . }}{{ end }}}
  {{- end }}
  {{- with .Values.registryLogin }}
  - {name: login, secret: {secretName: {{ . | quote }}, items: [{key: .dockerconfigjson, path: auth.json}]}}
  {{- end }}
  {{- with .Values.registriesConfigMap }}
  - {name: registries, configMap: {name: {{ . | quote }}}}
  {{- end }}
  - name: token
    projected:
      sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}
{{- end }}
