#!/usr/bin/env bash
# Runs OpenAI's Python package against the server at MANTA_URL, in a virtual
# environment that is made on the first run (SDK_VENV).
set -euo pipefail
cd "$(dirname "$0")"
: "${MANTA_URL:?the address of a Manta server}"
venv=${SDK_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/manta/sdk-venv}
if ! "$venv/bin/python" -c 'import openai' 2>/dev/null; then
	python3 -m venv "$venv"
	"$venv/bin/pip" --quiet --disable-pip-version-check install 'openai>=2,<3'
fi
exec "$venv/bin/python" test_openai.py
