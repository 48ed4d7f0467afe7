"""What the operator asks of `orchestrator demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROVIDER = "api"
"""The name of the provider that answers when the pool cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The options of the demo; the command line checks their ranges.

    `duration` is seconds of real time, `speed` how many seconds of the spot market pass in one of them.
    `rate` is requests per second, `kills` how many engines are killed besides what is taken. `trace` is a
    directory in the spotset/1 format; None plays a synthetic market that follows `seed`. `state_dir` None
    means a temporary directory; it is removed at the end unless `keep`.
    """

    duration: float = 50.0
    seed: int = 1
    nodes: int = 10
    speed: float = 20.0
    engine: Literal["simulated", "vllm", "llamacpp"] = "simulated"
    trace: Path | None = None
    rate: float = 20.0
    kills: int = 0
    output: Literal["table", "json"] = "table"
    state_dir: Path | None = None
    keep: bool = False
    quiet: bool = False
