{{/* Names and labels. Every template takes the root context; those with a component take (list $ "component"). */}}

{{- define "playserve.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "playserve.name" -}}
{{- $root := index . 0 -}}
{{- printf "%s-%s" (include "playserve.fullname" $root) (index . 1) -}}
{{- end -}}

{{/* What selectors select by: it never changes, or StatefulSets and Deployments could not be upgraded. */}}
{{- define "playserve.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride | trunc 40 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of objects, not of pods: the chart's version would restart every pod with each release of the chart. */}}
{{- define "playserve.labels" -}}
{{ include "playserve.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/part-of: playserve
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* metadata of an object of a component. */}}
{{- define "playserve.metadata" -}}
name: {{ include "playserve.name" . }}
namespace: {{ (index . 0).Release.Namespace }}
labels: {{- include "playserve.labels" . | nindent 2 }}
{{- end -}}

{{/* Address of the inference service for those in the cluster. */}}
{{- define "playserve.inferenceHost" -}}
{{- printf "%s.%s.svc.%s" (include "playserve.name" (list . "inference")) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{/* Most replicas that there may be: what each of them needs is made in advance. */}}
{{- define "playserve.mostReplicas" -}}
{{- if .Values.autoscaling.enabled -}}{{ int .Values.autoscaling.maxReplicas }}{{- else -}}{{ int .Values.inference.replicas }}{{- end -}}
{{- end -}}

{{- define "playserve.terminationSeconds" -}}
{{- add (int .Values.inference.drain.graceSeconds) (int .Values.inference.drain.marginSeconds) -}}
{{- end -}}

{{/* The window in which one replica may go: HPA's periodSeconds. */}}
{{- define "playserve.scaleDownSeconds" -}}
{{- max (int .Values.autoscaling.scaleDown.windowSeconds) (include "playserve.terminationSeconds" . | int) -}}
{{- end -}}

{{/* A number without an exponent: Helm reads every number as a float. */}}
{{- define "playserve.scalar" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}
