{{/* Names and labels. Every object of this release begins with manta.fullname. */}}
{{- define "manta.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "manta.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "manta.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "manta.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selectors match: it never changes. Argument: (list . component). */}}
{{- define "manta.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "manta.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Any pod of this release. */}}
{{- define "manta.release" -}}
app.kubernetes.io/name: {{ include "manta.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "manta.labels" -}}
{{- $root := index . 0 -}}
{{ include "manta.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | quote }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of pods: a new chart version alone restarts none. Argument: (list . component extra). */}}
{{- define "manta.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "manta.selector" . }}
{{- with merge (dict) (index . 2) $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object. Argument: (list . component name). */}}
{{- define "manta.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "manta.labels" . | nindent 2 }}
{{- with $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "manta.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "manta.clusterSecret" -}}
{{- default (printf "%s-cluster" (include "manta.fullname" .)) .Values.clusterSecret.existingSecret -}}
{{- end -}}

{{- define "manta.keysSecret" -}}
{{- default (printf "%s-api-keys" (include "manta.fullname" .)) .Values.apiKeys.existingSecret -}}
{{- end -}}

{{/* Port of tracing.endpoint; empty: there are no traces. */}}
{{- define "manta.tracesPort" -}}
{{- with .Values.tracing.endpoint -}}
{{- $url := urlParse . -}}
{{- if contains ":" $url.host -}}
{{- splitList ":" $url.host | last -}}
{{- else -}}
{{- ternary 443 80 (eq $url.scheme "https") -}}
{{- end -}}
{{- end -}}
{{- end -}}
