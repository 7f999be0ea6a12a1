{{/* What the schema can't say: values that contradict each other, each with what to do. */}}
{{- define "manta.checks" -}}
{{- $v := .Values -}}
{{- if and (eq $v.node.modelCache.type "existing") (not $v.node.modelCache.existingClaim) -}}
{{- fail "node.modelCache.type is existing: give node.modelCache.existingClaim the name of your claim." -}}
{{- end -}}
{{- if and $v.node.modelCache.existingClaim (ne $v.node.modelCache.type "existing") -}}
{{- fail (printf "node.modelCache.existingClaim is given, but node.modelCache.type is %s: set it to existing." $v.node.modelCache.type) -}}
{{- end -}}
{{- if and $v.node.gpu.enabled (hasPrefix "cpu" $v.node.devices) -}}
{{- fail (printf "node.gpu.enabled asks for GPUs that node.devices=%s would leave idle: set node.devices to auto." $v.node.devices) -}}
{{- end -}}
{{- if and $v.node.gpu.enabled $v.model.name (gt (int $v.model.tensorParallelSize) (int $v.node.gpu.count)) -}}
{{- fail (printf "model.tensorParallelSize=%d needs as many GPUs in one pod, and node.gpu.count is %d: raise it, or use model.pipelineParallelSize across pods." (int $v.model.tensorParallelSize) (int $v.node.gpu.count)) -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas=%d is more than autoscaling.maxReplicas=%d." (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (not (or $v.autoscaling.targetCPUUtilizationPercentage $v.autoscaling.targetRequestsPerSecond $v.autoscaling.targetRequests $v.autoscaling.metrics)) -}}
{{- fail "autoscaling.enabled needs a metric: give targetCPUUtilizationPercentage, targetRequestsPerSecond, targetRequests or metrics." -}}
{{- end -}}
{{- if and $v.autoscaling.enabled $v.autoscaling.targetRequests (not $v.metricsAPI.enabled) -}}
{{- fail "autoscaling.targetRequests is a metric that only heads serve: set metricsAPI.enabled=true." -}}
{{- end -}}
{{- if and $v.autoscaling.enabled $v.autoscaling.targetCPUUtilizationPercentage (not (dig "requests" "cpu" "" $v.node.resources)) -}}
{{- fail "autoscaling.targetCPUUtilizationPercentage is a part of node.resources.requests.cpu: give that, or null for the target." -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled $v.podMonitor.enabled -}}
{{- fail "serviceMonitor and podMonitor are both enabled: each head would be counted twice; choose one." -}}
{{- end -}}
{{- if and (gt (int $v.head.replicas) 1) (ge (mul 2 (int $v.head.maxUnavailable)) (int $v.head.replicas)) -}}
{{- fail (printf "head.maxUnavailable=%d of %d heads would leave no majority: give at most %d." (int $v.head.maxUnavailable) (int $v.head.replicas) (div (sub (int $v.head.replicas) 1) 2)) -}}
{{- end -}}
{{- if eq (int $v.api.port) (int $v.metrics.port) -}}
{{- fail (printf "api.port and metrics.port are both %d: /metrics is on the API's port too, but its second port must be another." (int $v.api.port)) -}}
{{- end -}}
{{- if and $v.metricsAPI.enabled (has (int $v.metricsAPI.port) (list (int $v.api.port) (int $v.metrics.port))) -}}
{{- fail (printf "metricsAPI.port=%d is taken by api.port or metrics.port: choose another." (int $v.metricsAPI.port)) -}}
{{- end -}}
{{- range $port := list (int $v.api.port) (int $v.metrics.port) (int $v.metricsAPI.port) -}}
{{- if has $port (list 7946 7947 7948) -}}
{{- fail (printf "port %d is taken by the members' own traffic (7946 gossip, 7947 raft, 7948 NATS): choose another." $port) -}}
{{- end -}}
{{- end -}}
{{- if and $v.apiKeys.existingSecret $v.apiKeys.keys -}}
{{- fail "apiKeys.keys and apiKeys.existingSecret are both given: put the keys into your Secret, a line each." -}}
{{- end -}}
{{- if and $v.clusterSecret.existingSecret $v.clusterSecret.lines -}}
{{- fail "clusterSecret.lines and clusterSecret.existingSecret are both given: put the lines into your Secret." -}}
{{- end -}}
{{- if and $v.namespace.create (not (or $v.clusterSecret.existingSecret $v.clusterSecret.lines)) -}}
{{- fail "namespace.create is for plain manifests, which can't draw a secret once: make one and give clusterSecret.existingSecret its name." -}}
{{- end -}}
{{- if and $v.namespace.create $v.apiKeys.enabled (not (or $v.apiKeys.existingSecret $v.apiKeys.keys)) -}}
{{- fail "namespace.create is for plain manifests, which can't draw an API key once: give apiKeys.existingSecret, or apiKeys.enabled=false to go without keys." -}}
{{- end -}}
{{- end -}}
