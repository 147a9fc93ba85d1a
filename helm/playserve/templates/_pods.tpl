{{/* Parts of pods that all components share. */}}

{{/* image: (list $ .Values.<component>.image) */}}
{{- define "playserve.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := default $root.Values.image.registry $image.registry -}}
{{- $name := ternary (printf "%s/%s" (trimSuffix "/" $registry) $image.repository) $image.repository (ne $registry "") -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (coalesce $image.tag $root.Values.image.tag $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What every pod begins with. enableServiceLinks: a Service called `playserve` would set PLAYSERVE_PORT=tcp://... */}}
{{- define "playserve.podBasics" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ include "playserve.name" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- toYaml $root.Values.security.podSecurityContext | nindent 2 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Where a pod may run: (list $ .Values.<component>) */}}
{{- define "playserve.placement" -}}
{{- $values := index . 1 -}}
{{- range $key := list "runtimeClassName" "priorityClassName" }}
{{- with index $values $key }}
{{ $key }}: {{ . }}
{{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" }}
{{- with index $values $key }}
{{ $key }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* resources with GPUs: .Values.<component> */}}
{{- define "playserve.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if and .gpu .gpu.count -}}
{{- $_ := set $resources "limits" (merge (dict .gpu.resource (int .gpu.count)) (default dict $resources.limits)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* The root is read-only: caches of libraries go where HOME is. */}}
{{- define "playserve.homeEnv" -}}
- {name: HOME, value: /tmp}
{{- end -}}

{{/* Settings by name as variables: (list "PLAYSERVE_" map) */}}
{{- define "playserve.settingsEnv" -}}
{{- $prefix := index . 0 -}}
{{- range $name, $value := index . 1 }}
- {name: {{ printf "%s%s" $prefix (upper $name) }}, value: {{ include "playserve.scalar" $value | quote }}}
{{- end }}
{{- end -}}

{{/* Keys of S3, where there are any; boto reads them from these variables. */}}
{{- define "playserve.s3Env" -}}
{{- with .Values.store.s3 }}
{{- if .endpointUrl }}
- {name: AWS_ENDPOINT_URL, value: {{ .endpointUrl | quote }}}
{{- end }}
{{- if .region }}
- {name: AWS_DEFAULT_REGION, value: {{ .region | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "playserve.s3Secret" -}}
{{- $s3 := .Values.store.s3 -}}
{{- if $s3.existingSecret -}}{{ $s3.existingSecret }}
{{- else if $s3.accessKeyId -}}{{ include "playserve.name" (list . "s3") }}
{{- end -}}
{{- end -}}

{{- define "playserve.tlsSecret" -}}
{{- $tls := .Values.security.tls -}}
{{- if $tls.existingSecret -}}{{ $tls.existingSecret }}
{{- else if $tls.certificate -}}{{ include "playserve.name" (list . "tls") }}
{{- end -}}
{{- end -}}

{{- define "playserve.keysSecret" -}}
{{- $keys := .Values.security.keys -}}
{{- if $keys.existingSecret -}}{{ $keys.existingSecret }}
{{- else if $keys.file -}}{{ include "playserve.name" (list . "keys") }}
{{- end -}}
{{- end -}}

{{- define "playserve.databaseSecret" -}}
{{- $database := .Values.control.database -}}
{{- if $database.existingSecret -}}{{ $database.existingSecret }}
{{- else if $database.url -}}{{ include "playserve.name" (list . "database") }}
{{- end -}}
{{- end -}}

{{/* The store's volume, or nothing where the store is a URL. */}}
{{- define "playserve.storeVolume" -}}
{{- $volume := .Values.store.volume -}}
{{- if .Values.store.url -}}
{{- else if $volume.hostPath }}
- {name: store, hostPath: {path: {{ $volume.hostPath | quote }}, type: Directory}}
{{- else }}
- {name: store, persistentVolumeClaim: {claimName: {{ default (include "playserve.name" (list . "store")) $volume.existingClaim }}}}
{{- end }}
{{- end -}}
