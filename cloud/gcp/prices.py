"""What a machine of Google costs, by the SKUs of the Cloud Billing catalogue. Pure.

Google sells no machine types but their parts: vCPUs, GiB of memory, GPUs and local disks, each an SKU with a
description for people, a usage type and regions. A machine costs the sum of its parts. Source of
the format: the Cloud Billing Catalog API v1 (services.skus.list of service 6F81-5844-456A); of the
descriptions: those by which SkyPilot 0.14.1 finds prices there (catalog/data_fetchers/fetch_gcp.py, read on
2026-11-30). A part that is not found leaves the price unknown: it is never counted as nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from policies.model import Market

SERVICE: Final = "services/6F81-5844-456A"  # Compute Engine

_USAGE: Final = {"OnDemand": Market.ON_DEMAND, "Preemptible": Market.SPOT}
_OTHER: Final = ("custom", "premium", "reserved", "sole tenancy", "commitment", "dws", "calendar mode")
"""Words of SKUs that are other ways to buy the same part."""
_SERIES: Final = ("A2", "A3", "A4", "C2", "C3", "E2", "G2", "N2")
_CORES: Final = {series.lower(): (f"{series} Instance Core",) for series in _SERIES} | {
    "n1": ("N1 Predefined Instance Core",)
}
_MEMORY: Final = {series.lower(): (f"{series} Instance Ram",) for series in _SERIES} | {
    "n1": ("N1 Predefined Instance Ram",)
}
_GPUS: Final[Mapping[str, tuple[str, ...]]] = {
    "nvidia-l4": ("L4 GPU",),
    "nvidia-tesla-t4": ("T4 GPU",),
    "nvidia-tesla-v100": ("V100 GPU",),
    "nvidia-tesla-p100": ("P100 GPU",),
    "nvidia-tesla-a100": ("A100 GPU",),
    "nvidia-a100-80gb": ("A100 80GB GPU",),
    "nvidia-h100-80gb": ("H100 80GB GPU",),
    "nvidia-h100-mega-80gb": ("H100 80GB Mega GPU", "H100 Mega 80GB GPU", "H100 80GB Plus GPU"),
    "nvidia-h200-141gb": ("H200 141GB GPU",),
    "nvidia-b200": ("B200 (1 gpu slice)",),
}
_DISK: Final = ("SSD backed Local Storage",)
_WORDS: Final = tuple(
    {
        word.lower()
        for words in (*_CORES.values(), *_MEMORY.values(), *_GPUS.values(), _DISK)
        for word in words
    }
)
_DISK_GIB: Final = 375.0  # of one local disk
_MONTH: Final = 730.0  # hours, as Google counts


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """One machine type in one zone. `gpus`: accelerator types and how many of each."""

    name: str
    vcpus: int
    memory: float  # GiB
    gpus: Mapping[str, int]
    disks: int  # bundled local disks of 375 GiB


def machine_type(answer: Mapping[str, Any]) -> MachineType:
    """A machine type as machineTypes.get tells it."""
    rows = answer.get("accelerators") or ()
    return MachineType(
        name=str(answer["name"]),
        vcpus=int(answer.get("guestCpus") or 0),
        memory=float(answer.get("memoryMb") or 0) / 1024.0,
        gpus={str(r["guestAcceleratorType"]): int(r["guestAcceleratorCount"]) for r in rows},
        disks=int((answer.get("bundledLocalSsds") or {}).get("partitionCount") or 0),
    )


class Skus:
    """The parts of machines, by what they are called, how they are bought and where."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Market, str], float] = {}

    def add(self, skus: Iterable[Mapping[str, Any]]) -> None:
        """Take in a page of SKUs. Of two for the same part the dearer counts."""
        for sku in skus:
            category, text = sku.get("category") or {}, str(sku.get("description") or "").lower()
            market = _USAGE.get(str(category.get("usageType")))
            if market is None or any(word in text for word in _OTHER):
                continue
            price = _unit_price(sku)
            for word in _WORDS if price else ():
                if word in text:
                    for region in sku.get("serviceRegions") or ():
                        key = (word, market, str(region))
                        self._found[key] = max(price, self._found.get(key, 0.0))

    def price(self, kind: MachineType, market: Market, region: str) -> tuple[float | None, str]:
        """USD/h of a machine, or None and the part whose price is not in the catalogue."""
        series = kind.name.partition("-")[0]
        parts: list[tuple[tuple[str, ...], float]] = [
            (_CORES.get(series, (f"{series} core",)), float(kind.vcpus)),
            (_MEMORY.get(series, (f"{series} ram",)), kind.memory),
            *((_GPUS.get(name, (name,)), float(count)) for name, count in kind.gpus.items()),
        ]
        if kind.disks:
            parts.append((_DISK, kind.disks * _DISK_GIB / _MONTH))
        total = 0.0
        for words, count in parts:
            known = [self._found.get((word.lower(), market, region)) for word in words]
            each = next((price for price in known if price is not None), None)
            if each is None:
                return None, words[0]
            total += each * count
        return (total, "") if total > 0.0 else (None, kind.name)


def _unit_price(sku: Mapping[str, Any]) -> float:
    """USD of one unit by the last tier, above what is free; 0 where the SKU states none."""
    try:
        rates = sku["pricingInfo"][-1]["pricingExpression"]["tieredRates"]
        price = rates[-1]["unitPrice"]
        return int(price.get("units") or 0) + float(price.get("nanos") or 0) / 1e9
    except (KeyError, IndexError, TypeError, ValueError):
        return 0.0
