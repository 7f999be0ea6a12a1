{{/* What all pods share. */}}
{{- define "manta.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "manta.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/*
Environment of a member of the cluster. Argument: (list . section). Service links
are off: a Service named manta would set MANTA_PORT to tcp://….
*/}}
{{- define "manta.memberEnv" -}}
{{- $root := index . 0 -}}
{{- $section := index . 1 -}}
- name: MANTA_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: MANTA_ADVERTISE
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: MANTA_SHUTDOWN_TIMEOUT
  value: {{ printf "%ds" (int $section.shutdownSeconds) | quote }}
{{- if $root.Values.tracing.endpoint }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ $root.Release.Namespace }},k8s.pod.name=$(MANTA_NAME)
{{- end }}
{{- with $section.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Restarts the pods, one after another, when what they read at start changes. */}}
{{- define "manta.podAnnotations" -}}
{{- $root := index . 0 -}}
{{- $section := index . 1 -}}
checksum/config: {{ include (print $root.Template.BasePath "/configmap.yaml") $root | sha256sum }}
checksum/cluster-secret: {{ include "manta.clusterLines" $root | sha256sum }}
{{- with $root.Values.commonAnnotations }}
{{ toYaml . }}
{{- end }}
{{- with $section.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Draining, and what comes after it: leadership handed over, gossip left, unloading. */}}
{{- define "manta.gracePeriod" -}}
{{- add (int .preStopSeconds) (int .shutdownSeconds) 15 -}}
{{- end -}}
