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
{{- if .Values.security.tls.mutual -}}
{{- $_ := merge $settings (dict "replica_tls_cert" "/etc/playserve/fleet/tls.crt" "replica_tls_key" "/etc/playserve/fleet/tls.key") -}}
{{- end -}}
{{- if $values.jobs.enabled -}}
{{- $_ := merge $settings (dict "cluster" "/etc/playserve/cluster/cluster.json" "grids" "/jobs/grids") -}}
{{- end -}}
{{- $rest := dict "max_jobs" (ternary 4 0 $values.jobs.enabled) -}}
{{- /* With PostgreSQL the data folder goes with the pod. The store's own listing leaves out what begins with a dot. */}}
{{- if include "playserve.databaseSecret" . -}}
{{- $_ := set $rest "recordings" (printf "%s/.recordings" (default "/store" .Values.store.url | trimSuffix "/")) -}}
{{- end -}}
{{- include "playserve.homeEnv" . }}
{{- include "playserve.settingsEnv" (list "PLAYSERVE_CONTROL_" (merge $settings $values.settings $rest)) }}
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

{{/* What one kind of control's jobs is like, out of jobs.<kind>: (list $ "kind" retries grace) */}}
{{- define "playserve.clusterPods" -}}
{{- $root := index . 0 -}}
{{- $kind := index . 1 -}}
{{- $values := index $root.Values.jobs $kind -}}
{{- $pods := dict
  "image" (include "playserve.image" (list $root $values.image))
  "service_account" (include "playserve.name" (list $root $kind))
  "resources" (include "playserve.resources" $values | fromYaml)
  "retries" (int (index . 2))
  "grace_s" (int (index . 3))
  "deadline_s" (int $values.deadlineSeconds)
  "ttl_s" (int $values.ttlSecondsAfterFinished)
  "node_selector" $values.nodeSelector
  "tolerations" $values.tolerations
  "labels" (include "playserve.selector" (list $root $kind) | fromYaml) -}}
{{- toJson $pods -}}
{{- end -}}

{{/* The file by which control starts Jobs (ClusterSettings). */}}
{{- define "playserve.cluster" -}}
{{- $jobs := .Values.jobs -}}
{{- $evaluation := include "playserve.clusterPods" (list . "evaluation" $jobs.evaluation.retriesPerShard 60) | fromJson -}}
{{- $_ := set $evaluation "env_secret" $jobs.evaluation.keySecret -}}
{{- $grid := include "playserve.clusterPods" (list . "grid" $jobs.grid.retriesPerRun 120) | fromJson -}}
{{- $env := dict -}}
{{- range include "playserve.s3Env" . | fromYamlArray -}}{{- $_ := set $env .name .value -}}{{- end -}}
{{- $_ := merge $grid (dict "processes" (int $jobs.grid.processes) "shared_memory" $jobs.grid.sharedMemory
  "runtime_class" $jobs.grid.runtimeClassName "env" $env "env_secret" (include "playserve.s3Secret" .)) -}}
{{- $cluster := dict
  "namespace" .Release.Namespace
  "name" (include "playserve.fullname" . | trunc 36 | trimSuffix "-")
  "claim" .Values.control.jobs.existingClaim
  "folder" "/jobs"
  "pull_policy" .Values.image.pullPolicy
  "pull_secrets" .Values.image.pullSecrets
  "tls_secret" $jobs.evaluation.tlsSecret
  "mutual" .Values.security.tls.mutual
  "pod_security" .Values.security.podSecurityContext
  "container_security" .Values.security.containerSecurityContext
  "evaluation" $evaluation
  "grid" $grid -}}
{{- if and .Values.control.keys.existingSecret (not $jobs.evaluation.keySecret) -}}
{{- $_ := set $cluster "key" (dict "secret" .Values.control.keys.existingSecret "item" "jobs") -}}
{{- end -}}
{{- toPrettyJson $cluster -}}
{{- end -}}
