"""The [pool.NAME.cloud.aws.disk] table: the volumes of a node, and whether weights come from them in time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

from pydantic import Field

from cloud.aws.disks import GP3_THROUGHPUT, WANTED_THROUGHPUT, Disk, gp3_iops
from orchestrator.config_types import Section
from orchestrator.units import format_duration, shown
from policies.fit import Need

if TYPE_CHECKING:
    from orchestrator.config import PoolConfig

WEIGHTS: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[!-~]*)?|/[!-~]*")
_KEY: Final = re.compile(
    r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:(key/[A-Za-z0-9-]+|alias/[\w/-]+)"
    r"|alias/[\w/-]+|(mrk-)?[0-9a-f-]{32,36}"
)
_REST_OF_START: Final = 180.0  # s of a boot that no disk decides: the machine, the engine's start, its graphs

Found = tuple[tuple[str, ...], str]  # key path, sentence


class DiskTable(Section):
    """The volumes of a node. `orchestrator aws bootstrap` writes them into the launch template: the root
    volume as it is said here, and every volume of the image so that it goes away with its node."""

    size: int = Field(
        default=0,
        ge=0,
        description="GiB of the root volume. 0: as large as the image says. Twice the size of the weights is "
        "a good rule where they are downloaded to it.",
        examples=[200],
    )
    type: Literal["gp2", "gp3", "io1", "io2"] = Field(
        default="gp3",
        description="Type of the root volume. With no other key of the table about that volume, and where "
        "this one is not written either, the image decides.",
    )
    throughput: int = Field(
        default=0,
        ge=0,
        description="MiB/s of the root volume, 125 to 2000, for gp3. 0: 500 where size is written, else what "
        "the image says; a gp3 volume has 125 by itself.",
        examples=[750],
    )
    iops: int = Field(
        default=0,
        ge=0,
        description="I/O operations a second of the root volume. 0: as many as throughput needs, for gp3.",
        examples=[3000],
    )
    initialization_rate: int = Field(
        default=0,
        ge=0,
        description="MiB/s, 100 to 300, at which the blocks of the image's snapshots are fetched when a "
        "volume is made; AWS bills it by GiB. 0: they are fetched when they are first read, which is slow.",
        examples=[300],
    )
    encrypted: bool = Field(
        default=False,
        description="Whether all volumes are encrypted. false: as the image and the account say.",
    )
    kms_key: str = Field(
        default="",
        description="KMS key of your own that all volumes are encrypted with, by ARN, id or alias. The "
        "daemon's role and EC2's role for spot need grants for it: `orchestrator aws policy --kms` prints "
        "them. Empty: the account's default key.",
        examples=["arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"],
    )
    local: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: the instance type's own NVMe disks, striped, hold weights and caches, at "
        "/mnt/orchestrator. off: they are left alone.",
    )

    @property
    def says(self) -> bool:
        """Whether anything is said of the root volume."""
        return bool(self.size or self.throughput or self.iops or "type" in self.model_fields_set)

    def as_disk(self) -> Disk:
        """The table as bootstrap takes it, with what follows from its other keys."""
        gp3 = self.says and self.type == "gp3"
        throughput = self.throughput or (WANTED_THROUGHPUT if gp3 and self.size else 0)
        return Disk(
            size=self.size,
            type=self.type if self.says else "",
            throughput=throughput,
            iops=self.iops or (gp3_iops(throughput) if gp3 else 0),
            initialization_rate=self.initialization_rate,
            encrypted=self.encrypted or bool(self.kms_key),
            key=self.kms_key,
        )


def disk_errors(at: tuple[str, ...], disk: DiskTable) -> Iterator[Found]:
    """What EC2 would refuse."""
    for name, text in disk.as_disk().faults():
        yield (*at, name), text
    if disk.kms_key and not _KEY.fullmatch(disk.kms_key):
        yield (
            (*at, "kms_key"),
            f"{shown(disk.kms_key)} is not a KMS key; write its ARN, its id or alias/NAME",
        )
    if disk.kms_key and not disk.encrypted and "encrypted" in disk.model_fields_set:
        yield (*at, "encrypted"), "is false, and kms_key says what to encrypt with; leave one of them out"


def disk_warnings(at: tuple[str, ...], pool: PoolConfig, need: Need | None) -> Iterator[Found]:
    """Weights that cannot be read within health.boot_timeout. `need` is None where their size is not known.

    Counted only where the root volume holds them: at a path outside of the machine's own disks, or with
    these off. The machine's own disks read gigabytes a second.
    """
    aws = pool.cloud.aws
    on_root = aws.weights.startswith("/") and not f"{aws.weights}/".startswith("/mnt/orchestrator/")
    if need is None or not (on_root or aws.disk.local == "off"):
        return
    disk = aws.disk.as_disk()
    rate = disk.throughput or GP3_THROUGHPUT
    if on_root and disk.initialization_rate:
        rate = min(rate, disk.initialization_rate)
    seconds = need.weights * 1024.0 / rate
    if seconds + _REST_OF_START > pool.health.boot_timeout:
        yield (
            (*at, "throughput"),
            f"{need.weights:.0f} GiB of weights / {rate} MiB/s = {format_duration(round(seconds))}, and with "
            f"{format_duration(_REST_OF_START)} for the rest of a start that is more than "
            f"health.boot_timeout = {format_duration(pool.health.boot_timeout)}; raise throughput"
            f"{', initialization_rate' if on_root else ''} or boot_timeout",
        )
    elif on_root and not disk.initialization_rate:
        yield (
            (*at, "initialization_rate"),
            "is not set, so weights that came with the image are fetched from S3 block by block when they "
            "are first read, often below 50 MiB/s; write 300, or use fast snapshot restore",
        )
