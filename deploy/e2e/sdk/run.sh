#!/usr/bin/env bash
# Runs OpenAI's Python package and openai-go against a server. With MANTA_URL set
# it asks that server; else it starts the given binary on the default model.
#   deploy/e2e/sdk/run.sh [MANTA_BINARY]
set -euo pipefail
cd "$(dirname "$0")"
venv=${SDK_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/manta/sdk-venv}
if ! "$venv/bin/python" -c 'import openai' 2>/dev/null; then
	python3 -m venv "$venv"
	"$venv/bin/pip" --quiet --disable-pip-version-check install 'openai>=2,<3'
fi
if [ -z "${MANTA_URL:-}" ]; then
	binary=$(realpath "${1:?give the manta binary, or set MANTA_URL}")
	data=$(mktemp -d)
	port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
	"$binary" up --data-dir "$data" --port "$port" --metrics-port 0 >"$data/log" 2>&1 &
	server=$!
	trap 'kill $server 2>/dev/null; wait $server 2>/dev/null; rm -rf "$data"' EXIT
	export MANTA_URL=http://127.0.0.1:$port
	for ((i = 0; i < 600; i++)); do
		if python3 -c "import urllib.request; urllib.request.urlopen('$MANTA_URL/health')" 2>/dev/null; then break; fi
		if ! kill -0 $server 2>/dev/null; then
			cat "$data/log" >&2
			exit 1
		fi
		sleep 0.5
	done
fi
"$venv/bin/python" test_openai.py
go test -count=1 .
