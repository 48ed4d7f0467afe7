"""The disks of a node: what the user wants of them, and the block device mappings that say so to EC2. Pure.

Every EBS volume of the image goes away with its machine: a spot pool that left one behind at each reclaim
would pay for disks that nobody looks at. The root volume gets the size and speed that are wanted, every
volume the encryption, and every volume from a snapshot the rate at which its blocks come from S3.

Source of shapes, ranges and what goes with what: the EC2 API reference (EbsBlockDevice,
LaunchTemplateEbsBlockDeviceRequest, Image) and the EBS user guide ("gp3 volumes", "volume initialization").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

GP3_THROUGHPUT: Final = 125
"""MiB/s of a gp3 volume of which nothing else is said."""

WANTED_THROUGHPUT: Final = 500
"""MiB/s of a gp3 volume that is sized for weights and whose throughput is not written."""

_SIZES: Final = {"gp2": (1, 16_384), "gp3": (1, 65_536), "io1": (4, 16_384), "io2": (4, 65_536)}  # GiB
_IOPS: Final = {"gp3": (3_000, 80_000), "io1": (100, 64_000), "io2": (100, 256_000)}
_IOPS_PER_GIB: Final = {"gp3": 500, "io1": 50, "io2": 1_000}
_THROUGHPUTS: Final = (125, 2_000)  # MiB/s
_IOPS_PER_MIB: Final = 4  # of throughput, for gp3
_RATES: Final = (100, 300)  # MiB/s
_OF_EMPTY: Final = ("VolumeSize", "VolumeType", "Throughput", "Iops")

Fault = tuple[str, str]
"""A key of `Disk`, and what is wrong with it as a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What is wanted of a node's volumes. Nothing is changed of what is empty or 0."""

    size: int = 0  # GiB
    type: str = ""  # gp2, gp3, io1 or io2
    throughput: int = 0  # MiB/s
    iops: int = 0
    initialization_rate: int = 0  # MiB/s
    encrypted: bool = False
    key: str = ""  # a KMS key by id, alias or ARN; it encrypts whatever `encrypted` says

    def root(self) -> dict[str, str | int]:
        """The fields of the root volume that are wanted, as EC2 names them."""
        values: dict[str, str | int] = {
            "VolumeSize": self.size,
            "VolumeType": self.type,
            "Throughput": self.throughput,
            "Iops": self.iops,
        }
        return {name: value for name, value in values.items() if value}

    def faults(self) -> Iterator[Fault]:
        """What EC2 would refuse, as far as it can be known without the image."""
        outside = list(self._out_of_range())
        yield from outside
        if outside:
            return
        if self.throughput and self.type != "gp3":
            yield "throughput", f"belongs to gp3 alone, and type is {self.type}; leave it out"
        if self.iops and self.type == "gp2":
            yield "iops", 'cannot be chosen for gp2; leave it out, or write type = "gp3"'
        if not self.iops and self.type in ("io1", "io2"):
            yield "iops", f"is missing; a volume of type {self.type} has none by itself"
        if self.type == "gp3" and self.iops and self.throughput > self.iops / _IOPS_PER_MIB:
            needed = self.throughput * _IOPS_PER_MIB
            yield "iops", f"{self.iops} carry {self.iops // _IOPS_PER_MIB} MiB/s; write {needed} or more"
        most = self.size * _IOPS_PER_GIB.get(self.type, 0)
        if self.size and self.iops > max(most, _IOPS.get(self.type, (0, 0))[0]):
            yield "iops", f"{self.iops} are too many for {self.size} GiB of {self.type}, which take {most}"

    def _out_of_range(self) -> Iterator[Fault]:
        ranges = (
            ("size", self.size, _SIZES.get(self.type), "GiB"),
            ("throughput", self.throughput, _THROUGHPUTS, "MiB/s"),
            ("iops", self.iops, _IOPS.get(self.type), "IOPS"),
            ("initialization_rate", self.initialization_rate, _RATES, "MiB/s"),
        )
        for name, value, within, unit in ranges:
            if value and within is not None and not within[0] <= value <= within[1]:
                yield name, f"{value} lies outside of {within[0]} to {within[1]} {unit}"


def gp3_iops(throughput: int) -> int:
    """The IOPS that a gp3 volume needs for a throughput; 0 where those that it has suffice."""
    needed = throughput * _IOPS_PER_MIB
    return needed if needed > _IOPS["gp3"][0] else 0


def devices(image: Mapping[str, Any]) -> frozenset[str]:
    """The names of an image's EBS devices, as DescribeImages tells them."""
    return frozenset(mapping["DeviceName"] for mapping in _ebs_of(image))


def mappings(image: Mapping[str, Any], disk: Disk) -> list[dict[str, Any]]:
    """The block device mappings of a launch template for an image: each holds what is wanted of its volume.
    What it does not say of a volume is taken from the image's own mapping."""
    made = []
    for mapping in _ebs_of(image):
        given, name = mapping["Ebs"], mapping["DeviceName"]
        ebs: dict[str, Any] = {"DeleteOnTermination": True}
        if "SnapshotId" not in given:  # an empty volume has nothing that could tell its size
            ebs |= {field: given[field] for field in _OF_EMPTY if field in given}
        elif disk.initialization_rate:
            ebs["VolumeInitializationRate"] = disk.initialization_rate
        if name == image.get("RootDeviceName"):
            ebs |= disk.root()
        if disk.encrypted:
            ebs["Encrypted"] = True
        if disk.key:
            ebs["KmsKeyId"] = disk.key
        made.append({"DeviceName": name, "Ebs": ebs})
    return made


def misfit(image: Mapping[str, Any], disk: Disk) -> str:
    """Why an image cannot have such a root volume, as a sentence; empty when it can."""
    root = next((m["Ebs"] for m in _ebs_of(image) if m["DeviceName"] == image.get("RootDeviceName")), None)
    if root is None:
        return "its root device is no EBS volume, so disk cannot say how it is" if disk.root() else ""
    least = int(root.get("VolumeSize", 0))
    if 0 < disk.size < least:
        return f"its root volume has {least} GiB, and disk.size = {disk.size}; write {least} or more"
    return ""


def _ebs_of(image: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [mapping for mapping in image.get("BlockDeviceMappings", ()) if "Ebs" in mapping]
