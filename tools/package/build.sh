#!/usr/bin/env bash
# Makes the tree of an installation, and a Debian package from it.
#
#   tools/package/build.sh tree DIR    everything below DIR as it stands on a control host: the program in an
#                                      environment of its own under /opt/spot-orchestrator, units, example
#   tools/package/build.sh deb DIR     the same as DIR/spot-orchestrator_VERSION_ARCHITECTURE.deb
#
# Environment variables:
#   PACKAGE_PYTHON   the interpreter that the program will run on; it must belong to the system, since services
#                    see no home directory                     (default: /usr/bin/python3)
#   PACKAGE_EXTRAS   extras of the project to put in, such as "simulate"            (default: none)
# What is installed is what requirements.lock pins, by hash. Nothing on this machine is changed besides DIR.
# Exit code: 0 made, 1 failed: the last line says why, 2 usage.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PACKAGE_PYTHON:-/usr/bin/python3}
prefix=/opt/spot-orchestrator
bin=$root/.venv/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() { echo "build.sh: $*" >&2; exit 1; }

[[ $# == 2 && ($1 == tree || $1 == deb) ]] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
[[ -x $bin/pip ]] || fail "$bin/pip is not there; run make setup first"
[[ -x $python ]] || fail "$python is not there; on Debian: apt-get install python3"
short=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is $short, older than Python 3.11"
version=$("$bin/python" -c 'import tomllib; print(tomllib.load(open("'"$root"'/pyproject.toml", "rb"))["project"]["version"])')
SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2>/dev/null || stat -c %Y "$root/pyproject.toml")
export SOURCE_DATE_EPOCH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_WARN_SCRIPT_LOCATION=1

make_environment() { # TREE
    local home=$1$prefix
    "$python" -m venv --without-pip "$home"
    # shellcheck disable=SC2086 - a list of extras
    "$bin/python" "$root/tools/package/runtime_lock.py" --python-version "$short" ${PACKAGE_EXTRAS:-} >"$work/runtime.lock"
    "$bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" "$root"
    "$bin/pip" --python "$home/bin/python" install --quiet --no-compile --only-binary :all: --no-deps \
        --require-hashes --requirement "$work/runtime.lock"
    "$bin/pip" --python "$home/bin/python" install --quiet --no-compile --no-deps --no-index \
        --find-links "$work" "spot-orchestrator==$version"
    find "$home/bin" -mindepth 1 ! -name 'python*' ! -name orchestrator -delete
    sed -i "1s|.*|#!$prefix/bin/python|" "$home/bin/orchestrator"
    sed -i '/^command = /d' "$home/pyvenv.cfg"
    # compiled here, since no service may write there
    "$home/bin/python" -m compileall -q -j 2 --invalidation-mode unchecked-hash -s "$1" -p / "$home/lib"
}

make_tree() { # TREE
    local tree=$1
    rm -rf "$tree"
    umask 022
    mkdir -p "$tree$prefix" "$tree"/usr/{bin,lib/sysusers.d,lib/tmpfiles.d,lib/systemd/system} \
        "$tree"/{etc/spot-orchestrator,usr/share/doc/spot-orchestrator,usr/share/man/man1}
    make_environment "$tree"
    ln -s "$prefix/bin/orchestrator" "$tree/usr/bin/orchestrator"
    install -m 644 "$root"/systemd/system/* "$tree/usr/lib/systemd/system/"
    install -m 644 "$root/systemd/sysusers.d/spot-orchestrator.conf" "$tree/usr/lib/sysusers.d/"
    install -m 644 "$root/systemd/tmpfiles.d/spot-orchestrator.conf" "$tree/usr/lib/tmpfiles.d/"
    install -m 644 "$root/systemd/pool.toml" "$tree/etc/spot-orchestrator/"
    install -m 644 "$root/systemd/README.md" "$tree/usr/share/doc/spot-orchestrator/systemd.md"
    install -m 644 "$root/docs/reference/config.md" "$root/docs/reference/cli.md" "$root/CHANGELOG.md" \
        "$tree/usr/share/doc/spot-orchestrator/"
    # what makes the environment of SkyPilot's helper, where it is wanted
    mkdir -p "$tree/usr/share/spot-orchestrator/skypilot"
    install -m 755 "$root/tools/skypilot/install.sh" "$tree/usr/share/spot-orchestrator/skypilot/"
    install -m 644 "$root/skypilot.lock" "$tree/usr/share/spot-orchestrator/skypilot/"
    "$bin/python" "$root/tools/package/sbom.py" "$work/runtime.lock" >"$tree/usr/share/doc/spot-orchestrator/sbom.cdx.json"
    gzip -9nc "$root/docs/man/orchestrator.1" >"$tree/usr/share/man/man1/orchestrator.1.gz"
    install -m 644 "$root/LICENSE" "$tree/usr/share/doc/spot-orchestrator/copyright"
    find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

make_deb() { # DIR
    local tree=$work/tree architecture
    architecture=$(dpkg --print-architecture)
    make_tree "$tree"
    mkdir "$tree/DEBIAN"
    install -m 755 "$root"/tools/package/debian/{postinst,prerm,postrm} "$tree/DEBIAN/"
    echo /etc/spot-orchestrator/pool.toml >"$tree/DEBIAN/conffiles"
    sed -e "s/@VERSION@/$version/; s/@ARCHITECTURE@/$architecture/; s/@PYTHON@/python$short/" \
        -e "s/@SIZE@/$(du -sk --exclude=DEBIAN "$tree" | cut -f1)/" \
        "$root/tools/package/debian/control" >"$tree/DEBIAN/control"
    mkdir -p "$1"
    dpkg-deb --root-owner-group -Zgzip --build "$tree" "$1/spot-orchestrator_${version}_$architecture.deb"
}

case $1 in
    tree) make_tree "$(realpath -m "$2")" ;;
    deb) make_deb "$(realpath -m "$2")" ;;
esac
