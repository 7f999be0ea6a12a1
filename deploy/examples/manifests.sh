#!/bin/sh
# manifests.sh FOLDER: the examples as plain manifests, rendered from the chart.
set -eu
mkdir -p "$1/llama2-7b" "$1/llama2-70b-tp4" "$1/hpa"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
render() { "${HELM:-helm}" template "$@" --kube-version 1.34.0 --namespace vllm -f examples/plain.yaml 2>/dev/null; }
render vllm-llama2-7b chart -f examples/llama2-7b/values.yaml > "$out/llama2-7b/manifests.yaml"
render vllm-llama2-70b chart -f examples/llama2-70b-tp4/values.yaml > "$out/llama2-70b-tp4/manifests.yaml"
render vllm-llama2-7b chart -f examples/llama2-7b/values.yaml -f examples/hpa/values.yaml \
  -s templates/autoscaler.yaml > "$out/hpa/manifests.yaml"
