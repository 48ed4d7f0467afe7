"""Which instance types EC2 has and which GPUs are in them: tables shipped as data.

`instance_types.txt` holds every name that boto3 knew when this version was made; `tools/instance_types.py`
makes it anew. `gpu_types.json` holds the whole NVIDIA GPUs of types and the day it was read; a type that is
not in it is not judged. Memory is per GPU, as EC2 states it; bandwidth is that of one GPU's memory in 10^9
bytes a second.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from policies.model_fit import Gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One instance type."""

    name: str
    gpus: Gpus
    bandwidth: float
    vcpus: int
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
            gpus=Gpus(
                kind=row["gpu"],
                count=row["gpus"],
                memory=row["gpu_memory_mib"] / 1024.0,
                host=float(row["memory_gib"]),
            ),
            bandwidth=float(row["gpu_bandwidth_gb_s"]),
            vcpus=row["vcpus"],
            architecture=row["architecture"],
        )
        for row in table["types"]
    ]
    return Catalogue(as_of=table["as_of"], types={kind.name: kind for kind in types})


@cache
def instance_types() -> frozenset[str]:
    """The names of all instance types that this version knows."""
    names = files(__package__).joinpath("instance_types.txt").read_text(encoding="utf-8").split()
    return frozenset(names) | frozenset(catalogue().types)
