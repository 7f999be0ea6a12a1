{{/*
Secrets that are drawn once: what the cluster has stays, so an upgrade changes
nothing. Without a cluster to ask (`helm template`) nothing may be drawn, because
each rendering would draw anew; _checks.tpl refuses that by name only where the
release is rendered as plain manifests (namespace.create).
*/}}
{{- define "manta.drawn" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $entry := index . 2 -}}
{{- $given := index . 3 -}}
{{- $old := lookup "v1" "Secret" $root.Release.Namespace $name -}}
{{- if $given -}}
{{- join "\n" $given -}}
{{- else if and $old (hasKey (default dict $old.data) $entry) -}}
{{- index $old.data $entry | b64dec | trimSuffix "\n" -}}
{{- else -}}
{{- /* One rendering uses the value in several places: it must be drawn once. */ -}}
{{- $memory := print "drawn:" $name -}}
{{- if not (hasKey $root.Values $memory) -}}
{{- $_ := set $root.Values $memory (randAlphaNum 43) -}}
{{- end -}}
{{- index $root.Values $memory -}}
{{- end -}}
{{- end -}}

{{- define "manta.clusterLines" -}}
{{- if .Values.clusterSecret.existingSecret -}}
{{- .Values.clusterSecret.existingSecret -}}
{{- else -}}
{{- include "manta.drawn" (list . (include "manta.clusterSecret" .) "secrets" .Values.clusterSecret.lines) -}}
{{- end -}}
{{- end -}}
