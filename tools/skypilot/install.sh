#!/usr/bin/env bash
# Installs SkyPilot into an environment of its own, for the helper of `cloud.kind = "skypilot"`. Safe to run
# again: a finished installation is recognised and left alone, an outdated one is made anew.
#
#   tools/skypilot/install.sh [DIR]     environment in DIR (default: .venv-skypilot in the repository; a control
#                                       host has it in /opt/spot-orchestrator-skypilot)
#
# Environment variables:
#   PYTHON           the interpreter to build it from         (default: python3)
#   SKYPILOT_LOCK    what is installed, by hash               (default: skypilot.lock)
# Exit code: 0 installed (or already there), 1 failed: pip said why.
set -euo pipefail
umask 022 # the daemon's user reads what root makes here

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${1:-$root/.venv-skypilot}
lock=${SKYPILOT_LOCK:-$root/skypilot.lock}
if [ ! -e "$lock" ] && [ -e "$here/skypilot.lock" ]; then lock=$here/skypilot.lock; fi

say() { printf 'skypilot-env: %s\n' "$*"; }

recipe=$(sha256sum <"$lock" | cut -d' ' -f1)
if [ "$(cat "$venv/.installed" 2>/dev/null)" = "$recipe" ]; then
    say "SkyPilot is already installed in $venv"
    exit 0
fi
say "installing SkyPilot into $venv (about 1 GB, minutes)"
rm -rf "$venv"
"${PYTHON:-python3}" -m venv "$venv"
# The lock is the whole: what depends on what is not asked again.
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$lock"
"$venv/bin/python" -m compileall -q -j 2 "$venv/lib" >/dev/null || true # what no Python can compile is not used
"$venv/bin/python" -c 'import sky.provision' >/dev/null
printf '%s\n' "$recipe" >"$venv/.installed"
say "$venv/bin/python has SkyPilot $("$venv/bin/python" -c 'import sky; print(sky.__version__)' 2>/dev/null)"
