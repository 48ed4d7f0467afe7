"""One row of the table of dialects: how an engine tells what it does, and where each fact was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from cloud.ports import EngineCapabilities, Task
from cloud.proof import Proof, Proved


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where facts of a row were found."""

    facts: tuple[str, ...]  # names of the row's fields
    version: str  # what was run or read
    date: str  # of the release, or of the commit that was read
    where: str  # the files that say it, or what was done with the running engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How an engine is asked to order texts: POST to `path` with ``query`` and the texts.

    The answer has a row for each text with its ``index`` and its score.
    """

    path: str = "/v1/rerank"
    texts: Literal["documents", "texts"] = "documents"  # key of the texts
    score: Literal["relevance_score", "score"] = "relevance_score"  # key of the score in a row
    bare: bool = False  # the answer is the list of rows, not an object with ``results``
    every: bool = False  # it has all the paths of clients: /rerank, /v1/rerank and /v2/rerank


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """An engine's paths, metrics and manners. A path, metric or status that it lacks is empty or None."""

    title: str  # its name for people
    program: str  # its usual program; empty: part of this distribution
    capabilities: EngineCapabilities
    health: str = "/health"
    listing: str = "/v1/models"  # path of its models
    metrics: str = "/metrics"
    running: str = ""  # gauge of requests
    waiting: str = ""  # gauge of requests
    progress: Mapping[Task, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Counters whose sum rises while it works at a task and falls only when its process is another one."""
    kv: str = ""  # share of its cache in use
    tokens_in: str = ""  # counter
    tokens_out: str = ""  # counter
    first_token: str = ""  # histogram in seconds
    between_tokens: str = ""  # histogram in seconds
    sparse: bool = False  # a metric without a value is left out, and means 0
    loading: Literal["refused", "503"] = "refused"  # what clients get until the model is loaded
    unready: str  # what a 503 of `health` means, for operators
    measured: str = "its statistics must not be switched off"  # what its metrics need
    full: int | None = None  # status of a request that finds no place
    too_long: Mapping[Task, int] = field(default_factory=lambda: MappingProxyType({}))
    """Status of an input that the model cannot take; 200 where it is cut."""
    closes_after: float = 0.0  # seconds until it closes an idle connection; 0: never, or as configured
    ranking: Ranking = Ranking()
    numbered: str = ""  # path of the adapters that it knows by number
    load: str = ""  # path that loads an adapter while it runs
    unload: str = ""  # path that unloads one
    own_name: Callable[[str], str] | None = None  # what it calls a model, where it takes no other name
    sources: tuple[Source, ...]

    @property
    def proved(self) -> Proved:
        """How well the row is proved: it was seen on the running engine, or read."""
        read = self.sources[0]
        proof = Proof.PROGRAM if self.capabilities.ran else Proof.SOURCE
        return Proved(proof=proof, by=f"{self.title} {read.version}")
