"""The JSON of `orchestrator journal`, as types; rules as in `orchestrator.views.api`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict


class JournalView(TypedDict):
    """`orchestrator journal show -o json`: what a journal holds."""

    schema: Literal["journal/1"]
    file: str
    format: Annotated[int, "version of the file's tables"]
    size: Annotated[int, "bytes of the file, without a write-ahead log beside it"]
    pools: list[str]
    epoch: Annotated[int, "of the daemon that wrote last"]
    events: int
    first_event: Annotated[int, "number of the oldest event; 0 when there is none"]
    last_event: int
    first_at: Annotated[float | None, "when the oldest event happened; null when there is none"]
    last_at: float | None
    open_intents: Annotated[int, "calls whose outcome is not known"]
    turns: Annotated[int, "recorded turns that can be replayed"]
    first_turn_at: float | None
    last_turn_at: float | None
    turn_bytes: Annotated[int, "what the recorded turns take"]
    versions: Annotated[list[str], "versions that recorded turns"]


class DifferingTurnView(TypedDict):
    """One turn that is not decided again as it was recorded."""

    turn: int
    event: Annotated[int, "number of the last event that it knew"]
    at: float
    pool: str
    version: Annotated[str, "that recorded it"]
    differences: Annotated[list[str], "one sentence each"]
    unreadable: Annotated[str | None, "why it could not be decided again; null when it could"]


class ReplayView(TypedDict):
    """`orchestrator journal replay -o json`: recorded turns decided again."""

    schema: Literal["replay/1"]
    file: str
    version: Annotated[str, "that replayed"]
    versions: Annotated[list[str], "that recorded"]
    turns: Annotated[int, "replayed"]
    identical: Annotated[int, "plans that came out the same, byte for byte"]
    differing: int
    unreadable: int
    first_turn: int
    last_turn: int
    first_at: float
    last_at: float
    different: list[DifferingTurnView]


class TurnView(TypedDict):
    """`orchestrator journal replay --turn N -o json`: everything that one turn knew and decided."""

    schema: Literal["turn/1"]
    turn: int
    event: Annotated[int, "number of the last event that it knew"]
    at: float
    pool: str
    version: Annotated[str, "that recorded it"]
    identical: bool
    differences: list[str]
    wanted: Annotated[dict[str, Any], "the pool as configured"]
    world: Annotated[dict[str, Any], "what was observed, each part with its age"]
    memory: Annotated[dict[str, Any], "what was remembered; mappings are lists of pairs"]
    plan: Annotated[dict[str, Any], "the plan as recorded"]
    plan_now: Annotated[dict[str, Any], "the plan as decided again"]
    sentences: Annotated[list[str], "why the pool was as it was"]
