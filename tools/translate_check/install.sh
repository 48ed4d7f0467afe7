#!/usr/bin/env bash
# Installs LiteLLM's proxy, one of the servers of translate-check, into an environment of its own. Safe to run
# again.
#
#   tools/translate_check/install.sh            environment in .venv-litellm (about 700 MB)
#
# Environment variables: LITELLM_VENV (where it goes), PYTHON (the interpreter to build it from).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
venv=${LITELLM_VENV:-$(cd "$here/../.." && pwd)/.venv-litellm}
recipe=$(cat "$here/requirements.lock" "$here/install.sh" | sha256sum | cut -d' ' -f1)

if [ "$(cat "$venv/.installed" 2>/dev/null)" = "$recipe" ]; then
    echo "litellm-env: already installed in $venv"
    exit 0
fi
echo "litellm-env: installing into $venv (minutes)"
rm -rf "$venv"
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$here/requirements.lock"
echo "$recipe" >"$venv/.installed"
