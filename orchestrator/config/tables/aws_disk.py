"""The [pool.NAME.cloud.aws.disk] table: the volumes of a node."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cloud.aws.disks import WANTED_THROUGHPUT, Disk, gp3_iops
from orchestrator.config.types import Section


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
        "daemon's role and EC2's role for spot need grants for it: `orchestrator aws policy --kms ARN` "
        "prints them. Empty: the account's default key.",
        examples=["arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"],
    )
    local: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: the instance type's own NVMe disks, striped, hold what a node downloads, at "
        "/mnt/orchestrator, unless standby.stopped keeps machines: a stop empties these disks. off: they "
        "are left alone.",
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
