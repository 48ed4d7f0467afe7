"""Shows what is known of SkyPilot's helpers, by the name of their home directory."""

from __future__ import annotations

from collections.abc import Callable

from cloud.skypilot.process import HelperState
from orchestrator.metrics import metrics


def helper_changed(helper: str) -> Callable[[HelperState], None]:
    """What a helper of that name calls whenever its state has changed."""
    ends = metrics.SKYPILOT_ENDS.labels(helper)
    up, memory = metrics.SKYPILOT_UP.labels(helper), metrics.SKYPILOT_MEMORY.labels(helper)
    counted = 0

    def changed(state: HelperState) -> None:
        nonlocal counted
        up.set(1 if state.up else 0)
        memory.set(state.memory)
        ends.inc(state.ends - counted)
        counted = state.ends

    return changed
