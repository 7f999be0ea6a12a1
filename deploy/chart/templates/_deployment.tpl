{{/* The body of POST /api/cluster/deployments; MODEL_NAME and its siblings come by environment. */}}
{{- define "manta.deployment" -}}
{{- $model := .Values.model -}}
{{- $body := dict
  "name" (default $model.name $model.servedName) "aliases" $model.aliases
  "replicas" (eq (toString $model.replicas) "auto" | ternary "auto" (toString $model.replicas | int))
  "pipeline_parallel_size" (int $model.pipelineParallelSize) "max_model_len" (int $model.maxModelLen)
  "max_num_seqs" (int $model.maxNumSeqs) "max_num_batched_tokens" (int $model.maxNumBatchedTokens)
  "dtype" $model.dtype "kv_cache_dtype" $model.kvCacheDtype
  "enable_prefix_caching" $model.enablePrefixCaching "strategy" $model.strategy -}}
{{- toJson $body -}}
{{- end -}}

{{- define "manta.deployPod" -}}
{{- $model := .Values.model -}}
metadata:
  labels: # not the common ones: who waits for all pods of a label would wait for this one
    {{- include "manta.selector" (list . "deploy") | nindent 4 }}
spec:
  serviceAccountName: {{ include "manta.fullname" . }}-deploy
  automountServiceAccountToken: false
  enableServiceLinks: false
  restartPolicy: Never
  securityContext:
    {{- include "manta.podSecurity" . | nindent 4 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
  - name: deploy
    image: {{ include "manta.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [/manta-declare]
    args:
    - --file=/etc/manta/deployment/deployment.json
    - --url=http://{{ include "manta.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.api.port }}
    - --timeout={{ $model.deadlineSeconds }}s
    {{- if .Values.apiKeys.enabled }}
    - --api-key-file=/etc/manta/keys/keys
    {{- end }}
    {{- if $model.waitReady }}
    - --wait
    {{- end }}
    env:
    - {name: MODEL_NAME, value: {{ $model.name | quote }}}
    - {name: TENSOR_PARALLEL_SIZE, value: {{ $model.tensorParallelSize | quote }}}
    - {name: GPU_MEMORY_UTILIZATION, value: {{ $model.gpuMemoryUtilization | quote }}}
    resources:
      requests: {cpu: 10m, memory: 32Mi}
      limits: {memory: 64Mi}
    securityContext:
      {{- include "manta.containerSecurity" . | nindent 6 }}
    volumeMounts:
    - {name: deployment, mountPath: /etc/manta/deployment, readOnly: true}
    {{- if .Values.apiKeys.enabled }}
    - {name: api-keys, mountPath: /etc/manta/keys, readOnly: true}
    {{- end }}
  volumes:
  - name: deployment
    configMap: {name: {{ include "manta.fullname" . }}-deployment}
  {{- if .Values.apiKeys.enabled }}
  - name: api-keys
    secret: {secretName: {{ include "manta.keysSecret" . }}, defaultMode: 0440}
  {{- end }}
{{- end -}}
