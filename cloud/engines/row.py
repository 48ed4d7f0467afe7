"""One row of the table of dialects: how an engine tells what it does, and where each fact was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from cloud.ports import EngineCapabilities, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where facts of a row were found.

    `facts`: names of the row's fields. `version` and `date` (of its release, or of the commit that was read)
    of what was run or read. `where`: the files that say it, or what was done with the running engine.
    """

    facts: tuple[str, ...]
    version: str
    date: str
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How an engine is asked to order texts.

    POST to `path` with ``query`` and the texts under `texts`. The answer has a row for each text with its
    ``index`` and, under `score`, how well it fits: under ``results``, or as the `bare` list. `every`: it
    knows all the spellings that clients have, /rerank, /v1/rerank and /v2/rerank.
    """

    path: str = "/v1/rerank"
    texts: Literal["documents", "texts"] = "documents"
    score: Literal["relevance_score", "score"] = "relevance_score"
    bare: bool = False
    every: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How an engine tells what it does.

    `title` is its name for people, `program` its usual program, empty for one that is part of this
    distribution. Paths: `health`, `listing` (its models) and `metrics`, empty for an engine that has none.
    Names of metrics are empty where it has none: `running` and `waiting` its gauges of requests; `progress`
    counters whose sum rises while it works at a task and falls only when its process is another one; `kv`
    the share of its cache in use; `tokens_in` and `tokens_out` counters of tokens; `first_token` and
    `between_tokens` histograms in seconds. `sparse`: a metric without a value is left out, and means 0.

    `loading`: what a client meets until the model is loaded. `unready`: what a 503 of `health` says, for
    operators. `measured`: what has to be switched on for its metrics. `full`: the status of a request that
    finds no place. `too_long`: by task, that of an input that the model cannot take, 200 where it is cut.
    `closes_after`: seconds after which it always closes an idle connection; 0 where it keeps
    it, or for as long as configured. `load` and `unload`: paths that take an adapter in and out while it
    runs, `numbered` that of the adapters that it knows by number; empty where it has none. `own_name`: what
    it calls a model, for an engine that takes no other name.
    """

    title: str
    program: str
    capabilities: EngineCapabilities
    health: str = "/health"
    listing: str = "/v1/models"
    metrics: str = "/metrics"
    running: str = ""
    waiting: str = ""
    progress: Mapping[Task, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    kv: str = ""
    tokens_in: str = ""
    tokens_out: str = ""
    first_token: str = ""
    between_tokens: str = ""
    sparse: bool = False
    loading: Literal["refused", "503"] = "refused"
    unready: str
    measured: str = "its statistics must not be switched off"
    full: int | None = None
    too_long: Mapping[Task, int] = field(default_factory=lambda: MappingProxyType({}))
    closes_after: float = 0.0
    ranking: Ranking = Ranking()
    numbered: str = ""
    load: str = ""
    unload: str = ""
    own_name: Callable[[str], str] | None = None
    sources: tuple[Source, ...]
