{{/* The control plane's address, certificate and variables. */}}

{{- define "playserve.controlTls" -}}
{{- default (include "playserve.tlsSecret" .) .Values.control.tls.existingSecret -}}
{{- end -}}

{{- define "playserve.controlUrl" -}}
{{- printf "https://%s.%s.svc.%s:%d" (include "playserve.name" (list . "control")) .Release.Namespace .Values.clusterDomain (int .Values.control.port) -}}
{{- end -}}

{{- define "playserve.controlEnv" -}}
{{- $values := .Values.control -}}
{{- $settings := dict "host" "0.0.0.0" "port" $values.port "log_format" "json" "data" "/var/lib/playserve"
  "store" (default "/store" .Values.store.url) -}}
{{- $_ := merge $settings (dict "tls_cert" "/etc/playserve/tls/tls.crt" "tls_key" "/etc/playserve/tls/tls.key") -}}
{{- if include "playserve.tlsSecret" . -}}{{- $_ := set $settings "replica_tls_ca" "/etc/playserve/fleet/ca.crt" -}}{{- end -}}
{{- include "playserve.homeEnv" . }}
{{- include "playserve.settingsEnv" (list "PLAYSERVE_CONTROL_" (merge $settings $values.settings)) }}
{{- with include "playserve.databaseSecret" . }}
- {name: PLAYSERVE_CONTROL_DATABASE, valueFrom: {secretKeyRef: {name: {{ . }}, key: url}}}
{{- end }}
{{- with $values.keys.existingSecret }}
- {name: PLAYSERVE_CONTROL_REPLICA_KEY, valueFrom: {secretKeyRef: {name: {{ . }}, key: replicas}}}
- {name: PLAYSERVE_CONTROL_JOB_KEY, valueFrom: {secretKeyRef: {name: {{ . }}, key: jobs, optional: true}}}
{{- end }}
{{- include "playserve.s3Env" . }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
