"""Mounts a machine's local NVMe disks (instance store) at /mnt/orchestrator, before the engine starts.

Runs as root at every boot of an EC2 node. Standard library and its neighbours `cloud.node_*` only, Python
3.9 or newer, so that user-data can carry it.

A disk is formatted only when everything says that it is a blank one of the instance store: its name in
/dev/disk/by-id, its model, lsblk, wipefs and blkid. A tool that is missing, fails or says something else
counts as "not blank", and what is not blank is left alone. EBS volumes are never looked at. What the image
itself mounted from the instance store (as the Deep Learning AMIs do) is used as it is. Several disks are
striped where mdadm is installed; else the largest serves.

The instance store is empty after a stop, so all of this happens again at the next start.
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import glob
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cloud.node_boot import BOOT_FILE, Boot
from cloud.node_checks import LOCAL_DISK

LABEL = "orchestrator"
USER = "orchestrator-engine"
ARRAY = "/dev/md/orchestrator"
ARRAY_LABEL = "any:orchestrator"  # home host and name, as mdadm writes them
BY_ID = "/dev/disk/by-id/nvme-Amazon_EC2_NVMe_Instance_Storage_*"
MODEL = "Amazon EC2 NVMe Instance Storage"
COLUMNS = "NAME,PATH,TYPE,FSTYPE,LABEL,MOUNTPOINT,MODEL,RO,SIZE"


class Disk(NamedTuple):
    """What is known of one disk of the instance store; None for what could not be found out.

    `tree`: its entry of lsblk with what lies on it; `signatures`: how many wipefs finds; `probed`: the exit
    status of blkid's own look, 2 for nothing found.
    """

    path: str
    tree: Mapping[str, Any] | None
    signatures: int | None
    probed: int | None


class Plan(NamedTuple):
    """What to do, with which devices, and why, in words. `ok` is False where something could not be used."""

    action: str  # "none", "kept", "use", "mount", "assemble", "format", "stripe"
    devices: tuple[str, ...]
    text: str
    ok: bool = True


def plan(disks: Sequence[Disk], striping: bool) -> Plan:
    """What to do with the disks of the instance store. Pure. `striping`: whether mdadm is there."""
    if not disks:
        return Plan("none", (), "this machine has no local disk; downloads go to the root volume")
    parts = [part for disk in disks for part in _within(disk.tree)]
    mounted = [part for part in parts if part.get("mountpoint")]
    if any(part["mountpoint"] == LOCAL_DISK for part in mounted):
        return Plan("kept", (), f"{LOCAL_DISK} is mounted")
    usable = [part for part in mounted if _is_for_data(str(part["mountpoint"]))]
    if usable:
        best = max(usable, key=lambda part: (_size(part), str(part["mountpoint"])))
        return Plan("use", (str(best["mountpoint"]),), f"{best['mountpoint']}, as the image mounted it")
    ours = [str(part["path"]) for part in parts if _is_ours(part)]
    if ours:
        return Plan("mount", (ours[0],), f"{ours[0]}, as it was before the reboot")
    members = tuple(disk.path for disk in disks if _is_member(disk.tree))
    if members:
        return Plan("assemble", members, f"the stripe over {_listed(members)}, as it was before the reboot")
    blank = sorted((disk for disk in disks if is_blank(disk)), key=lambda d: (-_size(d.tree or {}), d.path))
    if not blank:
        return Plan("none", (), f"left alone: {'; '.join(map(why_not, disks))}", ok=False)
    if len(blank) > 1 and striping:
        paths = tuple(sorted(disk.path for disk in blank))
        return Plan("stripe", paths, f"a stripe over {_listed(paths)}")
    more = f", without {len(blank) - 1} more: mdadm is not installed" if len(blank) > 1 else ""
    return Plan("format", (blank[0].path,), f"{blank[0].path}{more}", ok=not more)


def is_blank(disk: Disk) -> bool:
    """Whether everything says that it is a disk of the instance store that holds nothing."""
    return why_not(disk) == ""


def why_not(disk: Disk) -> str:
    """What keeps a disk from being taken as blank; empty for nothing."""
    tree, said = disk.tree, ""
    if tree is None:
        said = "lsblk does not list it"
    elif str(tree.get("model") or "").strip() != MODEL or tree.get("type") != "disk":
        said = f"it is {tree.get('type')} {tree.get('model')!r} and no disk of the instance store"
    elif tree.get("children"):
        said = "something lies on it"
    elif tree.get("fstype") or tree.get("label") or tree.get("mountpoint"):
        said = f"it holds {tree.get('fstype') or tree.get('label') or tree.get('mountpoint')}"
    elif _flag(tree.get("ro")) is not False or _size(tree) <= 0:
        said = "it cannot be written"
    elif disk.signatures is None:
        said = "wipefs does not say that it is empty"
    elif disk.signatures:
        said = "wipefs finds signatures"
    elif disk.probed != 2:
        said = "blkid does not say that it is empty"
    return f"{disk.path}: {said}" if said else ""


def _within(tree: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if tree is not None:
        yield tree
        for child in tree.get("children") or ():
            yield from _within(child)


def _is_ours(part: Mapping[str, Any]) -> bool:
    return part.get("label") == LABEL and part.get("fstype") == "ext4" and not part.get("children")


def _is_member(tree: Mapping[str, Any] | None) -> bool:
    """Whether it belongs to a stripe of ours that is not assembled."""
    return (
        tree is not None
        and str(tree.get("model") or "").strip() == MODEL
        and tree.get("fstype") == "linux_raid_member"
        and tree.get("label") == ARRAY_LABEL
        and not tree.get("children")
    )


def _is_for_data(mountpoint: str) -> bool:
    """Whether a file system there is for data, and not the system's own or swap."""
    top = mountpoint.strip("/").partition("/")[0]
    return mountpoint.startswith("/") and top in ("opt", "mnt", "data", "scratch")


def _flag(value: Any) -> bool | None:
    return {True: True, False: False, "1": True, "0": False}.get(value)


def _size(part: Mapping[str, Any]) -> int:
    size = part.get("size")
    return int(size) if isinstance(size, (int, str)) and str(size).isdecimal() else 0


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths)


# -- looking and doing -------------------------------------------------------------------------------------


def found() -> list[Disk]:
    """The disks of the instance store. Looks only."""
    links = (link for link in glob.glob(BY_ID) if not re.search(r"-part\d+$", link))
    return [examine(path) for path in sorted({os.path.realpath(link) for link in links})]


def examine(path: str) -> Disk:
    """What lsblk, wipefs and blkid say of one device."""
    listed, signed = _json("lsblk", "-J", "-b", "-o", COLUMNS, path), _json("wipefs", "-n", "-J", path)
    devices, signatures = (listed or {}).get("blockdevices"), (signed or {}).get("signatures")
    return Disk(
        path,
        devices[0] if isinstance(devices, list) and len(devices) == 1 else None,
        len(signatures) if isinstance(signatures, list) else None,
        _run("blkid", "-p", path)[0],
    )


def carry_out(made: Plan, user: str = USER, where: str = LOCAL_DISK) -> None:
    """Do what a plan says. Raises OSError with what a command said."""
    if made.action in ("none", "kept"):
        return
    os.makedirs(where, exist_ok=True)
    if made.action == "use":
        inner = f"{made.devices[0]}/orchestrator"
        os.makedirs(inner, exist_ok=True)
        _must("mount", "--bind", inner, where)
    else:
        device = made.devices[0]
        if made.action in ("format", "stripe"):
            changed = [why for why in map(why_not, map(examine, made.devices)) if why]
            if changed:
                raise OSError(f"not formatted after all: {'; '.join(changed)}")
        if made.action == "stripe":
            create = ("--create", ARRAY, "--run", "--level=0", "--homehost=any", f"--name={LABEL}")
            _must("mdadm", *create, f"--raid-devices={len(made.devices)}", *made.devices)
            device = ARRAY
        if made.action == "assemble":
            _must("mdadm", "--assemble", ARRAY, *made.devices)
            device = ARRAY
        if made.action in ("format", "stripe"):
            _must("mkfs.ext4", "-q", "-L", LABEL, "-m", "0", "-E", "nodiscard", device)
        _must("mount", "-t", "ext4", "-o", "noatime,nodev,nosuid", device, where)
    owner = pwd.getpwnam(user)
    os.chown(where, owner.pw_uid, owner.pw_gid)


def _run(*words: str) -> tuple[int | None, str]:
    """Exit status and output of a command, None when it cannot be run or hangs."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def _must(*words: str) -> None:
    status, output = _run(*words)
    if status != 0:
        raise OSError(f"{' '.join(words[:2])}: status {status}: {' '.join(output.split())[-200:]}")


def _json(*words: str) -> dict[str, Any] | None:
    status, output = _run(*words)
    try:
        read = json.loads(output) if status == 0 else None
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def main() -> int:
    """Mount the local disks. Never fails the boot."""
    os.makedirs(os.path.dirname(BOOT_FILE), exist_ok=True)
    boot, made = Boot(BOOT_FILE, "node-disks"), plan(found(), shutil.which("mdadm") is not None)
    boot.stage("disks", made.text, ok=made.ok)
    try:
        carry_out(made)
        boot.check("local-disk", made.ok, made.text)
    except (OSError, KeyError) as error:
        boot.check("local-disk", False, f"{error}; downloads go to the root volume")
    return 0


if __name__ == "__main__":
    sys.exit(main())
