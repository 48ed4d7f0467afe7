"""Swaps and starts that were, with the seconds of their stages and parts, for `GET /v1/history`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from orchestrator.api.starts import Starts, kinds, newest
from orchestrator.api.starts import view as start_view
from orchestrator.percentile import percentile
from orchestrator.views import api as views
from policies.memory_builder import SWAPS_KEPT
from policies.records import Swap

SWAPS_MOST: Final = 2 * SWAPS_KEPT
"""The most swaps that memory holds before ended ones are forgotten."""

_Stage = Literal["detached", "drained", "replaced", "gone"]
_STAGES: Final[tuple[_Stage, ...]] = ("detached", "drained", "replaced", "gone")


def view(
    swaps: Iterable[tuple[str, Swap]], starts: Starts = (), *, at: float, limit: int
) -> views.HistoryView:
    """The newest `limit` of these swaps, oldest first, with the account of their stages; starts likewise.

    Each comes with its pool, empty where the daemon has one.
    """
    ordered = sorted(swaps, key=lambda pair: (pair[1].opened_at, pair[1].outgoing))[-limit:]
    shown = [_swap(swap, pool) for pool, swap in ordered]
    begun = newest(starts, limit)
    return views.HistoryView(
        schema="history/1",
        at=at,
        swaps=shown,
        stages=_stages(shown),
        starts=[start_view(start, pool) for pool, start in begun],
        start_kinds=kinds(begun),
    )


def _swap(swap: Swap, pool: str) -> views.PastSwapView:
    def since(moment: float | None) -> float | None:
        return None if moment is None else max(0.0, moment - swap.opened_at)

    view = views.PastSwapView(
        outgoing=swap.outgoing,
        incoming=swap.incoming or None,
        cause=str(swap.cause),
        stage=swap.stage,
        began_at=swap.opened_at,
        deadline=swap.deadline,
        seconds=views.StageSecondsView(
            detached=since(swap.detached_at),
            drained=since(swap.drained_at),
            replaced=since(swap.replaced_at),
            gone=since(swap.gone_at),
        ),
    )
    if pool:
        view["pool"] = pool
    return view


def _stages(swaps: Sequence[views.PastSwapView]) -> list[views.StageView]:
    found = []
    for stage in _STAGES:
        times = [seconds for swap in swaps if (seconds := swap["seconds"][stage]) is not None]
        median, p95 = percentile(times, 0.5), percentile(times, 0.95)
        if median is not None and p95 is not None:
            found.append(
                views.StageView(
                    stage=stage, swaps=len(times), median_s=median, p95_s=p95, longest_s=max(times)
                )
            )
    return found
