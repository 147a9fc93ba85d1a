{{/* The inference container. */}}

{{- define "playserve.inferenceContainer" -}}
{{- $values := .Values.inference -}}
image: {{ include "playserve.image" (list . $values.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [playserve, serve]
env: {{- include "playserve.inferenceEnv" . | trim | nindent 2 }}
{{- with include "playserve.s3Secret" . }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
ports:
  {{- range $name, $port := $values.ports }}
  - {name: {{ $name }}, containerPort: {{ int $port }}, protocol: TCP}
  {{- end }}
{{- /* Ready once every policy is loaded and warm; alive while the engine is, also during a drain. */}}
{{- range $probe, $service := dict "startup" "readiness" "readiness" "readiness" "liveness" "liveness" }}
{{ $probe }}Probe:
  grpc: {port: {{ int $values.ports.health }}, service: {{ $service }}}
  {{- range $key, $value := index $values.probes $probe }}
  {{ $key }}: {{ int $value }}
  {{- end }}
{{- end }}
lifecycle:
  preStop:
    exec: {{- /* The server exits by itself when it is drained, and the hook with it; a second SIGTERM would end the rest at once. */}}
      command: {{ include "playserve.drainCommand" . }}
resources: {{- include "playserve.resources" $values | nindent 2 }}
securityContext: {{- toYaml .Values.security.containerSecurityContext | nindent 2 }}
volumeMounts: {{- include "playserve.inferenceMounts" . | trim | nindent 2 }}
{{- end -}}

{{- define "playserve.drainCommand" -}}
{{- $wait := add (int .Values.inference.drain.graceSeconds) (div (int .Values.inference.drain.marginSeconds) 2) -}}
{{- list "python3" "-c" (printf "import os, signal, time; os.kill(1, signal.SIGTERM); time.sleep(%d)" (int $wait)) | toJson -}}
{{- end -}}

{{- define "playserve.inferenceEnv" -}}
{{- $values := .Values.inference -}}
{{- $settings := dict
  "host" "0.0.0.0"
  "port" $values.ports.grpc "admin_port" $values.ports.admin "health_port" $values.ports.health
  "metrics_port" $values.ports.metrics
  "device" (default (ternary "cuda" "cpu" (gt (int $values.gpu.count) 0)) $values.device)
  "drain_grace_s" $values.drain.graceSeconds
  "log_format" "json"
  "store" (default "/store" .Values.store.url)
-}}
{{- if .Values.security.insecureListen -}}{{- $_ := set $settings "insecure_listen" true -}}{{- end -}}
{{- if include "playserve.tlsSecret" . -}}
{{- $_ := merge $settings (dict "tls_cert" "/etc/playserve/tls/tls.crt" "tls_key" "/etc/playserve/tls/tls.key") -}}
{{- if .Values.security.tls.mutual -}}{{- $_ := set $settings "tls_client_ca" "/etc/playserve/tls/ca.crt" -}}{{- end -}}
{{- end -}}
{{- if include "playserve.keysSecret" . -}}{{- $_ := set $settings "keys" "/etc/playserve/keys/keys.json" -}}{{- end -}}
{{- if .Values.control.enabled -}}{{- $_ := merge $settings (include "playserve.registrySettings" . | fromYaml) -}}{{- end -}}
{{- $_ := merge $settings (include "playserve.handoffSettings" . | fromYaml) -}}
{{- if and .Values.triton.enabled .Values.triton.compute -}}
{{- $triton := include "playserve.name" (list . "triton") -}}
{{- $_ := merge $settings (dict "engine" "triton" "triton_front" "$(POD_INDEX)"
  "triton_url" (printf "%s-0.%s.%s.svc.%s:8001" $triton $triton .Release.Namespace .Values.clusterDomain)) -}}
{{- end -}}
{{- include "playserve.homeEnv" . }}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_INDEX, valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}}
{{- include "playserve.settingsEnv" (list "PLAYSERVE_" (merge $settings $values.settings)) }}
{{- include "playserve.s3Env" . }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* How a replica follows the registry, and what it tells it. Kubernetes puts POD_NAME and POD_INDEX in. */}}
{{- define "playserve.registrySettings" -}}
{{- $ports := .Values.inference.ports -}}
{{- $external := .Values.external -}}
{{- $pod := printf "$(POD_NAME).%s-replicas.%s.svc.%s" (include "playserve.name" (list . "inference")) .Release.Namespace .Values.clusterDomain -}}
registry: {{ include "playserve.controlUrl" . }}
registry_ca: /etc/playserve/control/ca.crt
{{- if .Values.control.keys.existingSecret }}
registry_key_file: /etc/playserve/registry/registry
{{- end }}
registry_cache: /var/lib/playserve/registry.json
replica: $(POD_NAME)
advertise_admin: {{ printf "%s:%d" $pod (int $ports.admin) }}
{{- end -}}

{{/* Where players reach a replica, and to whom it hands its sessions when it drains. */}}
{{- define "playserve.handoffSettings" -}}
{{- $ports := .Values.inference.ports -}}
{{- $external := .Values.external -}}
{{- $zone := printf "%s-replicas.%s.svc.%s" (include "playserve.name" (list . "inference")) .Release.Namespace .Values.clusterDomain -}}
{{- $pod := printf "$(POD_NAME).%s" $zone -}}
{{- if or (eq $external.mode "none") (not $external.domain) }}
advertise: {{ printf "%s:%d" $pod (int $ports.grpc) }}
{{- else if eq $external.mode "loadBalancer" }}
advertise: {{ printf "$(POD_NAME).%s:%d" $external.domain (int $external.loadBalancer.port) }}
{{- else if eq $external.gateway.route "TLSRoute" }}
advertise: {{ printf "$(POD_NAME).%s:%d" $external.domain (int $external.gateway.port) }}
{{- else }}
advertise: {{ printf "%s:%d$(POD_INDEX)" $external.domain (div (int $external.gateway.basePort) 10) }}
{{- end }}
{{- if include "playserve.handsOver" . }}
peers_dns: {{ printf "%s:%d" $zone (int $ports.grpc) }}
{{- if include "playserve.tlsSecret" . }}
peers_ca: /etc/playserve/tls/ca.crt
peers_name: {{ printf "peer.%s" $zone }}
{{- end }}
{{- if include "playserve.peersSecret" . }}
peers_key_file: /etc/playserve/peers/peers
{{- end }}
{{- end }}
{{- end -}}

{{/* The Secret with the key, of scope admin, that replicas show each other; empty: none. Control has one for steering replicas. */}}
{{- define "playserve.peersSecret" -}}
{{- default .Values.control.keys.existingSecret .Values.inference.handoff.existingSecret -}}
{{- end -}}

{{/* Whether replicas can hand sessions over: not where they want keys of each other and have none. */}}
{{- define "playserve.handsOver" -}}
{{- $keys := or (include "playserve.keysSecret" .) .Values.control.enabled -}}
{{- if and .Values.inference.handoff.enabled (or (not $keys) (include "playserve.peersSecret" .)) }}true{{ end -}}
{{- end -}}

{{- define "playserve.inferenceMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: state, mountPath: /var/lib/playserve}
{{- if not .Values.store.url }}
- {name: store, mountPath: /store, readOnly: true}
{{- end }}
{{- if include "playserve.tlsSecret" . }}
- {name: tls, mountPath: /etc/playserve/tls, readOnly: true}
{{- end }}
{{- if include "playserve.keysSecret" . }}
- {name: keys, mountPath: /etc/playserve/keys, readOnly: true}
{{- end }}
{{- if .Values.control.enabled }}
- {name: control, mountPath: /etc/playserve/control, readOnly: true}
{{- end }}
{{- if and .Values.control.enabled .Values.control.keys.existingSecret }}
- {name: registry, mountPath: /etc/playserve/registry, readOnly: true}
{{- end }}
{{- if and (include "playserve.handsOver" .) (include "playserve.peersSecret" .) }}
- {name: peers, mountPath: /etc/playserve/peers, readOnly: true}
{{- end }}
{{- with .Values.inference.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "playserve.inferenceVolumes" -}}
- {name: tmp, emptyDir: {}}
{{- if not .Values.inference.registryCache.persistent }}
- {name: state, emptyDir: {}}
{{- end }}
{{- include "playserve.storeVolume" . }}
{{- with include "playserve.tlsSecret" . }}
- {name: tls, secret: {secretName: {{ . }}, defaultMode: 288}}
{{- end }}
{{- with include "playserve.keysSecret" . }}
- {name: keys, secret: {secretName: {{ . }}, defaultMode: 288}}
{{- end }}
{{- if .Values.control.enabled }}
- {name: control, secret: {secretName: {{ include "playserve.controlTls" . }}, defaultMode: 288, items: [{key: ca.crt, path: ca.crt}]}}
{{- end }}
{{- if and .Values.control.enabled .Values.control.keys.existingSecret }}
- {name: registry, secret: {secretName: {{ .Values.control.keys.existingSecret }}, defaultMode: 288, items: [{key: registry, path: registry}]}}
{{- end }}
{{- if and (include "playserve.handsOver" .) (include "playserve.peersSecret" .) }}
- {name: peers, secret: {secretName: {{ include "playserve.peersSecret" . }}, defaultMode: 288, items: [{key: {{ ternary "peers" "replicas" (ne .Values.inference.handoff.existingSecret "") }}, path: peers}]}}
{{- end }}
{{- with .Values.inference.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
