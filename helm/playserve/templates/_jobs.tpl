{{/* Parts of jobs. A Job's template cannot change, so its name carries a digest of what it was made from. */}}

{{- define "playserve.jobName" -}}
{{- $root := index . 0 -}}
{{- $digest := toJson (list (index . 2) $root.Values.image $root.Values.security $root.Values.store $root.Chart.AppVersion) | sha256sum | trunc 8 -}}
{{- printf "%s-%s" (include "playserve.name" (list $root (index . 1))) $digest -}}
{{- end -}}

{{- define "playserve.jobMetadata" -}}
name: {{ include "playserve.jobName" . }}
namespace: {{ (index . 0).Release.Namespace }}
labels: {{- include "playserve.labels" . | nindent 2 }}
{{- end -}}

{{/* An Indexed Job whose pods may each fail and be disrupted without the others: (list count parallelism retries). */}}
{{- define "playserve.indexed" -}}
completionMode: Indexed
completions: {{ int (index . 0) }}
parallelism: {{ int (index . 1) }}
backoffLimitPerIndex: {{ int (index . 2) }}
maxFailedIndexes: {{ int (index . 0) }}
podFailurePolicy:
  rules:
    # A node that goes away is nobody's failure: what was saved goes on.
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
{{- end -}}

{{- define "playserve.gridContainer" -}}
{{- $values := .Values.jobs.grid -}}
image: {{ include "playserve.image" (list . $values.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  {{- include "playserve.homeEnv" . | nindent 2 }}
  {{- include "playserve.s3Env" . | trim | nindent 2 }}
{{- with include "playserve.s3Secret" . }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
resources: {{- include "playserve.resources" $values | nindent 2 }}
securityContext: {{- toYaml .Values.security.containerSecurityContext | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: shm, mountPath: /dev/shm}
  - {name: grid, mountPath: /grid}
{{- end -}}

{{- define "playserve.gridVolumes" -}}
- {name: tmp, emptyDir: {}}
- {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .Values.jobs.grid.sharedMemory }}}}
- {name: grid, persistentVolumeClaim: {claimName: {{ .Values.jobs.grid.existingClaim }}}}
{{- end -}}

{{- define "playserve.evaluationContainer" -}}
{{- $values := .Values.jobs.evaluation -}}
image: {{ include "playserve.image" (list . $values.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  {{- include "playserve.homeEnv" . | nindent 2 }}
{{- with $values.keySecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
resources: {{- toYaml $values.resources | nindent 2 }}
securityContext: {{- toYaml .Values.security.containerSecurityContext | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: results, mountPath: /results}
  {{- if $values.tlsSecret }}
  - {name: tls, mountPath: /etc/playserve/tls, readOnly: true}
  {{- end }}
{{- end -}}

{{- define "playserve.evaluationVolumes" -}}
{{- $values := .Values.jobs.evaluation -}}
- {name: tmp, emptyDir: {}}
- {name: results, persistentVolumeClaim: {claimName: {{ $values.existingClaim }}}}
{{- with $values.tlsSecret }}
- {name: tls, secret: {secretName: {{ . }}, defaultMode: 288}}
{{- end }}
{{- end -}}

{{/* The command of one shard. Kubernetes puts the index in for $(JOB_COMPLETION_INDEX). */}}
{{- define "playserve.shardCommand" -}}
{{- $values := .Values.jobs.evaluation -}}
{{- $command := concat (list "playserve" "rollout") $values.arguments
  (list "--server" (printf "%s:%d" (include "playserve.inferenceHost" .) (int .Values.inference.ports.grpc))
    "--shard" (printf "$(JOB_COMPLETION_INDEX)/%d" (int $values.shards))
    "--out" (printf "/results/%s/shard-$(JOB_COMPLETION_INDEX)" $values.folder)) -}}
{{- if $values.tlsSecret -}}
{{- $command = concat $command (list "--tls-ca" "/etc/playserve/tls/ca.crt") -}}
{{- if .Values.security.tls.mutual -}}
{{- $command = concat $command (list "--tls-cert" "/etc/playserve/tls/tls.crt" "--tls-key" "/etc/playserve/tls/tls.key") -}}
{{- end -}}
{{- end -}}
{{- $command | toJson -}}
{{- end -}}
