"""GPUs of a node in words, for the cards of `orchestrator node`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.views.api import GpusView, GpuView, XidView

_ASKS = {
    "person": "somebody to look",
    "restart": "a restart of the engine, which its node does by itself if it ended",
    "reset": "a reset of the GPU",
    "replace": "a new start of the machine",
}


def gpu_rows(gpus: Sequence[GpuView], xids: Sequence[XidView]) -> list[tuple[str, str]]:
    """Each GPU and each Xid error as a fact."""
    return [("gpu", _gpu(gpu)) for gpu in gpus] + [("xid", _xid(xid)) for xid in xids]


def gpu_trouble(gpus: GpusView) -> list[tuple[str, str]]:
    """What is wrong, and how the node compares with its peers; nothing where all is well."""
    rows = []
    if gpus["asks"] in _ASKS:
        rows.append(("gpus ask", f"for {_ASKS[gpus['asks']]}: {gpus['why']}"))
    if gpus["throttled_s"] > 0:
        rows.append(("throttled", f"for {gpus['throttled_s']:.0f} s: {gpus['throttle']}"))
    if gpus["speed"] is not None:
        slow = f", slow for {gpus['slow_s']:.0f} s" if gpus["slow_s"] > 0 else ""
        rows.append(("speed", f"{gpus['speed']:.0%} of its peers' by {gpus['speed_by']}{slow}"))
    if gpus["error"]:
        rows.append(("not read", gpus["error"]))
    return rows


def _gpu(gpu: GpuView) -> str:
    """One GPU in a line; what its driver does not tell is left out."""

    known: Mapping[str, Any] = gpu  # a daemon of an older version does not say all

    def value(name: str, text: str) -> str:
        value = known.get(name)
        return "" if value is None else text.format(value)

    used, whole = gpu["memory_used_mib"], gpu["memory_total_mib"]
    limit = value("power_limit_w", " of {:.0f}")
    parts = (
        f"{gpu['index']} {gpu['name']}",
        known.get("state", ""),
        value("utilisation_percent", "{:.0f} % busy"),
        "" if used is None or whole is None else f"{used / 1024:.1f} of {whole / 1024:.1f} GiB",
        value("temperature_c", "{:.0f} °C"),
        value("power_w", f"{{:.0f}}{limit} W"),
        value("sm_clock_mhz", "{:.0f} MHz"),
        known.get("throttled", ""),
        f"{gpu['ecc_uncorrected']:.0f} uncorrected memory errors" if gpu["ecc_uncorrected"] else "",
        f"{gpu['ecc_corrected']:.0f} corrected" if known.get("ecc_corrected") else "",
        "memory waits for a reset" if known.get("waits_for_reset") else "",
    )
    return ", ".join(part for part in parts if part)


def _xid(xid: XidView) -> str:
    fatal = ": fatal" if xid["fatal"] else ""
    says = f" ({xid['says']})" if xid.get("says") else ""
    where = f" at {xid['pci']}" if xid["pci"] else ""
    often = f", {xid['count']} times" if xid.get("count", 1) > 1 else ""
    return f"{xid['code']}{where}{often}{fatal}{says}: {xid['text']}"
