"""Reads GPUs from NVIDIA's DCGM exporter on a node, for pools without node agents.

Source: the exporter's metrics reference (https://docs.nvidia.com/datacenter/dcgm/latest/reference/
dcgm-exporter-metrics.html) and its `default-counters.csv`, up to 4.8; the names and units that DCGM 4.7 and
exporter 4.9 have in their place, by DCGM's field identifiers. What the exporter leaves out by default (ECC,
reasons for slower clocks, pages and rows that wait) must be configured. Not run against a real one:
the tests read expositions that are made from these pages.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import aiohttp

from cloud.errors import CloudError
from cloud.ports import Clock
from policies.gpu_readings import MOST_XIDS, GpuReading, NodeGpus, Xid

MOST_BYTES: Final = 1024 * 1024
"""Bytes of one exposition."""
MOST_GPUS: Final = 32

_MIB: Final = 1024.0 * 1024.0
_NUMBERS: Final[Mapping[str, tuple[str, float]]] = {
    "DCGM_FI_DEV_GPU_UTIL": ("utilisation_percent", 1.0),
    "DCGM_FI_DEV_GPU_UTIL_RATIO": ("utilisation_percent", 100.0),
    "DCGM_FI_DEV_FB_USED": ("memory_used_mib", 1.0),
    "DCGM_FI_DEV_FB_USED_BYTES": ("memory_used_mib", 1.0 / _MIB),
    "DCGM_FI_DEV_FB_TOTAL": ("memory_total_mib", 1.0),
    "DCGM_FI_DEV_FB_CAPACITY_BYTES": ("memory_total_mib", 1.0 / _MIB),
    "DCGM_FI_DEV_GPU_TEMP": ("temperature_c", 1.0),
    "DCGM_FI_DEV_GPU_TEMP_CELSIUS": ("temperature_c", 1.0),
    "DCGM_FI_DEV_POWER_USAGE": ("power_w", 1.0),
    "DCGM_FI_DEV_BOARD_POWER_WATTS": ("power_w", 1.0),
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": ("power_limit_w", 1.0),
    "DCGM_FI_DEV_SM_CLOCK": ("sm_clock_mhz", 1.0),
    "DCGM_FI_DEV_SM_CLOCK_HERTZ": ("sm_clock_mhz", 1e-6),
    "DCGM_FI_DEV_MAX_SM_CLOCK": ("sm_clock_most_mhz", 1.0),
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": ("throttle_reasons", 1.0),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": ("throttle_reasons", 1.0),
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": ("ecc_corrected", 1.0),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": ("ecc_uncorrected", 1.0),
    "DCGM_FI_DEV_RETIRED_DBE": ("retired_pages", 1.0),
    "DCGM_FI_DEV_PAGE_RETIRED_DBE_TOTAL": ("retired_pages", 1.0),
    "DCGM_FI_DEV_RETIRED_PENDING": ("retired_pending", 1.0),
    "DCGM_FI_DEV_PAGE_RETIRED_PENDING": ("retired_pending", 1.0),
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": ("remapped_rows", 1.0),
    "DCGM_FI_DEV_ROW_REMAP_UNCORRECTABLE_TOTAL": ("remapped_rows", 1.0),
    "DCGM_FI_DEV_ROW_REMAP_PENDING": ("remap_pending", 1.0),
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": ("remap_failed", 1.0),
    "DCGM_FI_DEV_ROW_REMAP_FAILED": ("remap_failed", 1.0),
}
"""Which number each series is, and what its unit is worth in ours."""

_LAST_XID: Final = ("DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_XID_ERROR")  # the value is the code, 0 for none
_COUNTED_XID: Final = ("DCGM_EXP_XID_ERRORS_COUNT", "DCGM_EXP_XID_ERRORS_TOTAL")  # the label is the code
_FREE: Final[Mapping[str, float]] = {"DCGM_FI_DEV_FB_FREE": 1.0, "DCGM_FI_DEV_FB_FREE_BYTES": 1.0 / _MIB}
_SAMPLE: Final = re.compile(r"(DCGM_[A-Z0-9_]+)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*")
_LABEL: Final = re.compile(r'\b([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_BLANK: Final = 1e14  # from here on DCGM says "blank", "not found", "not supported" or "not permitted"
_BLANK_32: Final = range(0x7FFFFFF0, 0x7FFFFFF4)


class NotReadable(CloudError):
    """The exporter of a node cannot be read."""


def parse(node: str, text: str, at: float) -> NodeGpus:
    """The GPUs in an exposition. Lines that are not understood are passed over.

    Rows of a part of a GPU (MIG) count for the GPU: the greatest of each number.
    """
    read: dict[int, dict[str, Any]] = {}
    free: dict[int, float] = {}
    xids: dict[tuple[str, int], Xid] = {}
    for name, labels, value in _samples(text):
        index = int(labels["gpu"])
        if index not in read and len(read) >= MOST_GPUS:
            continue
        found = read.setdefault(index, {})
        found.update(uuid=labels.get("UUID", "")[:80], name=labels.get("modelName", "")[:80])
        if name in _NUMBERS:
            field, unit = _NUMBERS[name]
            found[field] = max(found.get(field, -math.inf), value * unit)
        elif name in _FREE:
            free[index] = value * _FREE[name]
        elif (xid := _xid(name, labels, value)) is not None:
            xids[xid.pci, xid.code] = xid
    for index, room in free.items():
        if "memory_used_mib" in read[index]:
            read[index].setdefault("memory_total_mib", room + read[index]["memory_used_mib"])
    gpus = tuple(GpuReading(index=index, **found) for index, found in sorted(read.items()))
    return NodeGpus(node=node, at=at, source="dcgm", gpus=gpus, xids=tuple(xids.values())[-MOST_XIDS:])


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line) if line.startswith("DCGM_") and len(line) < 4_000 else None
        if match is None:
            continue
        labels = dict(_LABEL.findall(match[2] or ""))
        try:
            value = float(match[3])
        except ValueError:
            continue
        blank = not math.isfinite(value) or value >= _BLANK or int(value) in _BLANK_32
        if not blank and value >= 0.0 and labels.get("gpu", "").isdecimal() and len(labels["gpu"]) < 5:
            yield match[1], labels, value


def _xid(name: str, labels: Mapping[str, str], value: float) -> Xid | None:
    code = 0
    if name in _LAST_XID:
        code = int(value)
    elif name in _COUNTED_XID and value > 0 and labels.get("xid", "").isdecimal():
        code = int(labels["xid"][:6])
    if not 0 < code < 100_000:
        return None
    where = labels.get("pci_bus_id") or f"GPU {labels['gpu']}"
    return Xid(pci=where[:32], code=code, text=labels.get("err_msg", "")[:200])


class DcgmExporter:
    """One exporter on every node, at the same `port`. A look ends after `timeout` seconds."""

    def __init__(self, clock: Clock, *, port: int, timeout: float = 5.0) -> None:
        self._clock, self._port, self._timeout = clock, port, timeout
        self._session: aiohttp.ClientSession | None = None

    async def read(self, node: str, address: str) -> NodeGpus:
        """The GPUs of a node, where the engine listens at `address`. Raises NotReadable."""
        url = f"http://{address.rpartition(':')[0]}:{self._port}/metrics"
        try:
            async with asyncio.timeout(self._timeout):
                body = await self._body(url)
        except TimeoutError:
            raise NotReadable(f"{url}: no answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NotReadable(f"{url}: {error or type(error).__name__}") from None
        # In a thread: whatever stands there, it holds up nobody.
        text, at = body.decode("utf-8", "replace"), self._clock.now()
        looked = await asyncio.to_thread(parse, node, text, at)
        if not looked.gpus:
            raise NotReadable(f"{url}: no GPU is in it")
        return looked

    async def _body(self, url: str) -> bytes:
        async with self._client().get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise NotReadable(f"{url}: status {answer.status}")
            body = await answer.content.read(MOST_BYTES + 1)
            while len(body) <= MOST_BYTES and (more := await answer.content.read(MOST_BYTES)):
                body += more
        if len(body) > MOST_BYTES:
            raise NotReadable(f"{url}: more than {MOST_BYTES} bytes")
        return body

    def _client(self) -> aiohttp.ClientSession:
        """The one session, made inside the running loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=64, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None),  # a look has its own
            )
        return self._session

    async def close(self) -> None:
        """Release connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
