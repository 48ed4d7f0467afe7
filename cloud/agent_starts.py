"""What a node's report says of its newest start: part of reading reports, see `cloud.agent_receiver`.

What has the wrong type counts as missing. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cloud.node_log import PARTS
from policies.starts import NodeStart

BOOT_STAGES: Final = ("disks", "checks", "secrets", "image", "weights", "start", "failed")
"""How far a node may have come: its last stage is the start of the engine, or that it failed."""


def read_start(report: Mapping[str, Any], now: float) -> NodeStart | None:
    """When the stages of the newest start began, and what the engine's log says, in this host's time."""
    boot, engine, sent = report.get("boot"), report.get("engine"), number(report.get("at"))
    if not isinstance(boot, dict) or sent is None:
        return None
    behind = now - sent

    def here(value: object) -> float | None:
        at = number(value)
        return at + behind if at else None

    times, took = boot.get("times"), engine.get("took") if isinstance(engine, dict) else None
    stages = [
        (stage, at)
        for stage in BOOT_STAGES
        if isinstance(times, dict) and (at := here(times.get(stage))) is not None
    ]
    lasted = {part: number(took.get(part)) for part in PARTS} if isinstance(took, dict) else {}
    return NodeStart(
        first=here(boot.get("first")),
        stages=tuple(sorted((s for s in stages if s[0] != "failed"), key=lambda stage: stage[1])),
        took={part: seconds for part, seconds in lasted.items() if seconds is not None and seconds >= 0},
        serves=isinstance(engine, dict) and engine.get("serves") is True,
        serves_at=here(engine.get("serves_at")) if isinstance(engine, dict) else None,
    )


def number(value: object) -> float | None:
    """A finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 and math.isfinite(value) else None
