"""Which GPUs an EC2 instance type has: a table shipped as data, with the day it was read.

The table is `gpu_types.json` beside this file. It holds whole NVIDIA GPUs only; a type that is not in it is
not judged. Memory is per GPU, as EC2 states it; bandwidth is that of one GPU's memory in 10^9 bytes a second.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from policies.fit import Gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One instance type. `memory_gib` is the machine's RAM."""

    name: str
    gpus: Gpus
    bandwidth: float
    vcpus: int
    memory_gib: float
    architecture: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All types, and the day ("2026-11-24") on which the table was read."""

    as_of: str
    types: dict[str, GpuType]


@cache
def catalogue() -> Catalogue:
    """The table, read once."""
    table = json.loads(files(__package__).joinpath("gpu_types.json").read_text(encoding="utf-8"))
    types = [
        GpuType(
            name=row["type"],
            gpus=Gpus(kind=row["gpu"], count=row["gpus"], memory=row["gpu_memory_mib"] / 1024.0),
            bandwidth=float(row["gpu_bandwidth_gb_s"]),
            vcpus=row["vcpus"],
            memory_gib=float(row["memory_gib"]),
            architecture=row["architecture"],
        )
        for row in table["types"]
    ]
    return Catalogue(as_of=table["as_of"], types={kind.name: kind for kind in types})
