"""What the operator asks of `orchestrator demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROVIDER = "api"
"""The name of the provider that answers when the pool cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The options of the demo; the command line checks their ranges."""

    duration: float = 50.0  # seconds of real time
    seed: int = 1
    nodes: int = 10
    speed: float = 20.0  # seconds of the spot market in a second
    engine: Literal["simulated", "vllm", "llamacpp"] = "simulated"
    trace: Path | None = None  # directory in the spotset/1 format; None: a synthetic market of `seed`
    rate: float = 20.0  # requests per second
    kills: int = 0  # engines killed beside the reclaims
    output: Literal["table", "json"] = "table"
    state_dir: Path | None = None  # None: a temporary directory, removed at the end unless `keep`
    keep: bool = False
    quiet: bool = False
