"""Starts of nodes in parts, as the control API gives them. See `orchestrator.views.api`."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict


class PastStartView(TypedDict):
    """One start that is over: from its launch, or that of a stopped standby, until it was routed."""

    node: str
    instance_type: str
    market: str
    standby: Annotated[bool, "a stopped standby was started; else a machine was launched"]
    began_at: float
    seconds: float
    parts: Annotated[dict[str, float], "seconds by part, see policies.starts; one nobody measured is missing"]
    pool: NotRequired[Annotated[str, "only where the daemon has several"]]


class StartPartView(TypedDict):
    """One part over the starts of a kind. `starts`: how many of them know it; the times are of those."""

    part: str
    starts: int
    median_s: float
    p90_s: float
    share: Annotated[float, "of the seconds of all starts of the kind, 0 to 1"]


class StartKindView(TypedDict):
    """The starts of one kind: of a pool, an instance type, and launches or stopped standbys."""

    instance_type: str
    standby: bool
    starts: int
    median_s: float
    p90_s: float
    parts: list[StartPartView]
    advice: Annotated[str, "what takes longest, and what shortens it"]
    pool: NotRequired[Annotated[str, "only where the daemon has several"]]
