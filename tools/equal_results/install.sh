#!/usr/bin/env bash
# Installs the clients whose results are compared into an environment of their own. Safe to run again.
#
#   tools/equal_results/install.sh            environment in .venv-clients (about 400 MB)
#
# Environment variables: CLIENTS_VENV (where it goes), PYTHON (the interpreter to build it from).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
venv=${CLIENTS_VENV:-$(cd "$here/../.." && pwd)/.venv-clients}
recipe=$(cat "$here/requirements.lock" "$here/install.sh" | sha256sum | cut -d' ' -f1)

if [ "$(cat "$venv/.installed" 2>/dev/null)" = "$recipe" ]; then
    echo "clients-env: already installed in $venv"
    exit 0
fi
echo "clients-env: installing into $venv (minutes)"
rm -rf "$venv"
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$here/requirements.lock"
echo "$recipe" >"$venv/.installed"
