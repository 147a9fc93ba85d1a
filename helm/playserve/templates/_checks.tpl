{{/* Refuses values that each fit the schema and together do not. Says what came and what was wanted. */}}
{{- define "playserve.checks" -}}
{{- $values := .Values -}}
{{- $tls := include "playserve.tlsSecret" . -}}
{{- $keys := or (include "playserve.keysSecret" .) $values.control.enabled $values.security.tls.mutual $values.inference.settings.jwt_issuer -}}
{{- if not (or $values.security.insecureListen (and $tls $keys)) -}}
{{- fail "the fleet would listen without TLS and keys: set security.tls and (security.keys, control.enabled, security.tls.mutual or inference.settings.jwt_issuer), or say security.insecureListen" -}}
{{- end -}}
{{- if and $values.security.tls.mutual (not $tls) -}}
{{- fail "security.tls.mutual is set without a certificate: set security.tls.existingSecret or security.tls.certificate" -}}
{{- end -}}
{{- $volume := $values.store.volume -}}
{{- if not (or $values.store.url $volume.existingClaim $volume.create $volume.hostPath) -}}
{{- fail "there is no store: set store.url, or one of store.volume.existingClaim, create and hostPath" -}}
{{- end -}}
{{- with $values.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas is %d, more than maxReplicas, %d" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- if and .enabled (gt (include "playserve.scaleDownSeconds" $ | int) 1800) -}}
{{- fail (printf "a scale-down window of %s s (a drain, or scaleDown.windowSeconds) is longer than the 1800 s that Kubernetes allows" (include "playserve.scaleDownSeconds" $)) -}}
{{- end -}}
{{- end -}}
{{- if eq $values.external.mode "gateway" -}}
{{- with $values.external.gateway -}}
{{- if and (eq .route "TLSRoute") (not $tls) -}}
{{- fail "external.gateway.route is TLSRoute, which needs TLS in the server: set security.tls, or take TCPRoute" -}}
{{- end -}}
{{- if and (eq .route "TLSRoute") (not $values.external.domain) -}}
{{- fail "external.gateway.route is TLSRoute, which knows replicas by name, and external.domain is empty" -}}
{{- end -}}
{{- if and (eq .route "TCPRoute") (or (mod (int .basePort) 10) (gt (include "playserve.mostReplicas" $ | int) 10)) -}}
{{- fail (printf "external.gateway: a TCPRoute wants a basePort that ends in 0, not %d, and 10 replicas at most, not %s; TLSRoute has no such limit" (int .basePort) (include "playserve.mostReplicas" $)) -}}
{{- end -}}
{{- if and .create (not .className) -}}
{{- fail "external.gateway.create needs external.gateway.className" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.control.enabled (not (include "playserve.controlTls" .)) -}}
{{- fail "control.enabled needs TLS, since replicas follow the registry by https alone: set security.tls or control.tls" -}}
{{- end -}}
{{- if and $values.control.enabled (gt (int $values.control.replicas) 1) (not (include "playserve.databaseSecret" .)) -}}
{{- fail (printf "control.replicas is %d, but SQLite takes one: set control.database" (int $values.control.replicas)) -}}
{{- end -}}
{{- with $values.control.jobs -}}
{{- if and $values.control.enabled .enabled (not .existingClaim) -}}
{{- fail "control.jobs.enabled needs control.jobs.existingClaim, the volume of grids and results" -}}
{{- end -}}
{{- if and $values.control.enabled .enabled $tls (not $values.jobs.evaluation.tlsSecret) -}}
{{- fail "the fleet has TLS: control.jobs needs jobs.evaluation.tlsSecret, with ca.crt (and tls.crt, tls.key for mutual TLS)" -}}
{{- end -}}
{{- end -}}
{{- if and $values.triton.enabled (not $values.triton.modelRepositoryClaim) -}}
{{- fail "triton.enabled needs triton.modelRepositoryClaim, the volume that `playserve triton export` wrote to" -}}
{{- end -}}
{{- if and $values.triton.enabled $values.triton.compute (ne (int $values.triton.replicas) 1) -}}
{{- fail (printf "triton.compute wants triton.replicas 1, not %d: the slots of a session lie in one Triton" (int $values.triton.replicas)) -}}
{{- end -}}
{{- with $values.jobs.grid -}}
{{- if and .enabled (not .existingClaim) -}}
{{- fail "jobs.grid.enabled needs jobs.grid.existingClaim, the volume with the plan" -}}
{{- end -}}
{{- if and .enabled .gpu.count (ne (int .gpu.count) (int .processes)) -}}
{{- fail (printf "jobs.grid.processes is %d with %d GPUs: each process takes one" (int .processes) (int .gpu.count)) -}}
{{- end -}}
{{- end -}}
{{- with $values.jobs.evaluation -}}
{{- if and .enabled (not (and .existingClaim .arguments)) -}}
{{- fail "jobs.evaluation.enabled needs jobs.evaluation.existingClaim and jobs.evaluation.arguments" -}}
{{- end -}}
{{- if and .enabled $tls (not .tlsSecret) -}}
{{- fail "the fleet has TLS: jobs.evaluation needs tlsSecret, with ca.crt (and tls.crt, tls.key for mutual TLS)" -}}
{{- end -}}
{{- end -}}
{{- end -}}
