#!/usr/bin/env bash
# Installs llama.cpp's server into its own environment and makes the tiny models. Safe to run again: a finished
# installation is recognised and left alone, an outdated one is made anew.
#
#   tools/llamacpp/install.sh        .venv-llamacpp/bin/llama-server, model in .cache/tiny-model.gguf,
#                                    and beside it tiny-ranker.gguf, which scores texts
#
# Environment variables:
#   LLAMACPP_VENV    where the environment goes               (default: .venv-llamacpp in the repository)
#   LLAMACPP_MODEL   where the tiny model goes                (default: .cache/tiny-model.gguf)
#   PYTHON           the interpreter to build it from         (default: python3)
# Exit code: 0 installed (or already there), 1 failed: pip said why.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${LLAMACPP_VENV:-$root/.venv-llamacpp}
model=${LLAMACPP_MODEL:-$root/.cache/tiny-model.gguf}
program=$venv/bin/llama-server

digest() { cat "$@" | sha256sum | cut -d' ' -f1; }
say() { printf 'llamacpp-env: %s\n' "$*"; }

recipe=$(digest "$here/requirements.lock" "$here/install.sh")
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$recipe" ]; then
    say "installing llama.cpp into $venv (about 100 MB)"
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$here/requirements.lock"
    printf '%s\n' "$recipe" >"$venv/.installed"
fi

# A file of its own name, as on machines with llama.cpp itself; replaced whole, since others may start it now.
{ printf '#!%s\n' "$venv/bin/python" && cat "$here/llama_server.py"; } >"$program.$$"
chmod +x "$program.$$"
mv "$program.$$" "$program"
"$program" --help >/dev/null

# Which recipe a model was made by stands beside it.
made=$(digest "$here/make_tiny_model.py")
make_model() {
    if [ ! -f "$1" ] || [ "$(cat "$1.made-by" 2>/dev/null)" != "$made" ]; then
        "$venv/bin/python" "$here/make_tiny_model.py" "$@"
        printf '%s\n' "$made" >"$1.made-by"
    fi
}
make_model "$model"
make_model "$(dirname "$model")/tiny-ranker.gguf" --reranker
say "$program and $model are ready"
