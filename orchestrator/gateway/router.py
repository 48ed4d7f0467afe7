"""The router: which backend gets a request, by the model that it names, and which next where one cannot.

What decides is `policies.routing`; here its choice is carried out. With one pool and no route, requests are
not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from cloud.logger import structlog
from orchestrator.gateway import affinity
from orchestrator.gateway.backend import Backend
from orchestrator.gateway.config import GatewayConfig, PoolGate
from orchestrator.gateway.endings import Endings, Turned, Unserved
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.job import Job
from orchestrator.gateway.lane import Lane
from orchestrator.gateway.listing import all_models, asks_for_models, one_model, shape_of
from orchestrator.gateway.metrics import GatewayMetrics, Outcome, RouteNow
from orchestrator.gateway.replies import error_response
from orchestrator.gateway.route_views import route_view
from policies.keys import ClientKey
from policies.routing import (
    ANY_TASK,
    Affinity,
    BackendView,
    Candidate,
    Choice,
    Kind,
    Names,
    Route,
    Task,
    Trouble,
    choose,
    main_task,
)
from policies.routing import Backend as Entry

log = structlog.get_logger("gateway")

_GOLDEN: Final = 0.6180339887498949  # multiples of it fill [0, 1) as evenly as can be
_LONGEST: Final = 100  # characters of an unknown name that are repeated
_LISTED: Final = 20  # names of models in an error
_SAME_MODEL: Final = frozenset({"embeddings", "pooling", "rerank", "score", "classify"})
"""Dialects whose answers are of use beside others of the same model alone."""
_TASKS: Final = {
    **dict.fromkeys(("chat", "completions", "responses", "messages"), Task.CHAT),
    "embeddings": Task.EMBED,
    "rerank": Task.RERANK,
}
"""What each dialect asks for, where others could not be answered, or with nonsense."""
_DOES: Final = {
    Task.CHAT: "writes texts; ask /v1/chat/completions",
    Task.EMBED: "turns texts into numbers and answers none; ask /v1/embeddings",
    Task.RERANK: "puts texts in order and answers none; ask /v1/rerank",
}
_DONE_BY: Final = {
    Task.CHAT: "texts are written by",
    Task.EMBED: "texts are turned into numbers by",
    Task.RERANK: "texts are put in order by",
}


class Router:
    """Sends requests to backends. `seed` in [0, 1) is where the splits by weight begin."""

    def __init__(
        self,
        config: GatewayConfig,
        lanes: Mapping[str, Lane],
        providers: Mapping[str, Backend],
        *,
        endings: Endings,
        metrics: GatewayMetrics,
        seed: float,
    ) -> None:
        self._config = config
        self._lanes = lanes
        self._providers = providers
        self._endings = endings
        self._metrics = metrics
        self._seed = seed
        metrics.routes = self.now
        self._drawn: dict[str, int] = {}
        self._names = Names(config.routes, implicit_routes(config.pools))
        self._served = {gate.name: gate.served for gate in config.pools}
        self._only: tuple[Lane, Candidate] | None = None
        if not config.routed:
            (lane,) = lanes.values()
            self._only = lane, Candidate(Entry(kind=Kind.POOL, name=lane.name), 0)

    async def serve(self, job: Job) -> web.StreamResponse:
        """Answer a request. Raises Turned, ClientGone."""
        if self._only is not None:
            lane, candidate = self._only
            self._check_task(job, lane.gate.tasks, job.asked.model or lane.gate.served)
            try:
                return await lane.serve(job, candidate)
            except Unserved as unserved:
                raise unserved.turned from None
        return await self._along(job, self._aimed(job, self._find(job)))

    async def cut(self, job: Job, failure: Failure, detail: str) -> web.StreamResponse:
        """End a stream of which the client has a part, as the gateway ends."""
        lane = self._lanes.get(job.pool)
        return await (self._endings if lane is None else lane).cut(job, failure, detail)

    def listing(self, request: web.BaseRequest, client: ClientKey | None, request_id: str) -> Turned | None:
        """The answer to a question for the models there are, and that a client may ask for; None where that
        is for a pool, or none.
        """
        everything = client is None or client.asks_all
        if (self._only is not None and everything) or (name := asks_for_models(request)) is None:
            return None
        if not name:
            return Turned(all_models(self._listed(client), request_id), Outcome.OK)
        if self._names.find(name) is not None:
            return Turned(one_model(name, request_id), Outcome.OK)
        response = error_response(
            404,
            "model_not_found",
            self._no_model(name, client),
            request_id=request_id,
            shape=shape_of(request),
            param="model",
        )
        return Turned(response, Outcome.BAD_REQUEST)

    @property
    def routes(self) -> list[Route]:
        """All routes, those of the pools' own models last."""
        return self._names.listed

    def describe(self) -> list[dict[str, Any]]:
        """The routes as GET /v1/routes shows them."""
        counts, rows = self._metrics.routed or {}, []
        for route in self.routes:
            views = self._views(route)
            rows.append(route_view(route, views, choose(route, views), counts))
        return rows

    def now(self) -> Iterator[RouteNow]:
        """The routes that are written, as metrics show them."""
        for route in self._config.routes:
            views = self._views(route)
            candidate = choose(route, views).candidate
            asked = None if candidate is None else candidate.backend
            yield RouteNow(
                name=route.name,
                servable=any(view.sound for view in views),
                stand_ins={
                    name: asked is not None and asked.kind is Kind.PROVIDER and asked.name == name
                    for name in sorted(route.stand_ins)
                },
            )

    def unservable(self) -> list[str]:
        """Names of the routes that nobody could serve at this moment."""
        if self._only is not None:
            return [] if self._only[0].view().sound else [""]
        return [route.name for route in self.routes if not any(view.sound for view in self._views(route))]

    async def _along(self, job: Job, route: Route) -> web.StreamResponse:
        """Try the backends of a route, as its rules say."""
        job.route = route
        if len(route.backends) == 1:
            return await self._to_only(job, route)
        draw = self._draw(route)
        troubles: dict[int, Trouble] = {}
        met: list[tuple[Entry, Unserved]] = []
        while True:
            choice = choose(route, self._views(route), troubles, draw)
            if (candidate := choice.candidate) is None:
                raise self._unserved(job, route, met, choice)
            if met:
                job.exchange.anew()
            try:
                response = await self._send(job, route, candidate)
            except Unserved as unserved:
                met.append((candidate.backend, unserved))
                troubles[candidate.place] = unserved.trouble
                self._count(route, candidate.backend, unserved)
                log.info(
                    "backend.failed",
                    request_id=job.exchange.id,
                    route=route.name,
                    backend=str(candidate.backend),
                    failure=unserved.trouble.value,
                    detail=unserved.why,
                )
            except Turned as turned:
                self._count(route, candidate.backend, turned)
                raise
            else:
                self._count(route, candidate.backend, None)
                return response

    async def _to_only(self, job: Job, route: Route) -> web.StreamResponse:
        """To the only backend of a route."""
        (backend,) = route.backends
        try:
            response = await self._send(job, route, Candidate(backend, 0))
        except (Turned, Unserved) as error:
            self._count(route, backend, error)
            raise error.turned if isinstance(error, Unserved) else error from None
        self._count(route, backend, None)
        return response

    async def _send(self, job: Job, route: Route, candidate: Candidate) -> web.StreamResponse:
        backend = candidate.backend
        if route.stays and backend.kind is Kind.PROVIDER:
            raise AssertionError(f"request {job.exchange.id}: the data of route {route.name!r} stays")
        if job.response is not None:
            raise AssertionError(f"request {job.exchange.id}: its client has a part of an answer")
        job.backend, job.pool = "/".join(filter(None, (backend.name, backend.model))), ""
        job.aim(self._model_of(backend))
        return await self._backend(backend).serve(job, candidate)

    def _count(self, route: Route, backend: Entry, ended: Unserved | Turned | None) -> None:
        result = ended.trouble.value if isinstance(ended, Unserved) else "turned" if ended else "answered"
        self._metrics.went(route.name, str(backend), result)

    def _find(self, job: Job) -> Route:
        """The route of a request. Raises Turned where there is none."""
        stored, model = job.asked.stored, job.asked.model
        if stored is not None and (lane := self._keeper(stored)) is not None:
            return self._to_keeper(lane, model)
        if model:
            route = self._names.find(model)
        elif self._config.unnamed:
            route = self._names.find(self._config.unnamed)
        elif not job.asked.dialect.json:  # it has no place for a name: a file, a list, /health
            if self._config.pools:
                return _straight(self._config.pools[0])
            what = f"{job.request.method} {job.asked.path} is for a pool, and this gateway has none"
            raise self._endings.turned(job, 404, "not_found", what)
        else:
            raise self._endings.turned(
                job,
                400,
                "model_missing",
                f"the request names no model; {self._known(job.client)}",
                param="model",
            )
        if route is None:
            unknown = self._no_model(model, job.client)
            raise self._endings.turned(job, 404, "model_not_found", unknown, param="model")
        job.model = model or route.name
        return route

    def _aimed(self, job: Job, route: Route) -> Route:
        """Apply what a route says of its requests. Raises Turned."""
        most, asked = route.most_tokens, job.asked
        if most and asked.max_tokens is not None and asked.max_tokens > most:
            raise self._endings.turned(
                job,
                400,
                "too_many_tokens",
                f"the route {route.name!r} answers with {most} tokens at most, and {asked.max_tokens} were "
                "asked for",
                param="max_tokens",
            )
        if most:
            job.came = job.asked = asked.limited(most)
        job.exchange.priority = route.priority
        job.exchange.wish.key = _key(job, route)
        self._check_task(job, self._does(route), job.model)
        if asked.dialect.name in _SAME_MODEL:
            return _of_one_model(route, self._model_of)
        return route

    def _does(self, route: Route) -> frozenset[Task]:
        """What a route may be asked for: what all of its pools do. A provider may do the rest too."""
        pools = {backend.name for backend in route.backends if backend.kind is Kind.POOL}
        common = ANY_TASK.intersection(*(gate.tasks for gate in self._config.pools if gate.name in pools))
        if route.task is Task.CHAT:
            return common or ANY_TASK
        alone = all(each.kind is Kind.POOL for each in route.backends)
        return frozenset({route.task}) | (common - {Task.CHAT} if alone else frozenset())

    def _check_task(self, job: Job, does: frozenset[Task], model: str) -> None:
        """Refuse what a model does not do: llama.cpp would answer, with nonsense. Raises Turned."""
        wanted = _TASKS.get(job.asked.dialect.name)
        if wanted is None or wanted in does:
            return
        others = [route.name for route in self.routes if wanted in self._does(route) != ANY_TASK]
        others = [name for name in others if _may_ask(job.client, name)][:_LISTED]
        by = f"; {_DONE_BY[wanted]} {', '.join(others)}" if others else ""
        what = f"the model {model!r} {_DOES[main_task(does)]}{by}"
        raise self._endings.turned(job, 400, "wrong_task", what, param="model")

    def _to_keeper(self, lane: Lane, model: str) -> Route:
        """The route of a request about something that a pool keeps: there and nowhere else."""
        route = self._names.find(model)
        for backend in route.backends if route is not None else ():
            if backend.kind is Kind.POOL and backend.name == lane.name:
                return Route(models=(model,), backends=(backend,), priority=route.priority if route else 0)
        return _straight(lane.gate)

    def _keeper(self, stored: str) -> Lane | None:
        return next((lane for lane in self._lanes.values() if lane.keeps(stored)), None)

    def _views(self, route: Route) -> list[BackendView]:
        return [self._backend(backend).view(backend.model) for backend in route.backends]

    def _backend(self, backend: Entry) -> Backend:
        known: Mapping[str, Backend] = self._lanes if backend.kind is Kind.POOL else self._providers
        return known[backend.name]

    def _model_of(self, backend: Entry) -> str:
        return backend.model or (self._served[backend.name] if backend.kind is Kind.POOL else "")

    def _draw(self, route: Route) -> float:
        """The next number of a sequence that fills [0, 1) evenly, so that weights hold over few requests."""
        drawn = self._drawn[route.name] = self._drawn.get(route.name, -1) + 1
        return (self._seed + drawn * _GOLDEN) % 1.0

    def _no_model(self, model: str, client: ClientKey | None) -> str:
        """What to say of a name that is not known."""
        nearest = self._names.nearest(model)
        meant = f"did you mean {nearest!r}? " if nearest and _may_ask(client, nearest) else ""
        cut = f"{model[:_LONGEST]}..." if len(model) > _LONGEST else model
        return f"there is no model {cut!r}; {meant}{self._known(client)}"

    def _listed(self, client: ClientKey | None) -> list[str]:
        """The models there are, each by its first name that a client may ask for."""
        names = (next((n for n in route.models if _may_ask(client, n)), "") for route in self.routes)
        return [name for name in names if name]

    def _known(self, client: ClientKey | None) -> str:
        """The same in words."""
        names = self._listed(client)
        if not names:
            return "there is none"
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"there is {', '.join(names[:_LISTED])}{more}"

    def _unserved(self, job: Job, route: Route, met: list[tuple[Entry, Unserved]], choice: Choice) -> Turned:
        """How a request ends that no backend answered: with what one said, else with all the reasons."""
        if (said := next((unserved for _, unserved in met if unserved.said), None)) is not None:
            return said.turned
        reasons = [f"{backend} {unserved.why}" for backend, unserved in met]
        tried = {id(backend) for backend, _ in met}
        reasons += [str(each) for each in choice.left_out if id(each.backend) not in tried]
        what = f"no backend of {route.name!r} could answer: {'; '.join(reasons)}"
        return self._endings.turned(job, 503, "no_backend", what)


def implicit_routes(pools: Iterable[PoolGate]) -> Iterator[Route]:
    """The routes of the pools' own models and adapters, for those names that no other route has."""
    for gate in pools:
        for model in gate.names:
            backend = Entry(kind=Kind.POOL, name=gate.name, model=model)
            yield Route(models=(model,), backends=(backend,), task=main_task(gate.tasks))


def _may_ask(client: ClientKey | None, model: str) -> bool:
    return client is None or client.may_ask(model)


def _straight(gate: PoolGate) -> Route:
    """The route of what is for a pool and names no model that leads there."""
    backend = Entry(kind=Kind.POOL, name=gate.name)
    return Route(models=(gate.name or "pool",), backends=(backend,))


def _of_one_model(route: Route, model_of: Callable[[Entry], str]) -> Route:
    """A route with the backends alone that serve the same model as its first."""
    first = model_of(route.backends[0])
    same = tuple(backend for backend in route.backends if model_of(backend) == first)
    return route if len(same) == len(route.backends) else replace(route, backends=same)


def _key(job: Job, route: Route) -> int | None:
    """What stands for a request among those that go to the same target."""
    if route.affinity is Affinity.SESSION:
        session = job.request.headers.get(route.session_header)
        return affinity.key_of(session) if session else None
    if route.affinity is Affinity.PREFIX and job.asked.inner is not None:
        begins = affinity.beginning(job.asked.inner)
        return affinity.key_of(begins) if begins else None
    return None
