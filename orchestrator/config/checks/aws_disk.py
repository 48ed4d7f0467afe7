"""What EC2 would refuse of a pool's disks, and whether weights come from them in time."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Iterator
from typing import Final

from cloud.aws.disks import GP3_THROUGHPUT
from orchestrator.config.checks.engine import stored_weights
from orchestrator.config.tables.aws_disk import DiskTable
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import format_duration, shown
from policies.boot_time import HUGGING_FACE, LOCAL_NVME, S3, Boot, Link

WEIGHTS: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[!-~]*)?|/[!-~]*")
_KEY: Final = re.compile(
    r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:(key/[A-Za-z0-9-]+|alias/[\w/-]+)"
    r"|alias/[\w/-]+|(mrk-)?[0-9a-f-]{32,36}"
)
_ROOT: Final = "the root volume"
_NVME_MOUNT: Final = "/mnt/orchestrator/"
_SYSTEM: Final = 30.0  # GiB of system, driver, engine and its caches, as the deep learning images have them
_SPARE: Final = 1.2  # times the sum, for a time-out that is proposed

Found = tuple[tuple[str, ...], str]  # key path, sentence


def disk_errors(at: tuple[str, ...], disk: DiskTable, regions: Iterable[str]) -> Iterator[Found]:
    """What EC2 would refuse in these regions."""
    for name, text in disk.as_disk().faults():
        yield (*at, name), text
    if disk.kms_key and not _KEY.fullmatch(disk.kms_key):
        yield (
            (*at, "kms_key"),
            f"{shown(disk.kms_key)} is not a KMS key; write its ARN, its id or alias/NAME",
        )
    home = disk.kms_key.split(":")[3] if _KEY.fullmatch(disk.kms_key) and ":" in disk.kms_key else ""
    for region in regions:
        if home and region != home:
            yield (
                (*at, "kms_key"),
                f"is a key of {home}, and EC2 takes none of another region in {region}; write the id of a "
                "multi-Region key, or an alias that both regions have",
            )
    if disk.kms_key and not disk.encrypted and "encrypted" in disk.model_fields_set:
        yield (*at, "encrypted"), "is false, and kms_key says what to encrypt with; leave one of them out"


def disk_warnings(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """Weights that are not on the GPU within health.boot_timeout, as far as their size is known."""
    weights = stored_weights(pool)
    if weights is None:
        return
    disk, timeout = pool.cloud.aws.disk.as_disk(), pool.health.boot_timeout
    on_root = _baked(pool) is _Kept.ROOT
    there = on_root or (_baked(pool) is None and not on_local_disk(pool))
    if there and disk.size and disk.size < weights + _SYSTEM:
        yield (
            (*at, "size"),
            f"{disk.size} GiB are hardly enough for weights of {weights:.0f} GiB beside the system, the "
            f"engine and its caches; write size = {math.ceil(max(2.0 * weights, weights + _SYSTEM))} or more",
        )
    boot = Boot(weights=weights, links=_links(pool))
    if boot.seconds > timeout:
        root = boot.slowest.name == _ROOT
        minutes = math.ceil(boot.seconds * _SPARE / 60.0)
        keys = "throughput, initialization_rate" if on_root else "throughput"
        yield (
            (*at, "throughput") if root else (*at[:2], "health", "boot_timeout"),
            f"{boot.formula}, which is more than health.boot_timeout = {format_duration(timeout)}; "
            f"{f'raise {keys} or ' if root else 'keep the weights nearer (cloud.aws.weights), or '}"
            f'write boot_timeout = "{minutes}m"',
        )
    elif on_root and not disk.initialization_rate:
        yield (
            (*at, "initialization_rate"),
            "is not set, so weights that came with the image are fetched from S3 block by block when they "
            "are first read, often below 50 MiB/s; write 300, or use fast snapshot restore",
        )


def on_local_disk(pool: PoolConfig) -> bool:
    """Whether a node's own NVMe disks take what it downloads.

    A stop empties them. So a pool that keeps stopped machines downloads to the root volume, once for each.
    """
    return pool.cloud.aws.disk.local == "auto" and not pool.standby.stopped


class _Kept(enum.Enum):
    """What of the machine holds weights that came with its image."""

    ROOT = enum.auto()
    NVME = enum.auto()


def _baked(pool: PoolConfig) -> _Kept | None:
    """Where weights lie that are there when the machine starts; None where they are downloaded."""
    path = pool.cloud.aws.weights or pool.model
    if not path.startswith("/"):
        return None
    return _Kept.NVME if f"{path}/".startswith(_NVME_MOUNT) else _Kept.ROOT


def _links(pool: PoolConfig) -> tuple[Link, ...]:
    """What the weights come through on their way to the GPU."""
    disk, kept = pool.cloud.aws.disk.as_disk(), _baked(pool)
    rate = disk.throughput or GP3_THROUGHPUT
    if kept is _Kept.ROOT:
        return (Link(_ROOT, min(rate, disk.initialization_rate or rate)),)
    if kept is _Kept.NVME:
        return (LOCAL_NVME,)
    source = S3 if pool.cloud.aws.weights else HUGGING_FACE
    return source, LOCAL_NVME if on_local_disk(pool) else Link(_ROOT, rate)
