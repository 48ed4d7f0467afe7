#!/usr/bin/env bash
# Installs the daemon and the gateway on this host, or takes them away. Safe to run again: an installation is
# brought to this version, /etc/spot-orchestrator/pool.toml stays as it is. Where Debian packages are wanted,
# use the package instead (make deb).
#
#   tools/package/install.sh [--dry-run] [--root DIR] [--tree DIR]
#   tools/package/install.sh --uninstall [--dry-run] [--root DIR]
#
#   --dry-run     say what would be done and do nothing
#   --root DIR    into a system image below DIR; nothing is started or stopped there
#   --tree DIR    a tree that build.sh made already, instead of a new one
#   --uninstall   stop the services and remove the program; configuration, journal and users stay
# Environment variables: see build.sh. Exit code: 0 done, 1 failed: the last line says why, 2 usage.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
units=(spot-orchestrator.service spot-orchestrator-gateway.service spot-orchestrator-gateway.socket)
config=/etc/spot-orchestrator/pool.toml
dry='' root='' tree='' uninstall=''

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
while (($#)); do
    case $1 in
        --dry-run) dry=1 ;;
        --uninstall) uninstall=1 ;;
        --root) root=$(realpath -m "${2:?}") && shift ;;
        --tree) tree=$(realpath -e "${2:?}") && shift ;;
        *) usage ;;
    esac
    shift
done

run() {
    if [[ $dry ]]; then echo "would run: $*"; else "$@"; fi
}
copy() { tar -C "$1" --owner=0 --group=0 ${keep[@]+"${keep[@]}"} -cf - . | tar -C "$2" --keep-directory-symlink -xpf -; }
live() { [[ -z $root && -d /run/systemd/system ]]; }

if [[ ! $dry && -z $root && $(id -u) != 0 ]]; then
    echo "install.sh: only root can install on this host; use sudo, or --root DIR" >&2
    exit 1
fi

if [[ $uninstall ]]; then
    if live; then run systemctl disable --now "${units[@]}"; fi
    run rm -rf "$root/opt/spot-orchestrator" "$root/usr/bin/orchestrator" "$root/usr/share/doc/spot-orchestrator" \
        "$root/usr/share/spot-orchestrator" \
        "$root/usr/share/man/man1/orchestrator.1.gz" \
        "$root/usr/lib/sysusers.d/spot-orchestrator.conf" "$root/usr/lib/tmpfiles.d/spot-orchestrator.conf" \
        "${units[@]/#/$root/usr/lib/systemd/system/}"
    if live; then run systemctl daemon-reload; fi
    echo "Configuration in $root/etc/spot-orchestrator and journal in $root/var/lib/spot-orchestrator stay."
    exit 0
fi

if [[ -z $tree ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    tree=$work/tree
    run "$here/build.sh" tree "$tree"
fi
keep=()
if [[ -e $root$config ]]; then
    echo "$root$config stays as it is."
    keep=(--exclude ".$config")
fi
run rm -rf "$root/opt/spot-orchestrator"
run mkdir -p "${root:-/}"
run copy "$tree" "${root:-/}"
run systemd-sysusers ${root:+--root="$root"} spot-orchestrator.conf
run systemd-tmpfiles ${root:+--root="$root"} --create spot-orchestrator.conf
if live; then
    run systemctl daemon-reload
    run systemctl try-restart spot-orchestrator.service
    run systemctl try-reload-or-restart spot-orchestrator-gateway.service
fi
echo "Next: edit $root$config, then"
echo "  orchestrator validate $config"
echo "  systemctl enable --now spot-orchestrator-gateway spot-orchestrator"
