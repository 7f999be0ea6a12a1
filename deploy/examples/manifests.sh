#!/bin/sh
# manifests.sh FOLDER: the examples as plain manifests, rendered from the chart.
set -eu
cd "$(dirname "$0")/.."
out=$1
mkdir -p "$out/llama2-7b" "$out/llama2-70b-tp4" "$out/hpa"
render() { "${HELM:-helm}" template "$@" --kube-version 1.34.0 --namespace vllm -f examples/plain.yaml 2>/dev/null; }
render vllm-llama2-7b chart -f examples/llama2-7b/values.yaml > "$out/llama2-7b/manifests.yaml"
render vllm-llama2-70b chart -f examples/llama2-70b-tp4/values.yaml > "$out/llama2-70b-tp4/manifests.yaml"
render vllm-llama2-7b chart -f examples/llama2-7b/values.yaml -f examples/hpa/values.yaml \
  -s templates/autoscaler.yaml > "$out/hpa/manifests.yaml"
