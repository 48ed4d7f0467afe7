"""The state directory, judged: can it be written, is there room, is the file system fit for a journal, who
holds the lease, is the journal whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn
from orchestrator.doctor.machine import Room

# WAL needs memory that all processes share, and locks that hold: neither is sure over a network.
_REMOTE: Final = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.ceph-fuse",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
    }
)
_PASSING: Final = {"tmpfs": "at the next boot", "ramfs": "at the next boot", "overlay": "with the container"}
_ALARM: Final = 64 * 2**20  # bytes below which the journal may soon not be written
_FEW_FILES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFacts:
    """The lease's file. `holder` is the pid that has it locked: 0 for nobody, None when it is not known."""

    exists: bool
    who: str = ""
    epoch: int = 0
    holder: int | None = 0


def directory(path: Path, room: Room | None, *, exists: bool, writable: bool, journal_size: int) -> Findings:
    """The directory and its room. `room` is None when neither it nor its parent is there; otherwise room and
    `writable` are those of the parent while it does not exist. `journal_size` is what the journal may grow
    to, in bytes."""
    if room is None:
        return [fail(f"{path} cannot be made: its parent is not there", f"mkdir -p {path.parent}")]
    if room.read_only:
        return [fail(f"{path} is on a file system mounted read-only", "mount it to be written, or move it")]
    if not writable:
        advice = "run this as the daemon's user, change its owner, or set daemon.state_dir"
        return [fail(f"{path} cannot be written by this user", advice)]
    left = f"{_rounded(room.bytes)} free"
    if room.bytes < _ALARM or room.files < _FEW_FILES:
        text = f"{path} has {left} and room for {room.files} files: the journal may soon not be written"
        return [fail(text, "free some space")]
    if room.bytes < journal_size + _ALARM:
        text = f"{path} has {left}, less than the journal may take ({_rounded(journal_size)})"
        return [warn(text, "free some space, or lower daemon.keep_turns_size")]
    return [ok(f"{path} {'can be written' if exists else 'will be made'}, {left}")]


def file_system(path: Path, kind: str) -> Findings:
    """Whether a journal in WAL mode is safe there, and lasts."""
    if not kind:
        return [skipped(f"the file system of {path} is not known")]
    if kind in _REMOTE:
        return [
            fail(
                f"{path} is on {kind}: a journal can be corrupted there, and two daemons hold one lease",
                "set daemon.state_dir to a directory on a local disk",
            )
        ]
    if kind in _PASSING:
        text = f"{path} is on {kind}: the journal is lost {_PASSING[kind]}, and the daemon starts from what "
        return [warn(f"{text}the cloud shows", "set daemon.state_dir to a directory that lasts")]
    return [ok(f"{path} is on {kind}")]


def lease(found: LeaseFacts) -> Findings:
    """Who may act."""
    if not found.exists:
        return [ok("no daemon has taken the lease yet")]
    if found.holder is None:
        return [skipped(f"whether {found.who} still holds the lease is not known")]
    if found.holder:
        return [ok(f"held by {found.who}, epoch {found.epoch}")]
    return [ok(f"free; {found.who} held it last")]


def journal(exists: bool, fault: str, corrupt: bool, schema: int, newest: int) -> Findings:
    """The journal, by SQLite's own check on a connection that cannot write. `fault` is empty when it is
    whole. `schema` is the version of the file, `newest` the one that this version writes."""
    if not exists:
        return [ok("there is no journal yet")]
    if fault:
        return [_faulty(fault, corrupt)]
    if schema < newest:
        return [ok(f"whole; of schema {schema}, brought to {newest} when the daemon starts")]
    return [ok(f"whole; of schema {schema}")]


def _faulty(fault: str, corrupt: bool) -> Finding:
    if corrupt:
        advice = (
            "keep a copy, then restart the daemon: it sets the file aside and starts from what the cloud "
        )
        return fail(fault, f"{advice}shows")
    return fail(fault, "fix what it says; the daemon would not start")


def _rounded(count: int) -> str:
    """Bytes to three digits."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1024:.3g} KiB"
