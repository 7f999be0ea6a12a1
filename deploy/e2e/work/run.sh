#!/usr/bin/env bash
# Runs Ray's JobSubmissionClient and OpenAI's Python package against the server at
# MANTA_URL, in a virtual environment that is made on the first run (WORK_VENV).
set -euo pipefail
cd "$(dirname "$0")"
: "${MANTA_URL:?the address of a Manta server}" "${MANTA_MODEL:?the model it serves}"
venv=${WORK_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/manta/work-venv}
if ! "$venv/bin/python" -c 'import openai, aiohttp, ray.job_submission' 2>/dev/null; then
	python3 -m venv "$venv"
	"$venv/bin/pip" --quiet --disable-pip-version-check install 'openai>=2,<3' 'ray[default]>=2.40,<3'
fi
exec "$venv/bin/python" test_work.py
